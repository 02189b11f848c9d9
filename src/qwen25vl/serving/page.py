"""The page: the files of `web/`, served from memory, and the headers that every reply carries.

Nothing of a request reaches the file system: the files are read once, when the routes are made, and
each has a route of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

WEB = Path(__file__).with_name("web")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data: blob:",
    "media-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # the browser refuses innerHTML, wherever it is written
    "trusted-types 'none'",
)
# of every reply, whatever answers it: a browser may be led to open any address of the server
SECURITY_HEADERS = {
    "content-security-policy": "; ".join(POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class PageFile:
    """path: of the address, `/` or `/page/…`. etag: with its quotes."""

    path: str
    media_type: str
    content: bytes
    etag: str


def read_page() -> list[PageFile]:
    """Every file of the page. A file of an unknown kind is an error: it would not be served."""
    found = []
    for file in sorted(path for path in WEB.rglob("*") if path.is_file()):
        name = file.relative_to(WEB).as_posix()
        if file.suffix not in MEDIA_TYPES:
            raise ValueError(f"{name} in the page's folder is none of {', '.join(MEDIA_TYPES)}")
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        path = "/" if name == "index.html" else f"/page/{name}"
        found.append(PageFile(path, MEDIA_TYPES[file.suffix], content, etag))
    return found


def page_paths() -> frozenset[str]:
    """The addresses that need no key: the page asks for it, so it must load without one."""
    return frozenset(file.path for file in read_page())


def page_routes() -> list[Route]:
    """One route for each file; GET and HEAD."""
    from starlette.routing import Route

    return [Route(file.path, serve(file), methods=["GET"]) for file in read_page()]


def serve(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    """Answers with the file, or with 304 where the browser already has it.

    `no-cache` makes browsers ask each time, so that an updated server never meets an old script.
    """
    from starlette.responses import Response

    headers = {"etag": file.etag, "cache-control": "no-cache"}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
        if file.etag in tags or "*" in tags:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    return answer

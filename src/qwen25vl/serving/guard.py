"""The outermost layer: who may ask, from where, and how much.

Everything is decided on the raw path of the connection, before any route is looked up, so that no
route can be forgotten. Every reply, errors included, leaves with the same security headers.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen25vl.serving.connection import MAX_HEADER_BYTES
from qwen25vl.serving.dialects import is_anthropic, route_path, say_error
from qwen25vl.serving.errors import BUSY, INVALID, ApiError
from qwen25vl.serving.page import SECURITY_HEADERS, page_paths
from qwen25vl.serving.sse import to_json
from qwen25vl.serving.tenant import TENANT

if TYPE_CHECKING:
    from qwen25vl.serving.settings import ServerSettings

OPEN = ("/health", "/ping")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
BODY_SECONDS = 60.0  # for a body, and as many more as it takes at the slowest rate
SLOWEST = 16 * 1024  # bytes a second
DRAIN_BYTES = 1 << 20  # read after a refusal, so that the client reads the reply
MAX_BODIES = 8  # of the largest size, in memory at once
PAGE_HEADERS = ("authorization", "content-type", "x-api-key", "user-agent")  # of a page elsewhere
CLIENT_HEADER = re.compile(r"(?:x-stainless|anthropic|openai)-[a-z0-9-]{1,64}")  # of SDKs in a page
EXPOSED_HEADERS = "x-request-id, request-id, retry-after, x-should-retry"
log = logging.getLogger("qwen25vl.serving.requests")


class Guard:
    """An ASGI application around the routes."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings
        self.open = {*OPEN, *(page_paths() if settings.has_page else ())}
        self.digests = [sha256(key.encode()).digest() for key in settings.api_keys]
        self.held = Held(MAX_BODIES * settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        reply = Reply(send, scope, headers, self.allowed_origin(headers))
        try:
            self.check(scope, headers)
            if scope["method"] == "OPTIONS" and reply.origin is not None:
                await reply.preflight(headers.get(b"access-control-request-headers", b""))
                return
            body = LimitedBody(receive, self.settings.max_body_bytes, self.held)
            body.check_length(headers.get(b"content-length"))
            try:
                await self.app(scope, body, reply)
            finally:
                self.held.num_bytes -= body.num_bytes
        except ApiError as error:
            await drain(receive, headers)
            await reply.refuse(error)

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise ApiError for a request that no route may see."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > MAX_HEADER_BYTES:
            raise ApiError(431, f"The headers have {size} bytes; {MAX_HEADER_BYTES} are allowed.")
        if sum(name.lower() == b"host" for name, _ in scope["headers"]) > 1:
            raise ApiError(400, "The request names several hosts.", code="bad_host")
        self.check_host(headers)
        origin = headers.get(b"origin")
        is_foreign = origin is not None and not self.is_known_origin(origin, headers)
        if is_foreign and scope["method"] not in SAFE_METHODS:
            raise ApiError(403, "Requests of other web pages are not allowed.", code="bad_origin")
        is_preflight = scope["method"] == "OPTIONS" and not is_foreign
        if route_path(scope) in self.open or is_preflight:
            return
        self.check_key(headers)

    def check_host(self, headers: dict[bytes, bytes]) -> None:
        """On a loopback address only its own names are served: a page elsewhere may have made its
        name lead here."""
        allowed = self.settings.allowed_hosts
        if not allowed and self.settings.host not in LOOPBACK:
            return
        name = host_name(headers.get(b"host", b""))
        if name not in (*LOOPBACK, *allowed, self.settings.host, ""):
            raise ApiError(403, "This host name is not served here.", code="bad_host")

    def is_known_origin(self, origin: bytes, headers: dict[bytes, bytes]) -> bool:
        text = origin.decode("latin-1")
        if text in self.settings.allowed_origins:
            return True
        try:
            named = urlsplit(text).netloc.lower()
        except ValueError:  # no address at all
            return False
        return named != "" and named == headers.get(b"host", b"").decode("latin-1").lower()

    def allowed_origin(self, headers: dict[bytes, bytes]) -> str | None:
        """The origin of a page elsewhere that was allowed at the start."""
        text = headers.get(b"origin", b"").decode("latin-1")
        return text if text in self.settings.allowed_origins else None

    def check_key(self, headers: dict[bytes, bytes]) -> None:
        """Compares digests, in the same time whatever is given; sets whose request this is."""
        if not self.digests:
            return
        digest = sha256(given_key(headers)).digest()
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if any(matches):
            TENANT.set(digest.hex() if len(self.digests) > 1 else "")
        else:
            raise ApiError(
                401,
                "Incorrect API key provided. Send it as `Authorization: Bearer KEY`.",
                kind=INVALID,
                code="invalid_api_key",
            )


def given_key(headers: dict[bytes, bytes]) -> bytes:
    """The key that a request came with; names of headers are in lower case."""
    scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    return bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")


class Reply:
    """`send` with the headers that every reply has, and a line in the log at its end."""

    def __init__(
        self, send: Send, scope: Scope, headers: dict[bytes, bytes], origin: str | None
    ) -> None:
        self.send, self.scope, self.origin = send, scope, origin
        self.start = time.monotonic()
        self.status = 0
        self.id = scope["request_id"] = f"req_{token_hex(12)}"
        self.closes = headers.get(b"connection", b"").lower() == b"close"

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {**SECURITY_HEADERS, "x-request-id": self.id}
            if is_anthropic(route_path(self.scope)):
                own["request-id"] = self.id
            if self.origin is not None:
                own |= {"access-control-allow-origin": self.origin, "vary": "Origin"}
                own["access-control-expose-headers"] = EXPOSED_HEADERS
            if self.closes:
                own["connection"] = "close"
            given = {name.lower() for name, _ in message.get("headers", [])}
            added = [(k.encode(), v.encode()) for k, v in own.items() if k.encode() not in given]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await self.send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            seconds = time.monotonic() - self.start
            method, status = self.scope["method"], self.status
            log.info("%s %s %d %.3f s", method, self.route, status, seconds)

    @property
    def route(self) -> str:
        """The path without what a client may have put into it."""
        path: str = self.scope["path"]
        for value in self.scope.get("path_params", {}).values():
            path = path.replace(str(value), "*")
        return "".join(c if c.isalnum() or c in "/_-.*" else "?" for c in path[:100])

    async def refuse(self, error: ApiError) -> None:
        if self.status:  # too late to say it
            return
        status, value = say_error(self.scope, error)
        body = to_json(value)
        headers = {**error.headers(), "content-type": "application/json"}
        headers["content-length"] = str(len(body))
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": status, "headers": raw})
        await self({"type": "http.response.body", "body": body})

    async def preflight(self, asked: bytes) -> None:
        """asked: the headers that a page wants to send."""
        names = [name.strip().lower() for name in asked.decode("latin-1").split(",")]
        of_clients = [name for name in names if CLIENT_HEADER.fullmatch(name)]
        allowed = {
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": ", ".join(dict.fromkeys([*PAGE_HEADERS, *of_clients])),
            "access-control-max-age": "600",
            "content-length": "0",
        }
        raw = [(name.encode(), value.encode()) for name, value in allowed.items()]
        await self({"type": "http.response.start", "status": 204, "headers": raw})
        await self({"type": "http.response.body", "body": b""})


@dataclass
class Held:
    """The bodies of all requests that are not answered yet. A body is counted as it comes, until
    its request is over."""

    max_bytes: int
    num_bytes: int = 0


class LimitedBody:
    """`receive` that refuses a body that is too large or too slow, or for which the bodies of
    others leave no room."""

    def __init__(self, receive: Receive, max_bytes: int, held: Held) -> None:
        self.receive, self.max_bytes, self.held = receive, max_bytes, held
        self.num_bytes = 0
        self.is_whole = False
        self.start: float | None = None
        self.clock: Callable[[], float] = time.monotonic

    def check_length(self, length: bytes | None) -> None:
        if length is not None and length.isdigit() and int(length) > self.max_bytes:
            raise self.too_large(int(length))

    def too_large(self, size: int) -> ApiError:
        message = f"The body has {size} bytes or more; {self.max_bytes} are allowed."
        return ApiError(413, message, code="request_too_large")

    async def __call__(self) -> Message:
        if self.is_whole:
            return await self.receive()
        self.start = self.start or self.clock()
        left = self.start + BODY_SECONDS + self.num_bytes / SLOWEST - self.clock()
        try:
            async with asyncio.timeout(max(0.0, left)):  # NOTE wait_for may lose a cancellation
                message = await self.receive()
        except TimeoutError:
            raise ApiError(408, "The body came too slowly.", code="body_timeout") from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.num_bytes += size
            self.held.num_bytes += size
            self.is_whole = not message.get("more_body", False)
            if self.num_bytes > self.max_bytes:
                raise self.too_large(self.num_bytes)
            if self.held.num_bytes > self.held.max_bytes:
                text = "The bodies of other requests take all the memory there is for them."
                raise ApiError(429, text, kind=BUSY, code="queue_full", retry_after=1)
        return message


async def drain(receive: Receive, headers: dict[bytes, bytes]) -> None:
    """Read a little of a body that was refused, for half a second: a client that still writes does
    not read."""
    if b"content-length" not in headers and b"transfer-encoding" not in headers:
        return
    if b"expect" in headers:  # it has not begun to write, and reads first
        return
    size = 0
    try:
        async with asyncio.timeout(0.5):
            while size < DRAIN_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


def host_name(value: bytes) -> str:
    """The name in a Host header, without its port."""
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        name, _, port = text.partition("]")
        return f"{name}]" if not port or port.startswith(":") else text
    return text.partition(":")[0].rstrip(".")

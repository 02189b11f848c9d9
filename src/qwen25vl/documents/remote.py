"""Servers that speak OpenAI's HTTP API: this package's own, or others.

Each request goes to the server with the fewest under way. A server that is busy is obeyed: its
Retry-After is waited for, and the input is not blamed. One that cannot be reached is left alone for
a while; when none has answered for `PATIENCE` seconds, the job ends.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qwen25vl.documents.backends import BackendGoneError, measure_pages
from qwen25vl.documents.contents import extract_page, read_content
from qwen25vl.documents.failures import Failure, InputError, of_reply
from qwen25vl.documents.files import KeptFiles
from qwen25vl.documents.items import Attachment, Item, attachments_in, fill
from qwen25vl.errors import DependencyError, UsageError

if TYPE_CHECKING:
    import httpx

    from qwen25vl.serving.media.pool import WorkerPool

KEY_VARIABLE = "QWEN25VL_API_KEY"
PATIENCE = 120.0  # seconds
READ_SECONDS = 3600.0  # for one answer, where the job has no deadline
REST_SECONDS = (1.0, 30.0)  # a server that cannot be reached is left alone: at first, at most
BUSY_SECONDS = (1.0, 60.0)  # without a Retry-After
WORKER_BYTES = 2**30
SPLIT_BYTES = 32 * 2**20  # of a larger document, only the page in question is sent
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class Server:
    """num_open: requests under way. rests_until: on the clock of time.monotonic."""

    url: str
    client: httpx.AsyncClient
    num_open: int = 0
    rests_until: float = 0.0
    num_failures: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def rest(self) -> None:
        """It could not be reached."""
        self.num_failures += 1
        seconds = min(REST_SECONDS[0] * 2 ** (self.num_failures - 1), REST_SECONDS[1])
        self.rests_until = time.monotonic() + seconds


class RemoteBackend:
    def __init__(self, urls: list[str], *, patience: float = PATIENCE) -> None:
        try:
            import httpx
        except ImportError:
            raise DependencyError("--server needs httpx: pip install httpx") from None
        self.servers = [Server(url, open_client(url, httpx)) for url in map(check_url, urls)]
        self.max_in_flight = 16 * len(self.servers)
        self.max_pixels, self.bytes_per_pixel = 0, 0.0
        self.keeps_pages = True  # which the servers decide
        self.patience = patience
        self.heard = time.monotonic()
        self.files = KeptFiles()
        self.pool: WorkerPool | None = None

    async def start(self) -> None:
        self.heard = time.monotonic()

    async def close(self) -> None:
        for server in self.servers:
            await server.client.aclose()
        if self.pool is not None:
            await self.pool.close()

    async def measure(self, data: bytes, name: str) -> list[tuple[float, float]]:
        if self.pool is None:
            from qwen25vl.serving.media.pool import WorkerPool  # which needs torch

            self.pool = WorkerPool(1, WORKER_BYTES)
            await self.pool.start()
        return await measure_pages(self.pool, data, name)

    async def ask(self, item: Item) -> Mapping[str, Any]:
        contents = await self.read_contents(item)
        body = fill(item.body, lambda attachment: part_of(attachment, contents))
        number = 0
        while True:
            number += 1
            server = await self.choose()
            server.num_open += 1
            try:
                response = await self.post(server, body, item)
            finally:
                server.num_open -= 1
            if response is None:
                continue
            if response.status_code == 200:
                return self.read(response, item)
            if response.status_code in (429, 503) and should_retry(response):
                await asyncio.sleep(busy_seconds(response, number))
                continue
            raise InputError(refusal(response, item.name))

    async def read_contents(self, item: Item) -> dict[int, tuple[bytes, str | None]]:
        """What to send of each attachment, and which pages of that are meant."""
        contents = {}
        for attachment in attachments_in(item.body):
            data = await read_content(attachment, self.files, item.name)
            pages = attachment.pages
            if pages is not None and pages.isdigit() and len(data) > SPLIT_BYTES:
                data = await asyncio.to_thread(extract_page, data, int(pages), item.name)
                pages = "1"
            contents[id(attachment)] = data, pages
        return contents

    async def choose(self) -> Server:
        """The server with the fewest requests among those that do not rest."""
        while True:
            now = time.monotonic()
            awake = [server for server in self.servers if server.rests_until <= now]
            if awake:
                return min(awake, key=lambda server: server.num_open)
            if now - self.heard > self.patience:
                names = ", ".join(server.url for server in self.servers)
                raise BackendGoneError(f"no server answers: {names}")
            await asyncio.sleep(min(server.rests_until for server in self.servers) - now)

    async def post(
        self, server: Server, body: Mapping[str, Any], item: Item
    ) -> httpx.Response | None:
        """What the server says; None where it cannot be reached, which is not the input's fault."""
        import httpx

        try:
            response = await server.client.post("/v1/chat/completions", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            server.rest()
            return None
        except httpx.TimeoutException:
            message = f"{item.name}: the server has not answered in time"
            raise InputError(Failure("deadline", message)) from None
        except httpx.HTTPError as error:
            message = f"{item.name}: the connection broke off: {error or type(error).__name__}"
            raise InputError(Failure("server", message)) from None
        self.heard, server.num_failures = time.monotonic(), 0
        return response

    def read(self, response: httpx.Response, item: Item) -> Mapping[str, Any]:
        try:
            whole: dict[str, Any] = response.json()
            whole["choices"][0]["message"]["role"]
        except (ValueError, KeyError, TypeError, IndexError):
            message = f"{item.name}: the server's answer is no chat completion"
            raise InputError(Failure("server", message)) from None
        return whole


def check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"the server {url!r} is no address; expected http://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1")


def open_client(url: str, httpx: Any) -> Any:
    """Proxies of the environment are for other machines."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(READ_SECONDS, connect=10.0, pool=None)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    is_near = urlsplit(url).hostname in LOOPBACK
    return httpx.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=not is_near
    )


def find_model(url: str) -> str:
    """The first model that a server has."""
    try:
        import httpx
    except ImportError:
        raise DependencyError("--server needs httpx: pip install httpx") from None
    key = os.environ.get(KEY_VARIABLE)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    is_near = urlsplit(url).hostname in LOOPBACK
    try:
        with httpx.Client(headers=headers, timeout=30, trust_env=not is_near) as client:
            response = client.get(check_url(url) + "/v1/models")
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BackendGoneError(f"{url} does not say which models it has: {error}") from None


def part_of(
    attachment: Attachment, contents: Mapping[int, tuple[bytes, str | None]]
) -> dict[str, Any]:
    """A part of a message that holds the file itself."""
    data, pages = contents[id(attachment)]
    media_type = attachment.media_type if attachment.frame is None else "image/png"
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    if attachment.kind != "file":
        return {"type": f"{attachment.kind}_url", f"{attachment.kind}_url": {"url": url}}
    file: dict[str, Any] = {"filename": attachment.name, "file_data": url}
    if pages is not None:
        file["pages"] = pages
    return {"type": "file", "file": file}


def should_retry(response: httpx.Response) -> bool:
    return bool(response.headers.get("x-should-retry", "true").lower() != "false")


def busy_seconds(response: httpx.Response, number: int) -> float:
    """What the server asks for, in seconds or as a date; else longer each time."""
    stated = response.headers.get("retry-after", "")
    try:
        seconds = float(stated)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(stated).timestamp() - time.time()
        except (ValueError, TypeError):
            seconds = min(BUSY_SECONDS[0] * 2 ** (number - 1), BUSY_SECONDS[1])
    return min(max(seconds, 0.1), 600.0)


def refusal(response: httpx.Response, name: str) -> Failure:
    """The error of an answer other than 200, in whatever shape it comes."""
    try:
        content = response.json()
        error = content.get("error", content)
        if isinstance(error, str):
            error = {"message": error}
        message = str(error.get("message") or error.get("detail") or content)
        code = error.get("code")
    except (ValueError, AttributeError):
        message, code = response.text, None
    code = code if isinstance(code, str) else None
    return of_reply(response.status_code, code, " ".join(message.split())[:400], name)

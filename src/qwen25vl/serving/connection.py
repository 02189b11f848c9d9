"""One connection: uvicorn's protocol, with bounds on what a client may hold and for how long.

uvicorn itself waits for ever for the rest of the headers and for a client that does not read what
it asked for, keeps headers of any size, and forgets the request before the last one of a pipeline
when the client leaves. The deadline of a body is the guard's: it depends on the route.
"""

from __future__ import annotations

import asyncio
import socket
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from qwen25vl.serving.errors import BUSY, ApiError
from qwen25vl.serving.page import SECURITY_HEADERS
from qwen25vl.serving.sse import to_json

if TYPE_CHECKING:
    from asyncio.events import TimerHandle

    from uvicorn._types import (
        ASGI3Application,
        ASGIReceiveCallable,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )

MAX_HEADER_BYTES = 16 * 1024  # of the first line and the headers; of trailers as well
HEADER_SECONDS = 10.0  # for the headers of a request, from their first byte on
WRITE_SECONDS = 60.0  # in which a client must have read something
MIN_READ_BYTES = 64 * 1024  # of what is sent, at least so much in that time
LINGER_SECONDS = 2.0  # for reading what a client still sends after the reply
MAX_PIPELINED = 16  # requests of one connection that wait for the one before them


class Connection(HttpToolsProtocol):
    """num_unparsed: bytes since the parser last had something whole. running: the request that is
    being answered; `cycle` is the latest one, which may wait behind it. is_again: whether the
    parser reads a head that was read before."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.access_log = False  # its lines have whole addresses; the guard writes its own
        self.max_connections, self.limit_concurrency = self.limit_concurrency, None
        self.running: RequestResponseCycle | None = None
        self.num_unparsed = self.num_left = 0
        self.has_begun = self.has_headers = self.is_again = self.is_refused = False
        self.header_timer: TimerHandle | None = None
        self.write_timer: TimerHandle | None = None
        self.linger_timer: TimerHandle | None = None

    # Of the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that every unread byte starts the clock
        watch_peer(transport.get_extra_info("socket"))
        if self.max_connections is not None and len(self.connections) > self.max_connections:
            self.connections.discard(self)
            message = f"The server has {self.max_connections} connections, as many as it allows."
            self.refuse(ApiError(503, message, kind=BUSY, code="too_many_connections",
                                 retry_after=1))  # fmt: skip
            return
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self.miss_headers)

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            return
        if self.is_idle and self.header_timer is None:
            self.header_timer = self.loop.call_later(HEADER_SECONDS, self.miss_headers)
        self.num_unparsed += len(data)
        self._unset_keepalive_if_required()
        try:
            self.feed(data)
        except httptools.HttpParserError:
            self.refuse(ApiError(400, "This is not a valid HTTP request.", code="invalid_http"))
        if self.num_unparsed > MAX_HEADER_BYTES and not self.transport.is_closing():
            shown = f"more than the {MAX_HEADER_BYTES} bytes that are allowed"
            self.refuse(ApiError(431, f"The headers of this request have {shown}."))

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.header_timer, self.write_timer, self.linger_timer):
            if timer is not None:
                timer.cancel()
        self.pipeline.clear()
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.num_left = self.transport.get_write_buffer_size()
        self.write_timer = self.loop.call_later(WRITE_SECONDS, self.miss_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.write_timer is not None:
            self.write_timer.cancel()
            self.write_timer = None

    # Of the parser.

    def feed(self, data: bytes) -> None:
        """Parse. Where a request offers another protocol, as Java's client always does, the parser
        gives up its body; a second one then goes on as if nothing had been offered."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            framing = (b"content-length", b"transfer-encoding")
            lines = [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] in framing]
            self.parser = httptools.HttpRequestParser(self)
            self.is_again = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n")
            self.feed(data[offer.args[0] :])

    def on_message_begin(self) -> None:
        if self.is_again:
            return
        super().on_message_begin()
        self.has_begun, self.has_headers = True, False

    def on_url(self, url: bytes) -> None:
        if not self.is_again:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_headers:  # what comes after a body is of no use here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.is_again:
            self.is_again = False
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once")  # the parser ends with it
        self.has_headers, self.num_unparsed = True, 0
        self.stop_header_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.num_unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.has_begun, self.num_unparsed = False, 0
        super().on_message_complete()
        if self.linger_timer is not None:  # the reply was there before the end of the body
            self.linger_timer.cancel()
            self.linger_timer = None
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # Of a request.

    @property
    def is_idle(self) -> bool:
        """Whether no request is being read or answered, except perhaps for its headers."""
        is_answered = self.running is None or self.running.response_complete
        return is_answered and not (self.has_begun and self.has_headers)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        is_old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, unchunked(cycle, app) if is_old else app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.has_begun and self.has_headers and self.cycle is self.running:
            self.linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def stop_header_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def miss_headers(self) -> None:
        self.header_timer = None
        if self.has_begun:
            self.refuse(ApiError(408, "The headers came too slowly.", code="header_timeout"))
        else:
            self.transport.abort()

    def miss_reader(self) -> None:
        """Go on waiting for a client that reads slowly, not for one that does not read."""
        left = self.transport.get_write_buffer_size()
        if left > self.num_left - MIN_READ_BYTES:
            self.transport.abort()
            return
        self.num_left = left
        self.write_timer = self.loop.call_later(WRITE_SECONDS, self.miss_reader)

    def refuse(self, error: ApiError) -> None:
        """Answer outside of any request, and close as soon as the client has read it. In the middle
        of another reply nothing can be said."""
        self.is_refused = True
        self.stop_header_timer()
        if self.running is not None and not self.running.response_complete:
            if self.running.response_started or self.running is not self.cycle:
                self.transport.abort()
                return
            self.running.disconnected = True
            self.running.message_event.set()
        body = to_json(error.body())
        headers = {**SECURITY_HEADERS, **error.headers(), "x-request-id": f"req_{token_hex(12)}"}
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
        headers["connection"] = "close"
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)


def unchunked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """An application for a client of HTTP/1.0: a stream ends with its connection, for chunks are
    unknown to it."""

    async def call(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_plainly(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", [])}
                cycle.chunked_encoding = None if b"content-length" in names else False
            elif message["type"] == "http.response.body" and cycle.chunked_encoding is False:
                size = len(message.get("body", b""))
                cycle.expected_content_length = max(cycle.expected_content_length, size)
            await send(message)

        await app(scope, receive, send_plainly)

    return call


def watch_peer(connected: socket.socket | None) -> None:
    """Let the system find out about clients that vanished without closing: those that take nothing
    of what is sent, and those to which nothing is sent."""
    if connected is None or connected.family == getattr(socket, "AF_UNIX", None):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    options["TCP_USER_TIMEOUT"] = 60_000
    for name, value in options.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

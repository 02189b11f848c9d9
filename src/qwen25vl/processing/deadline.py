"""HTTP with a limit on the whole download.

The timeout of a socket holds for each read alone: a server that sends a byte now and then keeps its
client for ever. Here a timer shuts the connection down when the time is up, whatever is being read
then, the header or the content.
"""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any


class Deadline:
    """A context in which all connections that were opened through `opener` end after so many
    seconds. Afterwards `is_past` tells whether they were ended."""

    def __init__(self, seconds: float) -> None:
        self.is_past = False
        self.sockets: list[socket.socket] = []
        self.lock = threading.Lock()
        self.timer = threading.Timer(seconds, self.end)
        self.timer.daemon = True

    def __enter__(self) -> Deadline:
        self.timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.timer.cancel()
        self.timer.join()  # none is left behind, and nothing ends a connection from here on

    def watch(self, connected: socket.socket) -> None:
        with self.lock:
            self.sockets.append(connected)
        if self.is_past:
            shut_down(connected)

    def end(self) -> None:
        with self.lock:
            self.is_past = True
            for connected in self.sockets:
                shut_down(connected)

    def opener(self) -> urllib.request.OpenerDirector:
        return urllib.request.build_opener(PlainHandler(self), SecureHandler(self))


def shut_down(connected: socket.socket) -> None:
    """Wake up whoever reads from it; NOTE closing it would not."""
    with suppress(OSError):  # the other side, or the reader, was faster
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


class PlainConnection(http.client.HTTPConnection):
    def __init__(self, deadline: Deadline, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self.deadline = deadline

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)


class SecureConnection(http.client.HTTPSConnection):
    def __init__(self, deadline: Deadline, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self.deadline = deadline

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)


class PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(PlainConnection, self.deadline), req)


class SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(SecureConnection, self.deadline), req)

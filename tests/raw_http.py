"""Requests byte by byte, as no well-behaved client sends them."""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


def connect(url: str, seconds: float = 10) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=seconds)


def request(path: str, body: bytes = b"", method: str = "", version: str = "1.1", **headers: str):
    """The bytes of a request; `headers` with _ for -."""
    method = method or ("POST" if body else "GET")
    lines = [f"{method} {path} HTTP/{version}"]
    given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body and "transfer-encoding" not in given:
        given.setdefault("content-length", str(len(body)))
    lines += [f"{name}: {value}" for name, value in given.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def read_all(connected: socket.socket, seconds: float = 10) -> bytes:
    """What comes until the server closes."""
    until = time.monotonic() + seconds
    parts = []
    while True:
        connected.settimeout(max(0.01, until - time.monotonic()))
        part = connected.recv(65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def read_reply(connected: socket.socket, method: str = "GET") -> Reply:
    """One reply with a Content-Length or in chunks."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        part = connected.recv(65536)
        if not part:
            raise ConnectionError(f"closed after {raw!r:.100}")
        raw += part
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    headers = {name.lower(): value for name, _, value in pairs}
    status = int(first.split()[1])
    if headers.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connected.recv(65536)
    length = 0 if method == "HEAD" or status == 204 else int(headers.get("content-length", 0))
    while len(body) < length:
        body += connected.recv(65536)
    return Reply(status, headers, body)


def ask(url: str, data: bytes, method: str = "GET") -> Reply:
    with connect(url) as connected:
        connected.sendall(data)
        return read_reply(connected, method)

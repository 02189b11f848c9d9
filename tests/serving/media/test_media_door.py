"""Addresses in requests: nothing is dialled but public addresses of hosts on the list."""

from __future__ import annotations

import ast
import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from media_audit import watching
from media_files import asked, picture, refusal, unstarted

import qwen25vl
from qwen25vl.serving.media.door import Door, DoorError, is_public
from qwen25vl.serving.settings import MediaLimits

GOOD, PUBLIC = "media.example", "93.184.215.14"
LISTED = (GOOD, "other.example:8443", "private.example", "mixed.example", "192.168.0.1")
NAMES = {
    GOOD: [PUBLIC],
    "other.example": [PUBLIC],
    "private.example": ["10.0.0.7"],
    "mixed.example": [PUBLIC, "127.0.0.1"],
    "localhost": ["127.0.0.1"],
}
PNG = picture("PNG")
HOSTILE = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.0.0.1:80/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost.localdomain/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[2002:7f00:1::]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fc00::1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://metadata.google.internal/",
    "http://100.64.0.1/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://private.example/",
    "https://private.example/",
    "http://mixed.example/",
    f"http://{GOOD}@127.0.0.1/",
    f"http://{GOOD}:80@127.0.0.1/",
    f"http://user:pass@{GOOD}/",
    f"http://127.0.0.1\\@{GOOD}/",
    f"http://{GOOD}\\@127.0.0.1/",
    f"http://127.0.0.1#@{GOOD}/",
    f"http://127.0.0.1?@{GOOD}/",
    f"http://127.0.0.1/{GOOD}",
    f"http://{GOOD}.evil.example/",
    f"http://evil-{GOOD}/",
    f"http://evil.{GOOD}/",
    f"http://{GOOD}./",
    f"http://{GOOD}%00.evil.example/",
    f"http://{GOOD}%2eevil.example/",
    "http://%6d%65dia.example/",
    f"http://{GOOD}\x00/",
    f"http://{GOOD}\r\nHost: evil.example/",
    f"http://{GOOD} /",
    f"http:// {GOOD}/",
    f"http://{GOOD}\t/",
    "http://mеdia.example/",  # a Cyrillic e
    "http://ｍedia.example/",
    "http://media。example/",
    "http://①②⑦.⓪.⓪.①/",
    f"http://{GOOD}:22/",
    f"http://{GOOD}:8080/",
    f"https://{GOOD}:80/",
    f"http://{GOOD}:99999/",
    f"http://{GOOD}:+80/",
    f"http://{GOOD}:80:80/",
    "http://other.example/",
    "http://other.example:8080/",
    f"http:/{GOOD}/",
    f"http:///{GOOD}/",
    f"http:{GOOD}/",
    f"//{GOOD}/",
    f"https//{GOOD}/",
    f"ftp://{GOOD}/",
    f"gopher://{GOOD}/",
    f"http+unix://{GOOD}/",
    f"http://{GOOD}/" + "a" * 9000,
    "http://",
    "http://.",
    "http://-media.example/",
    "http://media..example/",
]


class Writer:
    """A connection that takes everything."""

    def __init__(self) -> None:
        self.sent = b""
        self.transport = self

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        pass


class Network:
    """Names as they are in NAMES, and answers of the good host; any other address is dialled in
    earnest, which the test would see."""

    def __init__(self, answers: Callable[[bytes], bytes]) -> None:
        self.answers = answers
        self.dialled: list[tuple[str, int]] = []
        self.resolved: list[str] = []
        self.names = dict(NAMES)

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        return self.names.get(host, ["127.0.0.1"])

    async def connect(self, host: str, port: int, **secure: Any) -> Any:
        self.dialled.append((host, port))
        if host != PUBLIC:
            return await asyncio.open_connection(host, port)
        reader, writer = asyncio.StreamReader(), Writer()
        original = writer.write

        def write(data: bytes) -> None:
            original(data)
            reader.feed_data(self.answers(data))
            reader.feed_eof()

        writer.write = write  # type: ignore[method-assign]
        return reader, writer

    def door(self, seconds: float = 5.0) -> Door:
        return Door(LISTED, seconds, resolve=self.resolve, connect=self.connect)


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    location = location.replace("\r\n", "%0D%0A")
    head = f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    return head.encode("utf-8", "surrogateescape")


def fetch(door: Door, url: str, max_bytes: int = 1 << 20) -> bytes | str:
    """What is fetched, or why nothing is."""

    async def work() -> bytes | str:
        try:
            return await door.fetch(url, max_bytes)
        except DoorError as error:
            return error.fault

    return asyncio.run(work())


@pytest.mark.parametrize("url", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("way", ["direct", "301", "302", "303", "307", "308", "third"])
def test_no_way_in(url: str, way: str) -> None:
    """CVE-2025-6242, CVE-2026-24779, CVE-2026-33626: a spelling that the check read in one way and
    the client in another; a redirect that nobody checked."""
    hops = 2 if way == "third" else 0

    def answer(request: bytes) -> bytes:
        number = int(request.split(b" ")[1].rsplit(b"/", 1)[-1] or 0)
        if number < hops:
            return redirect(f"http://{GOOD}/{number + 1}")
        return redirect(url, int(way) if way.isdigit() else 302)

    network = Network(answer)
    with watching() as notes:
        result = fetch(network.door(), url if way == "direct" else f"http://{GOOD}/0")
    assert result in ("url", "download")
    assert not [note for note in notes if note[0] == "socket.connect"]
    assert {host for host, _ in network.dialled} <= {PUBLIC}
    assert len(network.dialled) == (0 if way == "direct" else hops + 1)


def test_a_name_that_changes_its_address() -> None:
    """DNS rebinding: public while it is checked, private when it is dialled."""
    network = Network(lambda request: redirect("/next"))
    answers = [[PUBLIC], ["127.0.0.1"]]

    async def resolve(host: str, port: int) -> list[str]:
        network.resolved.append(host)
        return answers.pop(0)

    with watching() as notes:
        door = Door([GOOD], 5, resolve=resolve, connect=network.connect)
        assert fetch(door, f"http://{GOOD}/") == "url"
    assert network.dialled == [(PUBLIC, 80)]
    assert network.resolved == [GOOD, GOOD]
    assert not [note for note in notes if note[0] == "socket.connect"]


def test_the_real_resolver_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection library resolved the name a second time."""
    asked_for: list[Any] = []

    def answer(host: Any, port: Any, *rest: Any, **named: Any) -> list[Any]:
        asked_for.append(host)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1" if len(asked_for) > 1 else PUBLIC, port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    dialled: list[Any] = []

    async def connect(host: str, port: int, **secure: Any) -> Any:
        dialled.append(host)
        raise ConnectionRefusedError

    door = Door([GOOD], 5, connect=connect)
    assert fetch(door, f"http://{GOOD}/") == "download"
    assert (asked_for, dialled) == ([GOOD], [PUBLIC])


@pytest.mark.parametrize(
    ("url", "port", "host"),
    [
        (f"http://{GOOD}/a%20b?c=d#e", 80, GOOD),
        (f"HTTP://{GOOD.upper()}", 80, GOOD),
        (f"http://{GOOD}:80/a b?ä", 80, GOOD),
        ("https://other.example:8443/a", 8443, "other.example:8443"),
        (f"http://{GOOD}?x", 80, GOOD),
    ],
)
def test_what_is_allowed(url: str, port: int, host: str) -> None:
    requests: list[bytes] = []

    def answer(request: bytes) -> bytes:
        requests.append(request)
        return ok(PNG)

    network = Network(answer)
    if url.startswith("https"):
        plain = network.connect

        async def connect(number: str, at: int, **secure: Any) -> Any:
            assert secure["server_hostname"] == "other.example"
            assert secure["ssl"].check_hostname
            return await plain(number, at)

        network.connect = connect  # type: ignore[method-assign]
    assert fetch(network.door(), url) == PNG
    assert network.dialled == [(PUBLIC, port)]
    head = requests[0].decode().lower()
    assert f"host: {host}\r\n" in head
    assert not {"cookie", "authorization", "referer"} & {
        line.split(":")[0] for line in head.split()
    }


def test_redirects() -> None:
    """Three are followed; to the other protocol only upwards."""

    def chain(length: int) -> Network:
        def answer(request: bytes) -> bytes:
            number = int(request.split(b" ")[1][1:])
            return redirect(f"/{number + 1}") if number < length else ok(PNG)

        return Network(answer)

    assert fetch(chain(3).door(), f"http://{GOOD}/0") == PNG
    assert fetch(chain(4).door(), f"http://{GOOD}/0") == "download"
    upwards = Network(lambda r: ok(PNG) if b"/end" in r else redirect(f"https://{GOOD}/end"))
    assert fetch(upwards.door(), f"http://{GOOD}/") == PNG
    downwards = Network(lambda r: redirect("http://other.example:8443/"))
    assert fetch(downwards.door(), "https://other.example:8443/") == "url"
    elsewhere = Network(lambda r: redirect("https://other.example:8443/"))
    assert fetch(elsewhere.door(), f"https://{GOOD}/") == "url"


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "download"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", "bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "download"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 5000, "bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"a" * 4096,
         "bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "download"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "download"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "download"),
        (b"SSH-2.0-OpenSSH\r\n", "download"),
        (b"", "download"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "download"),
    ],
)  # fmt: skip
def test_bad_answers(answer: bytes, fault: str) -> None:
    assert fetch(Network(lambda request: answer).door(), f"http://{GOOD}/", 2048) == fault


async def serve(respond: Callable[[asyncio.StreamWriter], Awaitable[None]], max_bytes: int) -> Any:
    """Fetch from a server on this machine, to which the public address is led for this test."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            await respond(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def connect(host: str, at: int, **secure: Any) -> Any:
        assert (host, at) == (PUBLIC, 80)
        return await asyncio.open_connection("127.0.0.1", port)

    network = Network(lambda request: b"")
    door = Door([GOOD], 0.6, resolve=network.resolve, connect=connect)
    try:
        return await door.fetch(f"http://{GOOD}/", max_bytes)
    except DoorError as error:
        return error.fault
    finally:
        server.close()


def test_slow_and_endless_servers() -> None:
    """A byte now and then kept a connection for hours; an endless body filled the memory."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def drip_head(writer: asyncio.StreamWriter) -> None:
        for _ in range(100):
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.05)

    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 1 << 28:
            writer.write(b"a" * 65536)
            sent += 65536
            await writer.drain()

    async def whole(writer: asyncio.StreamWriter) -> None:
        writer.write(ok(PNG))

    start = time.monotonic()
    assert asyncio.run(serve(drip, 1 << 20)) == "download"
    assert asyncio.run(serve(drip_head, 1 << 20)) == "download"
    assert time.monotonic() - start < 10
    assert asyncio.run(serve(endless, 1 << 20)) == "bytes"
    assert sent < 1 << 26
    assert asyncio.run(serve(whole, 1 << 20)) == PNG


def test_through_the_room() -> None:
    """What is fetched is told apart by its content, and errors say nothing of the network."""
    room = unstarted(MediaLimits(allowed_domains=LISTED))
    network = Network(lambda request: ok(PNG if b"png" in request else b"<html></html>"))
    room.reader.door = network.door()

    def part(url: str) -> list[Any]:
        return asked({"type": "image_url", "image_url": {"url": url}})

    (message,) = asyncio.run(room.resolve(part(f"http://{GOOD}/a.png")))
    assert message["content"][0]["image"].contents == (PNG,)
    for url, code in (
        (f"http://{GOOD}/a.jpg", "invalid_image_format"),
        ("http://private.example/", "invalid_image_url"),
        ("http://127.0.0.1/", "invalid_image_url"),
    ):
        error = asyncio.run(refusal(room.resolve(part(url))))
        assert (error.status, error.code) == (400, code)
        assert not [word for word in ("10.0", "127.0", "example") if word in error.message]


def test_texts_are_never_searched_for_addresses() -> None:
    """CVE-2026-0599: a picture in Markdown was fetched from the text of a question."""
    text = f"![a](http://{GOOD}/a.png) <img src='http://127.0.0.1/'> data:image/png;base64,AAAA"
    with watching() as notes:
        messages = [{"role": "user", "content": text}, *asked({"type": "text", "text": text})]
        room = unstarted(MediaLimits(allowed_domains=LISTED))
        assert asyncio.run(room.resolve(messages)) == messages
    assert not [note for note in notes if note[0] == "socket.connect"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (PUBLIC, True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True), ("127.0.0.1", False),
        ("::ffff:93.184.215.14", False), ("2002:5db8:d70e::1", False),
        ("64:ff9b::5db8:d70e", False),
        ("fe80::1", False), ("fe80::1%eth0", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("ff02::1", False), ("240.0.0.1", False), ("not one", False), ("2001::1", False),
    ],
)  # fmt: skip
def test_public_addresses(number: str, expected: bool) -> None:
    assert is_public(number) is expected


def test_there_is_one_door() -> None:
    """vLLM PR 43117: a second place fetched, beside the guarded one."""
    folder = Path(qwen25vl.__file__).parent / "serving"
    forbidden = {
        "requests",
        "httpx",
        "aiohttp",
        "urllib3",
        "urllib.request",
        "http.client",
        "ftplib",
    }
    calls = {"open_connection", "create_connection", "getaddrinfo", "urlopen", "open_source",
             "load_bytes", "load_picture", "download"}  # fmt: skip
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(alias.name for alias in node.names)]
            name = node.attr if isinstance(node, ast.Attribute) else ""
            own = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
            if forbidden & set(modules) or calls & {*modules, "" if own else name}:
                found.add(path.name)
    assert found == {"door.py"}

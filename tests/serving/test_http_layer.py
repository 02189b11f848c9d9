"""What a client may do to the server below the routes: sizes, deadlines and shapes of HTTP."""

import contextlib
import json
import re
import socket
import time

import httpx
import pytest
from live_server import NAME, Live
from raw_http import ask, connect, read_all, read_reply, request

from qwen25vl.serving import connection
from qwen25vl.serving.connection import MAX_HEADER_BYTES
from qwen25vl.serving.settings import ServerSettings

QUESTION = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
CHAT = "/v1/chat/completions"
BODY = json.dumps(QUESTION).encode()
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def small(demo):
    """A server with a body of 1 MiB and 12 connections."""
    settings = ServerSettings(
        port=0, model_names=(NAME,), max_body_bytes=LIMIT, max_connections=12
    )  # fmt: skip
    server = Live(settings, demo)
    yield server
    server.close()


def is_ours(reply) -> bool:
    """Whether a reply has the shape and the headers that all errors have."""
    error = reply.error
    has_headers = {"x-request-id", "content-length", "content-security-policy"} <= set(
        reply.headers
    )
    return set(error) == {"message", "type", "param", "code"} and has_headers


@pytest.mark.parametrize("path", ["/health", CHAT])
def test_large_headers_are_431(live, path):
    """uvicorn takes headers of any size and keeps them in memory."""
    reply = ask(live.url, request(path, X=("a" * MAX_HEADER_BYTES)))
    assert (reply.status, is_ours(reply)) == (431, True)
    many = {f"x{number}": "a" for number in range(3000)}
    assert ask(live.url, request(path, **many)).status == 431
    assert ask(live.url, request(f"{path}?{'a' * MAX_HEADER_BYTES}")).status == 431
    assert ask(live.url, request("/health", X="a" * (MAX_HEADER_BYTES - 200))).status == 200


def test_headers_without_an_end_are_refused_before_they_are_whole(live):
    """A header that never ends would be kept until the memory is full."""
    with connect(live.url) as connected:
        connected.sendall(f"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: {'a' * 20000}".encode())
        assert read_reply(connected).status == 431
    with connect(live.url) as connected:
        connected.sendall(b"GET /" + b"a" * 300_000)
        assert read_reply(connected).status == 431


def test_trailers_without_an_end_are_refused(live):
    """What follows the last chunk has no length of its own."""
    with connect(live.url) as connected:
        connected.sendall(request(CHAT, b"1\r\n{\r\n0\r\n", transfer_encoding="chunked"))
        for _ in range(10):
            connected.sendall(b"x: " + b"a" * 10_000 + b"\r\n")
        assert read_reply(connected).status == 431


def test_a_large_body_is_413_at_once_and_on_every_route(small):
    """A limit that only some routes have is none; one that is checked after reading is late."""
    for route in [*small.server.config.app.app.routes, None]:
        path = re.sub(r"\{.*?\}", "x", route.path) if route else "/nowhere"
        sized = request(path, method="POST", content_length=str(LIMIT + 1), expect="100-continue")
        reply = ask(small.url, sized)
        assert reply.status == 413, path
        assert "more; 1048576 are allowed" in reply.body.decode()


@pytest.mark.parametrize("path", [CHAT, "/tokenize", "/v1/messages", "/api/chat", "/page/pdf"])
def test_a_body_without_a_length_is_413_while_it_is_read(small, path):
    """Chunked bodies say no size; at most 2 MiB beyond the limit may be taken before the reply."""
    sent = 0
    with connect(small.url) as connected:
        connected.sendall(request(path, b"", "POST", transfer_encoding="chunked"))
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        connected.settimeout(0.001)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while sent < 64 << 20 and not has_reply(connected):
                connected.settimeout(5)
                connected.sendall(chunk)
                sent += len(chunk)
        connected.settimeout(5)
        assert read_reply(connected).status == 413
    assert sent < LIMIT + (8 << 20)  # with what the sockets of both sides hold
    assert small.ask(temperature=0).status_code == 200


def has_reply(connected) -> bool:
    connected.setblocking(False)
    try:
        return bool(connected.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connected.setblocking(True)


def test_a_refused_client_reads_the_reply_though_it_still_writes(small):
    """Closing at once shows as a connection that was reset, and the reason is lost."""
    big = json.dumps({**QUESTION, "user": "x" * (2 * LIMIT)})
    reply = httpx.post(small.url + CHAT, content=big, trust_env=False)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


def test_slow_headers_are_cut_off(demo, monkeypatch):
    """Slow-loris: many sockets, each sending a byte now and then, hold a server for ever. Others
    are answered meanwhile."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.7)
    server = Live(ServerSettings(port=0, model_names=(NAME,)), demo)
    silent = [connect(server.url) for _ in range(100)]
    dripping = [connect(server.url) for _ in range(100)]
    start = time.monotonic()
    while time.monotonic() - start < 0.6:
        for one in dripping:
            one.sendall(b"GET /health HTTP/1.1\r\nx" if time.monotonic() - start < 0.1 else b"a")
        assert server.http.get("/health").status_code == 200
        time.sleep(0.1)
    assert server.ask(temperature=0).status_code == 200
    assert all(read_all(one) == b"" for one in silent)
    assert all(b" 408 " in read_all(one) for one in dripping)
    assert time.monotonic() - start < 5
    for one in (*silent, *dripping):
        one.close()
    server.close()


def test_a_second_request_has_the_same_deadline(demo, monkeypatch):
    """uvicorn stops its clock at the first byte after an answer, and never starts it again."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    server = Live(ServerSettings(port=0, model_names=(NAME,)), demo)
    with connect(server.url) as connected:
        connected.sendall(request("/health"))
        assert read_reply(connected).status == 200
        connected.sendall(b"G")
        assert b" 408 " in read_all(connected)
    server.close()


def test_a_slow_body_is_408(demo, monkeypatch):
    from qwen25vl.serving import guard

    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    server = Live(ServerSettings(port=0, model_names=(NAME,)), demo)
    with connect(server.url) as connected:
        connected.sendall(request(CHAT, b"", "POST", content_length="1000"))
        start = time.monotonic()
        reply = read_reply(connected)
        assert (reply.status, reply.error["code"]) == (408, "body_timeout")
        assert time.monotonic() - start < 3
        assert read_all(connected) == b""  # and the connection ends
    server.close()


def test_a_client_that_does_not_read_is_cut_off(demo, monkeypatch):
    """Its reply would be kept for ever: closing a connection waits until all is sent."""
    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.3)
    server = Live(ServerSettings(port=0, model_names=(NAME,)), demo)
    connected = socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connected.settimeout(10)
    connected.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    tokenizer = server.vlm.processor.tokenizer
    longest = max(range(4000), key=lambda token: len(tokenizer.token_bytes(token)))
    text = json.dumps({"tokens": [longest] * 100_000}).encode()
    connected.sendall(request("/detokenize", text) * 6)
    deadline = time.monotonic() + 15
    while server.server.server_state.connections:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    connected.close()
    server.close()


def test_connections_are_bounded_and_the_refusal_says_so(small):
    """Each connection takes memory, and file descriptors are few."""
    small.http.close()
    wait_for_no_connections(small)
    idle = [connect(small.url) for _ in range(12)]
    time.sleep(0.1)
    with connect(small.url) as connected:
        reply = read_reply(connected)
        assert (reply.status, is_ours(reply)) == (503, True)
        assert reply.headers["retry-after"] == "1"
        assert read_all(connected) == b""
    for one in idle:
        one.close()
    wait_for_no_connections(small)
    assert ask(small.url, request("/health")).status == 200
    small.http = httpx.Client(base_url=small.url, trust_env=False)


def wait_for_no_connections(server) -> None:
    deadline = time.monotonic() + 5
    while server.server.server_state.connections:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kinds_of_bodies_and_connections(live):
    """olmOCR and datatrove write HTTP by hand: they need a length, and a connection that ends when
    they ask for it; others send chunks, HTTP/1.0, or no type."""
    plain = ask(live.url, request(CHAT, BODY))
    assert plain.status == 200
    assert int(plain.headers["content-length"]) == len(plain.body)
    expected = json.loads(plain.body)["choices"][0]["message"]["content"]
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    closing = request(CHAT, BODY, Connection="close")
    old = request(CHAT, BODY, version="1.0")
    for data in (request(CHAT, chunked, transfer_encoding="chunked"), closing, old):
        with connect(live.url) as connected:
            connected.sendall(data)
            reply = read_reply(connected)
            assert json.loads(reply.body)["choices"][0]["message"]["content"] == expected
            if data in (closing, old):
                assert reply.headers["connection"] == "close"
                assert read_all(connected) == b""
    typed = request(CHAT, BODY, content_type="text/plain")
    assert ask(live.url, typed).status == 200


def test_a_stream_for_http_1_0_has_no_chunks(live):
    """Chunks are unknown to it: their sizes would be part of the text."""
    body = json.dumps({**QUESTION, "stream": True}).encode()
    with connect(live.url) as connected:
        connected.sendall(request(CHAT, body, version="1.0"))
        head, _, text = read_all(connected).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert text.startswith(b"data: {")
    assert text.endswith(b"data: [DONE]\n\n")


def test_pipelined_requests_are_answered_in_order(live):
    with connect(live.url) as connected:
        last = request("/nowhere", Connection="close")
        connected.sendall(request(CHAT, BODY) + request("/version") + last)
        statuses = re.findall(rb"HTTP/1.1 (\d+) ", read_all(connected))
        assert statuses == [b"200", b"200", b"404"]


def test_a_pipeline_is_bounded(live):
    """One read holds thousands of small requests."""
    with connect(live.url) as connected, contextlib.suppress(ConnectionError):
        connected.sendall(request(CHAT, BODY) + request("/version") * 1000)
        assert read_all(connected).count(b"HTTP/1.1 200") < 100


def test_leaving_a_pipeline_cancels_its_first_request(live):
    """uvicorn tells only the last one, and the first goes on writing for nobody."""
    body = json.dumps({**QUESTION, "ignore_eos": True, "max_tokens": 4000}).encode()
    with connect(live.url) as connected:
        connected.sendall(request(CHAT, body) + request("/version"))
        deadline = time.monotonic() + 5
        while not live.service.runner.active:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    deadline = time.monotonic() + 3
    while live.service.num_open:
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.005)


@pytest.mark.parametrize("offered", ["h2c", "websocket", "TLS/1.0"])
def test_an_offered_upgrade_is_ignored(live, offered):
    """Java's client offers h2c with every request, bodies included, and uses the connection
    again."""
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offered}
    with connect(live.url) as connected:
        connected.sendall(request(CHAT, BODY, **upgrade))
        assert read_reply(connected).status == 200
        connected.sendall(request("/version", **upgrade))
        assert read_reply(connected).status == 200
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        connected.sendall(request(CHAT, b"", "POST", transfer_encoding="chunked", **upgrade))
        connected.sendall(chunks)
        assert read_reply(connected).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx y: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_in_our_shape(live, data):
    reply = ask(live.url, data)
    assert (reply.status, is_ours(reply)) == (400, True)


def test_every_whole_reply_has_a_length_an_id_and_no_redirect(live):
    """Raw readers need the length; a redirect is followed by few and loses the body."""
    paths = ["/", "/health", "/v1/models", "/v1/models/", CHAT, CHAT + "/", "//health", "/metrics"]
    for path in paths:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            body = b"{" if method == "POST" else b""
            reply = ask(live.url, request(path, body, method), method)
            where = f"{method} {path}: {reply}"
            assert reply.status in (200, 400, 404, 405), where
            assert "content-length" in reply.headers, where
            assert re.fullmatch(r"req_[0-9a-f]{24}", reply.headers["x-request-id"]), where
            assert "location" not in reply.headers, where
            assert reply.headers["x-content-type-options"] == "nosniff", where
            if reply.status >= 400 and method != "HEAD":
                assert is_ours(reply), where


def test_ids_of_clients_are_not_ours(live):
    """Where they are keys of anything, one client reaches another's request."""
    ids = {
        ask(live.url, request(CHAT, BODY, X_Request_Id="mine")).headers["x-request-id"]
        for _ in range(2)
    }
    assert len(ids) == 2
    assert "mine" not in ids
    bodies = [live.ask(request_id="mine", rid="mine", temperature=0).json() for _ in range(2)]
    assert bodies[0]["id"] != bodies[1]["id"]


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 100_000, '{"messages":' + "[" * 5000])
def test_deep_json_is_400(live, body):
    """A recursive parser ends the process on it."""
    reply = ask(live.url, request(CHAT, body.encode()))
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


def test_a_client_that_waits_for_leave_to_write_gets_its_refusal(small):
    """A body that was announced is not asked for when it is refused."""
    with connect(small.url) as connected:
        large = {"content_length": str(LIMIT + 1), "expect": "100-continue"}
        connected.sendall(request(CHAT, b"", "POST", **large))
        assert read_reply(connected).status == 413
    with connect(small.url) as connected:
        allowed = {"content_length": str(len(BODY)), "expect": "100-continue"}
        connected.sendall(request(CHAT, b"", "POST", **allowed))
        assert connected.recv(1000).startswith(b"HTTP/1.1 100 ")
        connected.sendall(BODY)
        assert read_reply(connected).status == 200


def test_bodies_of_all_requests_together_are_bounded(demo, monkeypatch):
    """Each may be as large as the limit, and a hundred of them would be all the memory."""
    from qwen25vl.serving import guard

    monkeypatch.setattr(guard, "MAX_BODIES", 2)
    settings = ServerSettings(port=0, model_names=(NAME,), max_body_bytes=LIMIT)
    server = Live(settings, demo)
    half = request(CHAT, b"", "POST", content_length=str(LIMIT)) + b" " * (LIMIT - 100)
    open_ones = [connect(server.url) for _ in range(2)]
    for one in open_ones:
        one.sendall(half)
    time.sleep(0.2)
    with connect(server.url) as connected:
        connected.sendall(half)
        reply = read_reply(connected)
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    for one in open_ones:
        one.close()
    deadline = time.monotonic() + 5
    while server.server.config.app.held.num_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.ask(temperature=0).status_code == 200
    server.close()

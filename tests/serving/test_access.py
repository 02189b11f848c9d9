"""Who may use the server, and what nobody may read: every route, every confusion, every log."""

import hmac
import json
import logging
import re
from pathlib import Path

import pytest
from live_server import NAME, Live, data_url, scene
from raw_http import ask, request

from qwen25vl.serving import guard
from qwen25vl.serving.page import page_paths
from qwen25vl.serving.settings import ServerSettings

CHECKOUT = str(Path(__file__).parents[2])

KEY = "sk-canary-4f1d9c"
PROMPT = "canary-prompt-8842"
CHAT = "/v1/chat/completions"
OPEN = {"/health", "/ping", *page_paths()}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE")


@pytest.fixture(scope="module")
def locked(demo):
    settings = ServerSettings(
        port=0, model_names=(NAME,), api_keys=("another", KEY),
        allowed_origins=("https://pages.example",),
    )  # fmt: skip
    server = Live(settings, demo)
    server.http.headers["authorization"] = f"Bearer {KEY}"
    yield server
    server.close()


def all_paths(server: Live) -> list[str]:
    """Those of the router itself, so that no route can be forgotten here."""
    app = server.server.config.app.app
    return [re.sub(r"\{.*?\}", "x", route.path) for route in app.routes]


def test_every_route_asks_for_the_key(locked):
    """vLLM guards by prefix; what was added later stayed open."""
    paths = all_paths(locked)
    assert CHAT in paths
    for path in [*paths, "/nowhere", "/v1/", "/docs", "/openapi.json"]:
        for method in METHODS:
            for header in ({}, {"authorization": "Bearer wrong"}, {"x_api_key": "wrong"}):
                body = b"{}" if method in ("POST", "PUT", "PATCH") else b""
                reply = ask(locked.url, request(path, body, method, **header), method)
                where = f"{method} {path} {header}: {reply}"
                assert (reply.status != 401) == (path in OPEN), where


def test_each_key_opens(locked):
    for header in (
        {"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY} "},
        {"x_api_key": KEY}, {"authorization": "Bearer another"},
    ):  # fmt: skip
        assert ask(locked.url, request("/v1/models", **header)).status == 200
    assert locked.ask(temperature=0).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models", "/health/../v1/models", "/health/..%2fv1/models", "/health%2f..%2fv1/models",
        "/health;/v1/models", "/health?/v1/models&x=/health", "/./v1/models", "/v1//models",
        "/V1/MODELS", "/v1/models?path=/health", "/v1/models#/health", "/v1%2fmodels",
        "/%76%31/models", "/v1/models/", "/v1/models%00/health", "/health%00/../v1/models",
        "/ping/../metrics", "/metrics;/ping", "/v1/models/..;/health", "\\v1\\models",
        "http://127.0.0.1/v1/models", "http://localhost/health/../v1/models",
        "http://evil.example/v1/models", "/HEALTH", "/health/", "*", "/metrics%20", "/%2e/metrics",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_goes_round_the_key(locked, target):
    """Guard and router must not read one path in two ways: nothing but an error, or /health itself,
    comes without a key."""
    reply = ask(locked.url, request(target))
    assert reply.status in (400, 401) or json.loads(reply.body) == {"status": "ok"}, reply
    host = request(target, host="127.0.0.1/health?")
    assert ask(locked.url, host).status in (400, 401, 403)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
     "evil.example#localhost", "localhost@evil.example", "[::1].evil.example", "0x7f.1",
     "2130706433", "localhost, evil.example"],
)  # fmt: skip
def test_foreign_hosts_are_refused(live, host):
    """A page elsewhere makes its own name lead to 127.0.0.1 and is then of the same origin."""
    reply = ask(live.url, request("/v1/models", host=host))
    assert (reply.status, reply.error["code"]) == (403, "bad_host")


def test_own_hosts_are_served(live):
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "localhost."):
        assert ask(live.url, request("/v1/models", host=host)).status == 200
    assert ask(live.url, b"GET /v1/models HTTP/1.0\r\n\r\n").status == 200
    twice = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nHOST: evil.example\r\n\r\n"
    assert ask(live.url, twice).status == 400


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "file://", "http:",
     "http://[", "chrome-extension://abc", "http://127.0.0.1.evil.example",
     "https://pages.example.evil.example"],
)  # fmt: skip
def test_pages_of_others_are_refused(locked, live, origin):
    """A web page may post to this machine without asking; its Origin gives it away."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
    for server in (live, locked):
        bearer = f"Bearer {KEY}"
        for path in (CHAT, "/tokenize", "/detokenize"):
            headers = {"origin": origin, "authorization": bearer, "content_type": "text/plain"}
            reply = ask(server.url, request(path, body, **headers))
            assert (reply.status, reply.error["code"]) == (403, "bad_origin")
            assert "access-control-allow-origin" not in reply.headers
        reply = ask(server.url, request("/health", origin=origin))
        assert "access-control-allow-origin" not in reply.headers
        reply = ask(server.url, request(CHAT, method="OPTIONS", origin=origin), "OPTIONS")
        assert "access-control-allow-origin" not in reply.headers


def test_the_page_itself_and_allowed_pages_are_served(live, locked):
    port = live.url.rpartition(":")[2]
    same = {"origin": live.url, "host": f"127.0.0.1:{port}"}
    body = json.dumps({"tokens": [1]}).encode()
    assert ask(live.url, request("/detokenize", body, **same)).status == 200
    origin = {"origin": "https://pages.example"}
    asked = request(CHAT, method="OPTIONS", access_control_request_method="POST", **origin)
    reply = ask(locked.url, asked, "OPTIONS")
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == "https://pages.example"
    assert "access-control-allow-credentials" not in reply.headers
    headers = {**origin, "authorization": f"Bearer {KEY}"}
    reply = ask(locked.url, request("/detokenize", body, **headers))
    assert reply.status == 200
    assert reply.headers["vary"] == "Origin"


def test_keys_are_compared_in_constant_time(locked, monkeypatch):
    """Comparing texts tells by its time how many letters are right."""
    compared = []
    monkeypatch.setattr(
        guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b
    )
    assert ask(locked.url, request("/v1/models", authorization=f"Bearer {KEY}")).status == 200
    assert len(compared) == 2  # with every key, whichever fits
    assert all(len(a) == len(b) == 32 for a, b in compared)
    assert hmac.compare_digest is guard.hmac.compare_digest


def hostile_requests(server: Live) -> list[tuple[str, object]]:
    """Requests that go wrong in every room, each with something that nobody else may see."""
    picture = data_url(scene())
    cut = picture[: len(picture) // 2]
    parts: list[object] = [
        {"type": "image_url", "image_url": {"url": cut}},
        {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:1/{PROMPT}.png"}},
        {"type": "image_url", "image_url": {"url": f"file:///root/{PROMPT}.png"}},
        {"type": "image_url", "image_url": {"url": f"/root/{PROMPT}.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,####" + PROMPT}},
        {"type": "image_url", "image_url": {"url": picture, "max_pixels": PROMPT}},
        {"type": "image_url", "image_urls": {"url": picture}},
        {"type": "video_url", "video_url": {"url": picture}},
        {"type": "video", "video": [picture, cut]},
        {"type": "audio", "audio": PROMPT},
        {"type": PROMPT},
        {"type": "file", "file": {"file_data": cut, "filename": f"../../{PROMPT}"}},
        {PROMPT: PROMPT},
        [PROMPT],
    ]
    asked: list[object] = [{"messages": [{"role": "user", "content": [part]}]} for part in parts]
    asked += [
        {"messages": [{"role": "user", "contents": PROMPT}]},
        {"messages": [{"role": "user", "content": PROMPT * 9000}]},
        {"messages": [{"role": "user", "content": PROMPT}], "temperature": PROMPT},
        {"messages": [{"role": "user", "content": PROMPT}], "n": 99},
        {"messages": [{"role": "user", "content": PROMPT}], "tools": [{"name": PROMPT}]},
        {"messages": [{"role": "user", "content": PROMPT}], "top_logprobs": 3},
        {"messages": [{"role": "user", "content": PROMPT}]},
        f'{{"messages": [{{"content": "{PROMPT}"',
        {"tokens": [PROMPT]},
    ]
    paths = (CHAT, "/tokenize", "/detokenize", "/v1/completions", "/v1/messages", "/api/chat",
             "/api/generate", "/page/pdf")  # fmt: skip
    return [(path, body) for body in asked for path in paths]


def test_nothing_of_a_request_is_in_errors_or_logs(locked, caplog):
    """Errors and logs travel further than their requests: to log stores, screens and tickets."""
    caplog.set_level(logging.DEBUG)
    leaks = []
    for path, body in hostile_requests(locked):
        text = body if isinstance(body, str) else json.dumps(body)
        reply = locked.http.post(path, content=text)
        assert reply.status_code < 500, (text[:300], reply.text)
        if reply.status_code != 200 and is_leak(reply.text):
            leaks.append(f"{path} {text[:200]}: {reply.text}")
    for header in ({"authorization": f"Basic {KEY}"}, {"authorization": f"Bearer x{KEY}"}):
        reply = ask(locked.url, request("/v1/models", **header))
        assert reply.status == 401
        assert not is_leak(reply.body.decode())
    assert locked.http.get(f"/v1/models/{PROMPT}").status_code == 404
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert any("401" in line for line in ours)  # the log is really looked at
    leaks += [line for line in ours if is_leak(line)]
    assert not leaks, "\n".join(leaks)


def is_leak(text: str) -> bool:
    words = (KEY, PROMPT, "iVBOR", "Traceback", CHECKOUT, "/root/", "site-packages")
    return any(word in text for word in words) or re.search(r"0x[0-9a-f]{6,}", text) is not None

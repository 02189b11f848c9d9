"""Clients that speak HTTP by hand, as olmOCR and datatrove do, and those that read lines."""

import asyncio
import json
from urllib.parse import urlsplit

import httpx
import pytest
from live_server import NAME


@pytest.fixture(scope="module")
def body(parts) -> dict:
    question = {"role": "user", "content": parts}
    return {"messages": [question], "max_tokens": 24, "temperature": 0.0}


async def post(url: str, body: dict) -> tuple[int, dict, bytes]:
    """Written in one piece, read to the end of the connection; chunks would not be decoded."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    payload = json.dumps(body).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.hostname}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        "Connection: close\r\n\r\n"
    )
    writer.write(head.encode() + payload)
    await writer.drain()
    raw = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    first, _, content = raw.partition(b"\r\n\r\n")
    status, *lines = first.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, content


def test_a_reply_has_its_length(live, body, expected):
    url = f"{live.url}/v1/chat/completions"
    status, headers, content = asyncio.run(post(url, {**body, "model": "olmocr"}))
    assert status == 200
    assert int(headers["content-length"]) == len(content)
    assert headers["connection"] == "close"
    choice = json.loads(content)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    refused, headers, content = asyncio.run(post(url, {**body, "temperature": 9}))
    assert (refused, int(headers["content-length"])) == (400, len(content))


def test_lines_as_raw_readers_take_them(live, body, expected):
    """Open WebUI streams only what calls itself text/event-stream, and others wait for [DONE]."""
    asked = {**body, "model": NAME, "stream": True}
    text = ""
    with httpx.stream(
        "POST", f"{live.url}/v1/chat/completions", json=asked, timeout=60, trust_env=False
    ) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-accel-buffering"] == "no"
        for line in reply.iter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                break
            text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    assert text == expected

"""Clients that leave at any moment, or stay and do not read."""

import json
import random
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_server import NAME, Live, data_url, scene
from raw_http import connect, read_reply, request

from qwen25vl.serving import connection
from qwen25vl.serving.settings import ServerSettings

CHAT = "/v1/chat/completions"
LONG = {"ignore_eos": True, "temperature": 2, "max_tokens": 4000}


def body(kind: random.Random, number: int) -> bytes:
    """A request of some length, about a picture of its own, so that nothing of it is known."""
    picture = scene("red", 112 + 28 * kind.randrange(6))
    picture.putpixel((0, 0), (number % 256, number // 256 % 256, 7))
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}}]
    content = [*parts, {"type": "text", "text": "What colour is the square?"}]
    fields = dict(LONG) if kind.random() < 0.6 else {"temperature": 0, "max_tokens": 8}
    if kind.random() < 0.3:
        content = content[1:]
    fields |= {"stream": kind.random() < 0.5, "n": kind.choice([1, 1, 2])}
    return json.dumps(
        {"model": NAME, "messages": [{"role": "user", "content": content}], **fields}
    ).encode()


def leave(url: str, data: bytes, seconds: float, is_rude: bool) -> None:
    with connect(url) as connected:
        connected.sendall(request(CHAT, data))
        time.sleep(seconds)
        if is_rude:  # a reset in place of an orderly end
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def is_free(live: Live) -> bool:
    """Whether nothing of any request is held anywhere."""
    runner = live.service.runner
    scheduler = runner.engine.scheduler
    held = (runner.active, runner.waiting, scheduler.running, scheduler.waiting, scheduler.arrivals,
            scheduler.cancelled, scheduler.encoder.owners)  # fmt: skip
    is_quiet = scheduler.encoder.work is None
    return is_quiet and not any(held) and not live.service.num_open


def wait_until_free(live: Live, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not is_free(live):
        assert time.monotonic() < deadline, vars(live.service.runner)
        time.sleep(0.005)


def disconnect_often(live: Live, number: int, seed: int) -> None:
    kind = random.Random(seed)
    golden = live.ask("What is red?", temperature=0, max_tokens=16).json()["choices"]
    with ThreadPoolExecutor(8) as pool:
        for first in range(0, number, 16):
            leaving = [
                pool.submit(
                    leave, live.url, body(kind, first + place), kind.random() ** 3 * 0.4,
                    kind.random() < 0.5,
                )
                for place in range(16)
            ]  # fmt: skip
            found = live.ask("What is red?", temperature=0, max_tokens=16).json()["choices"]
            assert found == golden
            for each in leaving:
                each.result()
    wait_until_free(live)
    kept = live.vlm.prefix_cache
    assert kept.num_bytes <= kept.max_bytes
    assert live.ask("What is red?", temperature=0, max_tokens=16).json()["choices"] == golden


def test_leaving_at_any_moment_frees_everything(live):
    """In the queue, decoding, encoding, reading, writing, in the last step: what is not freed once
    is lost for good, and a wrong one freed changes somebody else's answer."""
    disconnect_often(live, 96, seed=1)


@pytest.mark.slow
def test_leaving_a_thousand_times_frees_everything(live):
    disconnect_often(live, 1008, seed=2)


def test_a_queue_of_those_who_left_holds_nobody_up(demo):
    """A request whose client left while it waited must neither run nor end another's."""
    server = Live(ServerSettings(port=0, model_names=(NAME,), max_num_seqs=1), demo)
    kind = random.Random(3)
    long = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **LONG}).encode()
    with connect(server.url) as running:
        running.sendall(request(CHAT, long))
        deadline = time.monotonic() + 5
        while not server.service.runner.active:
            assert time.monotonic() < deadline
        waiting = [connect(server.url) for _ in range(12)]
        for number, one in enumerate(waiting):
            one.sendall(request(CHAT, body(kind, number)))
        while len(server.service.runner.waiting) < 12:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for one in waiting:
            one.close()
        while server.service.runner.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(server.service.runner.active) == 1
    wait_until_free(server)
    server.close()


def test_a_reader_that_stops_is_cancelled_and_holds_nobody_up(demo, monkeypatch):
    """The stream of a client that does not read must not fill the memory or hold the step."""
    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.5)
    server = Live(ServerSettings(port=0, model_names=(NAME,)), demo)
    golden = server.ask("What is red?", temperature=0).json()["choices"]
    stopped = []
    for _ in range(3):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        fields = {**LONG, "stream": True, "n": 8, "max_tokens": 7000, "logprobs": True,
                  "top_logprobs": 20}  # fmt: skip
        messages = [{"role": "user", "content": "Hello"}]
        one.sendall(request(CHAT, json.dumps({"messages": messages, **fields}).encode()))
        stopped.append(one)
    deadline = time.monotonic() + 20
    while server.service.num_open:
        assert server.ask("What is red?", temperature=0).json()["choices"] == golden
        assert time.monotonic() < deadline, "readers that stopped are still served"
    wait_until_free(server)
    for one in stopped:
        one.close()
    server.close()


def overload(live: Live, seconds: float) -> tuple[list[float], int]:
    """Ten times as many clients as there are places; how long refusals took, and how many were
    served."""
    until = time.monotonic() + seconds
    places = live.service.settings.max_num_seqs + live.service.settings.max_queued_requests

    def insist(number: int) -> tuple[list[float], int]:
        refusals, served = [], 0
        messages = [{"role": "user", "content": f"What is {number}?"}]
        data = json.dumps({"messages": messages, "max_tokens": 60, "ignore_eos": True}).encode()
        with connect(live.url, 60) as connected:
            while time.monotonic() < until:
                assert live.service.num_open <= places
                start = time.monotonic()
                connected.sendall(request(CHAT, data))
                reply = read_reply(connected)
                assert reply.status in (200, 429), reply
                if reply.status == 200:
                    served += 1
                    continue
                assert 1 <= int(reply.headers["retry-after"]) <= 60
                assert reply.error["code"] == "queue_full"
                refusals.append(time.monotonic() - start)
                time.sleep(0.05)
        return refusals, served

    with ThreadPoolExecutor(10 * places) as pool:
        found = [each.result() for each in [pool.submit(insist, n) for n in range(10 * places)]]
    return [one for refusals, _ in found for one in refusals], sum(served for _, served in found)


def check_overload(demo, seconds: float) -> None:
    settings = ServerSettings(
        port=0, model_names=(NAME,), max_num_seqs=2, max_queued_requests=2
    )  # fmt: skip
    server = Live(settings, demo)
    refusals, served = overload(server, seconds)
    refusals.sort()
    assert served > 0
    assert len(refusals) > 20
    assert refusals[len(refusals) // 2] < 1  # the clients of this test share the processor
    wait_until_free(server)
    start = time.monotonic()
    assert server.ask(temperature=0).status_code == 200
    assert time.monotonic() - start < 5
    server.close()


def test_overload_is_refused_at_once(demo):
    """A queue without a bound answers everybody, an hour late."""
    check_overload(demo, 2)


@pytest.mark.slow
def test_overload_for_a_minute(demo):
    check_overload(demo, 60)

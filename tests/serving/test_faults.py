"""An engine that fails for one request, for all, or for ever."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_server import NAME, Live, data_url, scene

from qwen25vl.engine import engine as engine_module
from qwen25vl.engine import scheduler as scheduler_module
from qwen25vl.engine import writing
from qwen25vl.engine.encoding import Encoder
from qwen25vl.engine.engine import Engine
from qwen25vl.engine.outbox import Outbox
from qwen25vl.engine.scheduler import Scheduler
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.step import Rows
from qwen25vl.serving.settings import ServerSettings

MARK = 7  # likeliest tokens: the sign of the request that fails
CANARY = "canary /root/secret 0x7f5e00c0ffee"
HOOKS: list[tuple[Any, str]] = [
    (scheduler_module, "make_room"),
    (Scheduler, "open_cache"),
    (Scheduler, "find_kept"),
    (Scheduler, "keep_prefix"),
    (Encoder, "find_known"),
    (Encoder, "begin"),
    (Encoder, "advance"),
    (Encoder, "finish"),
    (engine_module, "reading_rows"),
    (engine_module, "writing_rows"),
    (engine_module, "run_rows"),
    (engine_module, "release_after"),
    (writing, "choose_tokens"),
    (writing, "settle"),
    (Sequence, "accept"),
    (Outbox, "put"),
    (Outbox, "grow"),
    (Outbox, "advance"),
    (Outbox, "skip"),
]


def is_marked(value: Any) -> bool:
    """Whether the marked request is among the arguments of a call."""
    if isinstance(value, Outbox):
        return value.num_likeliest == MARK
    if isinstance(value, Sequence):
        return is_marked(value.outbox)
    if isinstance(value, Rows):
        return is_marked(value.sequence)
    if isinstance(value, Encoder):
        return any(is_marked(s) for owners in value.owners.values() for s in owners)
    return isinstance(value, list | tuple) and any(map(is_marked, value))


def failing(function: Callable[..., Any]) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        if is_marked(arguments):
            raise RuntimeError(CANARY)
        return function(*arguments, **options)

    return fail


@pytest.fixture(scope="module")
def golden(live):
    return [ask_about(live, colour).json()["choices"] for colour in ("red", "green")]


def ask_about(live: Live, colour: str, **fields: object):
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(scene(colour))}},
        {"type": "text", "text": "What colour is the square?"},
    ]
    messages = [{"role": "user", "content": parts}]
    return live.ask(messages=messages, max_tokens=20, temperature=0, **fields)


@pytest.mark.parametrize(("owner", "name"), HOOKS, ids=lambda each: getattr(each, "__name__", each))
def test_a_fault_ends_one_request(live, golden, monkeypatch, owner, name):
    """Whatever goes wrong for one request is its own: others beside it and after it answer to the
    last bit as before, the engine goes on, and nobody learns what is inside the server."""
    monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    live.vlm.prefix_cache.clear()
    live.vlm.visual_cache.clear()
    with ThreadPoolExecutor(3) as pool:
        marked = pool.submit(ask_about, live, "black", logprobs=True, top_logprobs=MARK)
        if owner is Encoder:  # what is encoded in one pass fails together
            marked.result()
        others = [pool.submit(ask_about, live, colour) for colour in ("red", "green")]
        assert [each.result().json().get("choices") for each in others] == golden
        reply = marked.result()
    if reply.status_code != 200:  # some hooks are not reached, or only after the answer
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "internal_error"
        assert "canary" not in reply.text
    monkeypatch.undo()
    assert live.http.get("/health").status_code == 200
    assert ask_about(live, "red").json()["choices"] == golden[0]
    wait_until(lambda: is_free(live))


def is_free(live: Live) -> bool:
    runner = live.service.runner
    scheduler = runner.engine.scheduler
    held = (runner.active, runner.waiting, scheduler.running, scheduler.waiting, scheduler.arrivals)
    return not any(held) and not live.service.num_open and not scheduler.encoder.owners


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_that_fails_now_and_then_ends_no_engine(live, golden, monkeypatch):
    """Three faults in a day are not three in a row."""
    step = Engine.step
    for _ in range(4):
        faults = iter([True])
        monkeypatch.setattr(
            Engine, "step", lambda self, faults=faults: 1 / 0 if next(faults, False) else step(self)
        )
        ask_about(live, "red")
        monkeypatch.undo()
    assert live.http.get("/health").status_code == 200
    assert ask_about(live, "red").json()["choices"] == golden[0]


@pytest.fixture
def own(demo):
    """A server whose engine may die."""
    server = Live(ServerSettings(port=0, model_names=(NAME,), shutdown_seconds=0.1), demo)
    yield server
    server.close()


def test_a_stuck_step_shows_in_health_and_ends_what_waits(own, monkeypatch):
    """A server that looks well while nothing moves is not restarted by anybody. Once the step goes
    on, so does the server."""
    step, blocked = Engine.step, threading.Event()
    monkeypatch.setattr(Engine, "step", lambda self: blocked.wait(30) and step(self))
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(own.ask)
        streamed = pool.submit(own.ask, stream=True)
        wait_until(lambda: own.http.get("/health").status_code == 503, 5)
        assert time.monotonic() - start < 5
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "engine_dead"
        assert '"code":"engine_dead"' in streamed.result().text
    assert time.monotonic() - start < 10
    assert own.ask().status_code == 503
    blocked.set()
    monkeypatch.undo()
    wait_until(lambda: own.http.get("/health").status_code == 200)
    assert own.ask(temperature=0).status_code == 200
    wait_until(lambda: is_free(own))


def test_a_long_step_is_not_a_stuck_one(own, monkeypatch):
    """A step of a large model may take minutes; it uses the processor all the time."""
    step, has_worked = Engine.step, threading.Event()

    def work(self):
        until = time.monotonic() + 5
        while not has_worked.is_set() and time.monotonic() < until:
            sum(range(1000))
        has_worked.set()
        return step(self)

    monkeypatch.setattr(Engine, "step", work)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(own.ask)
        while not asked.done():
            assert own.http.get("/health").status_code == 200
            time.sleep(0.2)
        assert asked.result().status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", [SystemExit, RuntimeError])
def test_a_dead_engine_shows_in_health(own, monkeypatch, fault):
    """The thread ends, or fails at each step: requests end with an error, and new ones are
    refused."""

    def die(_):
        raise fault("dead")

    monkeypatch.setattr(Engine, "step", die)
    start = time.monotonic()
    assert {own.ask().status_code for _ in range(2)} <= {500, 503}
    wait_until(lambda: own.http.get("/health").status_code == 503, 5)
    assert own.ask().status_code == 503
    assert time.monotonic() - start < 10

"""The queue before the engine, and what is told of it, without a model."""

import asyncio
import base64
import random
import threading
import urllib.parse
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from qwen25vl.engine.outbox import Outbox
from qwen25vl.errors import OutOfMemoryError
from qwen25vl.serving import runner as runner_module
from qwen25vl.serving.answer_events import AnswerState, End, TextDelta
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.guard import Guard
from qwen25vl.serving.job import Job
from qwen25vl.serving.media import encoded
from qwen25vl.serving.media.encoded import Base64Error, TooLongError, decode
from qwen25vl.serving.metrics import Metrics
from qwen25vl.serving.rates import Rates
from qwen25vl.serving.runner import MAX_FAILED, QueueLimits, Runner
from qwen25vl.serving.sampling import is_token
from qwen25vl.serving.settings import ServerSettings
from qwen25vl.serving.tenant import cache_salt
from qwen25vl.structured.tool_parser import ToolCallParser


class FakeEngine:
    """Takes sequences, and takes note of those that are cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[object] = []
        self.scheduler = SimpleNamespace(cancel=self.cancelled.extend)

    def add(self, leaders) -> None:
        for one in leaders:
            one.outbox.num_open += 1


def make_job(num_answers: int = 1, priority: int = 0, submitted: float | None = None) -> Job:
    outbox = Outbox()
    leaders = [
        SimpleNamespace(followers=[], outbox=outbox, num_reused=0) for _ in range(num_answers)
    ]
    job = Job(outbox, leaders, 10, 0, priority)
    if submitted is not None:
        job.submitted = submitted
    return job


def make_runner(max_answers: int = 4) -> Runner:
    runner = Runner(FakeEngine(), QueueLimits(max_answers, 10_000, 10_000))
    runner.is_stuck = False
    runner.thread = SimpleNamespace(is_alive=lambda: True)
    return runner


def test_when_one_answer_fails_the_others_are_cancelled():
    """They were written to their ends for nobody, beside what the queue took them to be."""
    runner, job = make_runner(), make_job(num_answers=3)
    runner.submit(job)
    job.outbox.error = RuntimeError("one of three")
    job.outbox.num_open -= 1
    runner.deliver()
    assert runner.active == []
    assert runner.engine.cancelled == job.sequences
    done = make_job()
    runner.submit(done)
    done.outbox.num_open = 0
    runner.deliver()
    assert done.sequences[0] not in runner.engine.cancelled


def test_health_tells_of_an_engine_that_fails_every_request():
    """Faults of single requests, one after another; what a request itself asked for is none."""
    runner = make_runner()

    def end(error: Exception | None) -> None:
        job = make_job()
        runner.submit(job)
        job.outbox.num_open, job.outbox.error = 0, error
        runner.deliver()

    for _ in range(MAX_FAILED - 1):
        end(RuntimeError("fault"))
    for _ in range(3):
        end(OutOfMemoryError("too long"))
    assert not runner.is_failing
    end(RuntimeError("fault"))
    assert runner.is_failing
    assert runner.is_healthy  # requests are still taken: how else would it recover
    end(None)
    assert not runner.is_failing


def test_urgent_requests_do_not_starve_others(monkeypatch):
    """With priority alone, a steady stream of urgent ones kept all others waiting for ever."""
    clock = [1000.0]
    monkeypatch.setattr(runner_module.time, "monotonic", lambda: clock[0])
    runner = make_runner(max_answers=1)
    runner.submit(make_job(submitted=1000.0))
    old, urgent = make_job(submitted=1000.0), make_job(priority=-5, submitted=1001.0)
    runner.submit(old)
    runner.submit(urgent)
    assert runner.waiting == [urgent, old]
    clock[0] = 1000.0 + runner_module.PRIORITY_SECONDS
    late = make_job(priority=-9, submitted=clock[0])
    runner.submit(late)
    assert runner.waiting == [old, late, urgent]


def test_the_queue_says_how_long_it_is():
    """A wait cut to a minute let requests in whose clients were gone long before their turn."""
    rates = Rates()
    rates.prompt_seconds, rates.answer_seconds = 1.0, 40.0
    active = [make_job(), make_job()]
    active[0].first = 1.0
    waiting = [make_job() for _ in range(9)]
    assert rates.queue_seconds(active, waiting) == 10 * 10 + 10 * 20.0
    assert rates.retry_seconds(active, waiting) == 300.0
    assert Rates().queue_seconds([], []) == 0.0
    assert Rates().retry_seconds([], []) == 1.0


@pytest.mark.parametrize(
    ("error", "ends", "counted"),
    [
        (None, 2, {"request_success": 2}),
        (None, 1, {"request_success": 1, "requests_cancelled": 1}),
        (RuntimeError("fault"), 1, {"request_success": 1, "requests_failed": 1}),
    ],
)
def test_requests_are_counted_by_their_end_and_once(error, ends, counted):
    """Those that failed were counted as if their clients had left, and those that left a whole
    answer not at all."""
    runner = make_runner()
    metrics = Metrics("m", runner, SimpleNamespace(prefix_cache=None))
    job = make_job(num_answers=2)
    job.outbox.error = error
    generation = Generation(SimpleNamespace(runner=runner, metrics=metrics), job, (), 2)
    for answer in generation.answers[:ends]:
        answer.end = End(answer.index, "stop", None)
    generation.close()
    generation.close()
    found = samples(metrics.registry)
    assert {name: value for name, value in found.items() if value} == counted


def samples(registry: CollectorRegistry) -> dict[str, float]:
    kinds = ("request_success", "requests_cancelled", "requests_failed")
    return {
        kind: sum(
            sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == f"vllm:{kind}_total"
        )
        for kind in kinds
    }


def test_text_behind_a_call_is_told_behind_it():
    """It was told first: clients closed the call before its last arguments had come."""
    answer = AnswerState(0, ToolCallParser())
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call> after'
    events = answer.read(call, SimpleNamespace(token=7))
    assert events[0].text == ""
    assert len(events[0].tokens) == 1
    assert [type(each).__name__ for each in events[1:]][-1] == "TextDelta"
    shown = "".join(each.text for each in events if isinstance(each, TextDelta))
    assert shown.strip() == "after"


def test_what_is_kept_for_one_key_serves_no_other():
    """Else the time to the first token tells what somebody else has asked."""
    found: list[str] = []

    async def app(scope, receive, send) -> None:
        found.append(await asyncio.ensure_future(salt_of_a_task()))

    async def salt_of_a_task() -> str:
        return cache_salt("own")

    def ask(keys: tuple[str, ...], key: str) -> str:
        guard = Guard(app, ServerSettings(api_keys=keys))
        headers = [(b"host", b"127.0.0.1"), (b"x-api-key", key.encode())]
        scope = {"type": "http", "method": "GET", "path": "/x", "raw_path": b"/x"}
        scope |= {"query_string": b"", "headers": headers, "root_path": ""}
        asyncio.run(guard(scope, None, None))
        return found[-1]

    first, second = ask(("a", "b"), "a"), ask(("a", "b"), "b")
    assert first != second
    assert first == ask(("a", "b"), "a")
    assert first.endswith(":own")
    assert ask(("a",), "a") == "own"  # nobody else is there


def test_a_page_may_send_what_the_sdks_send():
    """A preflight that leaves one of their headers out ends every request of a page."""
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    asked = b"Anthropic-Version, x-stainless-lang, x-evil, x-stainless-a b"
    origin = "https://chat.example.org"
    headers = [(b"host", b"127.0.0.1"), (b"origin", origin.encode())]
    headers.append((b"access-control-request-headers", asked))
    scope = {"type": "http", "method": "OPTIONS", "path": "/x", "raw_path": b"/x"}
    scope |= {"query_string": b"", "headers": headers, "root_path": ""}
    asyncio.run(Guard(None, ServerSettings(allowed_origins=(origin,)))(scope, None, send))
    allowed = dict(sent[0]["headers"])[b"access-control-allow-headers"].split(b", ")
    assert {b"x-api-key", b"authorization", b"anthropic-version", b"x-stainless-lang"} <= {*allowed}
    assert not any(b"evil" in name or b" " in name for name in allowed)


@pytest.mark.parametrize("text", ["9" * 5000, "05", "-1", "", "5.0", "\u0665"])
def test_a_bias_names_a_token_in_one_way(text):
    """Two spellings of one token added up, and a number of 5000 digits was the server's fault."""
    assert is_token("5", 100)
    assert not is_token("100", 100)
    assert not is_token(text, 100)


def test_base64_is_decoded_in_pieces_and_beside_the_loop():
    """A percent-encoded picture stopped all streams for seconds."""
    raw = random.Random(1).randbytes(300_001)
    plain = base64.b64encode(raw).decode()
    lines = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    quoted = urllib.parse.quote(plain, safe="")
    for text in (plain, plain.rstrip("="), lines, quoted, lines.replace("\n", "%0A"), " " + quoted):
        assert decode(text, 300_001) == raw
    for wrong in (plain[:-3], plain[:70_000] + "=" + plain[70_000:], plain + "\u00e9", plain + "*"):
        with pytest.raises(Base64Error):
            decode(wrong, 400_000)
    with pytest.raises(TooLongError):
        decode(plain, 300_000)

    async def threads() -> tuple[bool, bool]:
        seen: list[int] = []
        encoded.decode = lambda text, most: seen.append(threading.get_ident()) or b""
        await encoded.decode_base64(plain, 300_001)
        await encoded.decode_base64("AAAA", 300_001)
        return seen[0] != threading.get_ident(), seen[1] == threading.get_ident()

    try:
        assert asyncio.run(threads()) == (True, True)
    finally:
        encoded.decode = decode

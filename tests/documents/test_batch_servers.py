"""Servers that are busy, gone, or speak nonsense."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from document_files import completion, pictures

from qwen25vl.documents.backends import BackendGoneError
from qwen25vl.documents.batch import Target, run_job
from qwen25vl.documents.batch_job import JobLimits
from qwen25vl.documents.inputs import list_inputs
from qwen25vl.documents.plan import make_plan
from qwen25vl.documents.remote import RemoteBackend, busy_seconds
from qwen25vl.documents.results import Result
from qwen25vl.errors import UsageError

Handler = Callable[[httpx.Request], httpx.Response]


def run(
    folder: Path, handlers: list[Handler], limits: JobLimits | None = None, **how: float
) -> list[Result]:
    backend = RemoteBackend([f"http://h{number}:1/v1" for number in range(len(handlers))], **how)
    for server, handler in zip(backend.servers, handlers, strict=True):
        server.client = httpx.AsyncClient(
            transport=httpx.MockTransport(handler), base_url=server.url
        )
    plan = make_plan(identity={"model": "m"}, ask="What?", model="m")
    results = run_job(list_inputs([str(folder)]), plan, backend, Target(), limits or JobLimits())
    return list(results)


def good(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=completion("yes"))


def test_busy_server_is_waited_for(tmp_path: Path) -> None:
    """Pages given up because a server was busy for a moment; a Retry-After that is ignored makes
    it busier."""
    times: list[float] = []

    def busy(request: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        if len(times) <= 4:
            return httpx.Response(429, headers={"retry-after": "0.3"}, json={"error": {}})
        return good(request)

    results = run(pictures(tmp_path / "in", 1), [busy], JobLimits(max_attempts=1))
    assert [(each.text, each.attempts) for each in results] == [("yes", 1)]
    assert all(second - first >= 0.29 for first, second in pairwise(times))


def test_retry_after() -> None:
    """Seconds, a date, or nothing."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    seconds = [
        busy_seconds(httpx.Response(429, headers=headers), 3)
        for headers in ({"retry-after": "7"}, {"retry-after": date}, {}, {"retry-after": "soon"})
    ]
    assert seconds[0] == 7
    assert 15 < seconds[1] <= 21
    assert seconds[2:] == [4, 4]


def test_load_goes_to_who_is_free(tmp_path: Path) -> None:
    """Turns by number alone give a slow server half of the work."""
    counts = [0, 0]

    async def slow(request: httpx.Request) -> httpx.Response:
        counts[0] += 1
        await asyncio.sleep(0.4)
        return good(request)

    async def fast(request: httpx.Request) -> httpx.Response:
        counts[1] += 1
        return good(request)

    folder = pictures(tmp_path / "in", 20)
    results = run(folder, [slow, fast], JobLimits(max_in_flight=2))  # type: ignore[list-item]
    assert len(results) == 20
    assert counts[0] < 10 < counts[1]


def test_server_that_is_gone(tmp_path: Path) -> None:
    """All pages written down as failed while a server restarts; or a job that waits for ever."""

    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    folder = pictures(tmp_path / "in", 3)
    results = run(folder, [gone, good], JobLimits(max_attempts=1))
    assert [each.error for each in results] == [None] * 3
    with pytest.raises(BackendGoneError, match="no server answers: http://h0:1"):
        run(folder, [gone], patience=0.5)


def test_refusals_and_nonsense(tmp_path: Path) -> None:
    """An error page of a proxy, a fault of the server, a page that is too long: each has its
    kind, and only what may pass is tried again."""
    calls: list[str] = []

    def strange(request: httpx.Request) -> httpx.Response:
        number = len(calls)
        calls.append(request.url.path)
        if number == 0:
            code = "context_length_exceeded"
            return httpx.Response(400, json={"error": {"message": "long", "code": code}})
        if number == 1:
            return httpx.Response(502, text="<html>Bad gateway</html>")
        if number == 2:
            return httpx.Response(200, text="{}")
        if number == 3:
            raise httpx.ReadError("broken pipe")
        return good(request)

    folder = pictures(tmp_path / "in", 2)
    results = run(folder, [strange], JobLimits(max_in_flight=1, max_attempts=9))
    assert [each.error and each.error.kind for each in results] == ["too long", None]
    assert results[1].attempts == 4
    assert set(calls) == {"/v1/chat/completions"}


def test_addresses() -> None:
    """A server named without its scheme."""
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        RemoteBackend(["localhost:8000"])

"""Cancellations that meet other events."""

import asyncio

import pytest

from qwen25vl.engine.outbox import Outbox
from qwen25vl.serving.job import Job
from qwen25vl.serving.sse import EventStream


def test_a_client_that_leaves_as_a_token_arrives():
    """Before Python 3.12 `asyncio.wait_for` forgets a cancellation that meets what it waited for:
    the answer was then written to its end for nobody."""

    async def leave() -> None:
        job = Job(Outbox(), [], 0, 0)
        reading = asyncio.ensure_future(job.read(10))
        await asyncio.sleep(0)
        job.news.set()
        reading.cancel()
        await reading

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())


def test_a_client_that_leaves_as_a_part_is_sent():
    """The same on the way out: the stream must end, and what it stands on be closed."""
    closed = []

    async def parts():
        try:
            for _ in range(1000):
                yield b"x"
        finally:
            closed.append(True)

    async def leave() -> int:
        sent: asyncio.Queue[bytes] = asyncio.Queue()
        is_gone, may_go_on = asyncio.Event(), asyncio.Event()

        async def send(message):
            sent.put_nowait(message)
            if message["type"] == "http.response.body":
                await may_go_on.wait()

        async def receive():
            await is_gone.wait()
            return {"type": "http.disconnect"}

        running = asyncio.ensure_future(EventStream(parts())({"type": "http"}, receive, send))
        while sent.qsize() < 2:
            await asyncio.sleep(0)
        is_gone.set()
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(may_go_on.set)
        async with asyncio.timeout(5):
            await running
        return sent.qsize()

    assert asyncio.run(leave()) < 10
    assert closed == [True]

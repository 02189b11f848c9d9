"""A server gives unused memory back while it runs."""

import asyncio

import pytest

from qwen25vl import memory
from qwen25vl.serving import trimming


def test_memory_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[bool] = []
    monkeypatch.setattr(trimming, "TRIM_SECONDS", 0.01)
    monkeypatch.setattr(memory, "trim_heap", lambda: times.append(True))

    async def run() -> None:
        task = asyncio.ensure_future(trimming.trim_often())
        while len(times) < 3:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))

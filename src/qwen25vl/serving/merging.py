"""The events of several requests as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen25vl.serving.answer_events import Event
    from qwen25vl.serving.generation import Generation

MAX_WAITING = 64  # events that nobody has taken: those who write them wait then

Item = tuple[int, "Event"] | Exception | None


async def merged(
    generations: Sequence[Generation], seconds: float | None
) -> AsyncIterator[tuple[int, Event]]:
    """What is written, as it is, with the number of the request that it belongs to. Leaving it
    early, and an error of one, cancels all."""
    queue: asyncio.Queue[Item] = asyncio.Queue(MAX_WAITING)
    tasks = [
        asyncio.ensure_future(forward(number, generation, queue, seconds))
        for number, generation in enumerate(generations)
    ]
    num_open = len(tasks)
    try:
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def forward(
    number: int, generation: Generation, queue: asyncio.Queue[Item], seconds: float | None
) -> None:
    """Put the events of one request into the queue, then its error or None."""
    try:
        async with aclosing(generation.events(seconds)) as events:  # type: ignore[type-var]
            async for event in events:
                await queue.put((number, event))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)

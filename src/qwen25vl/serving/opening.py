"""From inputs that are ready to a request at the engine, and what a stream sends until then and
where nothing is written for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from qwen25vl.serving.generation import Generation
from qwen25vl.serving.sampling import read_additions, read_options

if TYPE_CHECKING:
    from qwen25vl.engine.constraint import StartConstraint
    from qwen25vl.inputs import ModelInputs
    from qwen25vl.serving.service import Service
    from qwen25vl.serving.wire import SamplingFields

EARLY_SECONDS = 2.0  # in which what is wrong with a streamed request still gets a status of its own
Opened = TypeVar("Opened", bound="Generation | list[Generation]")
T = TypeVar("T")
Shown = TypeVar("Shown")


async def open_inputs(
    service: Service,
    body: SamplingFields,
    inputs: ModelInputs,
    num_likeliest: int,
    seconds: float | None,
    start: StartConstraint | None = None,
) -> Generation:
    """Read the options of a request and put it into the queue. seconds: after which its client
    gives up; start: of the grammar that answers follow. Raises ApiError and the package's
    errors."""
    vlm = service.vlm
    num_prompt = int(inputs.input_ids.shape[-1])
    options = read_options(body, num_prompt, service.bounds, vlm.model, vlm.processor.tokenizer)
    added = read_additions(body, start)
    job = await service.submit(body, inputs, options, added, num_likeliest, seconds)
    return Generation(service, job, inputs.media, body.n or 1)


async def open_early(coming: Coroutine[Any, Any, Opened]) -> asyncio.Future[Opened]:
    """A streamed request that is being prepared. Raises what is soon found to be wrong with it, so
    that this gets a status of its own."""
    opening = asyncio.ensure_future(coming)
    await asyncio.wait({opening}, timeout=EARLY_SECONDS)
    if opening.done():
        opening.result()
    return opening


async def until_open(opening: asyncio.Future[Any], seconds: float) -> AsyncIterator[None]:
    """None every so many seconds, until a request is at the engine: then a sign of life is due."""
    while not opening.done():
        await asyncio.wait({opening}, timeout=seconds)
        if not opening.done():
            yield None


async def paced(
    events: AsyncIterator[T], show: Callable[[T], Sequence[Shown]], seconds: float
) -> AsyncIterator[Shown | None]:
    """What is shown of events; None where nothing was for so many seconds. Leaving it early leaves
    the events."""
    last = time.monotonic()
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            shown = show(event)
            for part in shown:
                yield part
            if not shown and time.monotonic() - last >= seconds:
                yield None
                last = time.monotonic()
            elif shown:
                last = time.monotonic()


def abandon(opening: asyncio.Future[Generation] | asyncio.Future[list[Generation]]) -> None:
    """End a request, wherever it is; one that is over stays as it is."""
    if not opening.done():
        opening.cancel()
    elif not opening.cancelled() and opening.exception() is None:
        opened = opening.result()
        for generation in opened if isinstance(opened, list) else [opened]:
            generation.close()

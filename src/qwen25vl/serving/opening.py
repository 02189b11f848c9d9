"""From inputs that are ready to a request at the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from qwen25vl.serving.generation import Generation
from qwen25vl.serving.sampling import read_additions, read_options
from qwen25vl.serving.sse import KEEP_ALIVE

if TYPE_CHECKING:
    from qwen25vl.engine.constraint import StartConstraint
    from qwen25vl.inputs import ModelInputs
    from qwen25vl.serving.service import Service
    from qwen25vl.serving.wire import SamplingFields


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


async def until_open(
    opening: asyncio.Future[Generation] | asyncio.Future[list[Generation]], seconds: float
) -> AsyncIterator[bytes]:
    """A comment line every so many seconds, until a request is at the engine."""
    while not opening.done():
        await asyncio.wait({opening}, timeout=seconds)
        if not opening.done():
            yield KEEP_ALIVE


def abandon(opening: asyncio.Future[Generation] | asyncio.Future[list[Generation]]) -> None:
    """End a request, wherever it is; one that is over stays as it is."""
    if not opening.done():
        opening.cancel()
    elif not opening.cancelled() and opening.exception() is None:
        opened = opening.result()
        for generation in opened if isinstance(opened, list) else [opened]:
            generation.close()

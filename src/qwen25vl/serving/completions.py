"""POST /v1/completions: texts go on, without a template around them.

In a prompt of this route control tokens are control tokens: `<|im_end|>` ends a turn. There is no
other way to write one's own template. Pictures need messages, and so the route for chats.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import torch
from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.inputs import ModelInputs
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT
from qwen25vl.serving.answer_events import Event
from qwen25vl.serving.completion_choices import Choices
from qwen25vl.serving.constraints import start_constraint
from qwen25vl.serving.errors import of_error
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.merging import merged
from qwen25vl.serving.opening import abandon, open_early, open_inputs, paced, until_open
from qwen25vl.serving.prompts import read_text
from qwen25vl.serving.reading import client_seconds, read_body
from qwen25vl.serving.sampling import check_supported, refuse
from qwen25vl.serving.sse import DONE, KEEP_ALIVE, EventStream, data, to_json, unless_gone
from qwen25vl.serving.tasks import in_order
from qwen25vl.serving.wire import CompletionRequest

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

DEFAULT_TOKENS = 16  # as at OpenAI
MAX_PROMPTS = 256


async def create_completion(service: Service, request: Request) -> Any:
    body = await read_body(request, CompletionRequest)
    check_supported(body)
    prompts = split_prompts(body)
    if body.max_tokens is None:
        body.max_tokens = DEFAULT_TOKENS
    service.find_adapter(body.model)
    seconds = client_seconds(request)
    if not body.stream:
        return await unless_gone(request, reply(service, body, prompts, seconds))
    opening = await open_early(open_all(service, body, prompts, None))
    return EventStream(stream(service, body, opening))


def split_prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a request. Raises ApiError for none, an empty one and too many."""
    given: Any = body.prompt
    is_one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    prompts: list[str | list[int]] = [given] if is_one else list(given)
    if not prompts or not all(prompts):
        raise refuse("prompt", "it is empty; there is nothing to go on from")
    if len(prompts) > MAX_PROMPTS:
        raise refuse("prompt", f"it has {len(prompts)} prompts, at most {MAX_PROMPTS} are taken")
    return prompts


async def open_all(
    service: Service,
    body: CompletionRequest,
    prompts: list[str | list[int]],
    seconds: float | None,
) -> list[Generation]:
    """All prompts, each as a job of its own, or none. Raises ApiError and the package's errors."""
    read = await in_order([asyncio.to_thread(read_prompt, service, each) for each in prompts])
    asked = body.model_copy(update={"max_tokens": 1}) if body.max_tokens == 0 else body
    start, likeliest = await start_constraint(service, asked), body.logprobs or 0
    opened: list[Generation] = []
    try:
        for inputs in read:
            opened.append(await open_inputs(service, asked, inputs, likeliest, seconds, start))
    except BaseException:
        for generation in opened:
            generation.close()
        raise
    return opened


def read_prompt(service: Service, prompt: str | list[int]) -> ModelInputs:
    control = service.vlm.processor.tokenizer.control_ids
    if isinstance(prompt, str):
        has_slots = IMAGE_SLOT in prompt or VIDEO_SLOT in prompt
    else:
        has_slots = not {control[IMAGE_SLOT], control[VIDEO_SLOT]}.isdisjoint(prompt)
    if has_slots:
        raise refuse("prompt", "it has slots of pictures; send these to /v1/chat/completions")
    if isinstance(prompt, str):
        return read_text(service, prompt)
    vocab_size = len(service.vlm.model.get_input_embeddings().weight)
    if wrong := [token for token in prompt if token >= vocab_size]:
        raise refuse("prompt", f"token {wrong[0]} is not among the {vocab_size} of the model")
    ids = torch.tensor([prompt], dtype=torch.int64, device="cpu")
    return ModelInputs(ids, torch.ones_like(ids))


async def reply(
    service: Service,
    body: CompletionRequest,
    prompts: list[str | list[int]],
    seconds: float | None,
) -> Response:
    """All answers at once."""
    generations = await open_all(service, body, prompts, seconds)
    choices = Choices(service, body, generations)
    try:
        async with aclosing(merged(generations, None)) as events:  # type: ignore[type-var]
            async for _ in events:
                pass
    finally:
        for generation in generations:
            generation.close()
    whole = {**choices.frame(), "choices": await asyncio.to_thread(choices.whole)}
    return Response(to_json({**whole, "usage": choices.usage()}), media_type="application/json")


async def stream(
    service: Service, body: CompletionRequest, opening: asyncio.Future[list[Generation]]
) -> AsyncIterator[bytes]:
    """The answers as events. What goes wrong on the way is an event of its own, and then the
    end."""
    try:
        async for _ in until_open(opening, service.settings.keep_alive_seconds):
            yield KEEP_ALIVE
        async for part in show(Choices(service, body, opening.result())):
            yield part
    except Exception as error:
        service.report(error)
        yield data(of_error(error).body())
    finally:
        abandon(opening)


async def show(choices: Choices) -> AsyncIterator[bytes]:
    """The events of requests that are at the engine, and what follows them."""
    service = choices.service
    keep_alive = service.settings.keep_alive_seconds

    def show_each(numbered: tuple[int, Event]) -> list[dict[str, Any]]:
        return [chunk] if (chunk := choices.chunk(*numbered)) else []

    events = merged(choices.generations, keep_alive)
    async with aclosing(paced(events, show_each, keep_alive)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            yield KEEP_ALIVE if chunk is None else data(chunk)
    if choices.includes_usage:
        yield data({**choices.frame(), "choices": [], "usage": choices.usage()})
    yield DONE

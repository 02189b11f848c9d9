"""From a chat request to what is written, for routes that say it in other words than OpenAI's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qwen25vl.serving.answer_events import Event, TextDelta, Waiting
from qwen25vl.serving.chat import EARLY_SECONDS, check, open_chat
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.reading import wrong_field
from qwen25vl.serving.wire import ChatRequest

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

Opening = asyncio.Future[Generation]


def as_chat(fields: dict[str, Any]) -> ChatRequest:
    """A translated request. Raises ApiError, as for one that came in OpenAI's words."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        body = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise wrong_field(error) from None
    check(body)
    return body


async def generate_whole(service: Service, body: ChatRequest, seconds: float | None) -> Generation:
    """A request once its answer is whole."""
    generation = await open_chat(service, body, seconds)
    await generation.finish()
    return generation


async def open_early(service: Service, body: ChatRequest) -> Opening:
    """A streamed request that is being prepared. Raises what is soon found to be wrong with it, so
    that this gets a status of its own."""
    opening = asyncio.ensure_future(open_chat(service, body, None))
    await asyncio.wait({opening}, timeout=EARLY_SECONDS)
    if opening.done():
        opening.result()
    return opening


async def follow(
    service: Service, opening: Opening, shows_tokens: bool = False
) -> AsyncIterator[Generation | Event | None]:
    """First the generation, then its events; None where nothing was sent for so long that the
    client should hear that somebody is there. shows_tokens: also those whose text is held back.

    Leaving it early cancels the request.
    """
    seconds = service.settings.keep_alive_seconds
    try:
        while not opening.done():
            await asyncio.wait({opening}, timeout=seconds)
            if not opening.done():
                yield None
        generation = opening.result()
        yield generation
        last = time.monotonic()
        async with aclosing(generation.events(seconds)) as events:  # type: ignore[type-var]
            async for event in events:
                is_shown = shows(event, shows_tokens)
                if is_shown or time.monotonic() - last >= seconds:
                    yield event if is_shown else None
                    last = time.monotonic()
    finally:
        if not opening.done():
            opening.cancel()
        elif not opening.cancelled() and opening.exception() is None:
            opening.result().close()


def shows(event: Event, shows_tokens: bool) -> bool:
    if isinstance(event, TextDelta):
        return bool(event.text) or (shows_tokens and bool(event.tokens))
    return not isinstance(event, Waiting)

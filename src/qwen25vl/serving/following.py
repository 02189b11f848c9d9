"""From a chat request to what is written, for routes that say it in other words than OpenAI's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qwen25vl.serving.answer_events import Event, TextDelta, Waiting
from qwen25vl.serving.chat import check, open_chat
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.opening import abandon, paced, until_open
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


async def follow(
    service: Service, opening: Opening, shows_tokens: bool = False
) -> AsyncIterator[Generation | Event | None]:
    """First the generation, then its events; None where nothing was sent for so long that the
    client should hear that somebody is there. shows_tokens: also those whose text is held back.

    Leaving it early cancels the request.
    """
    seconds = service.settings.keep_alive_seconds
    try:
        async for _ in until_open(opening, seconds):
            yield None
        generation = opening.result()
        yield generation

        def show(event: Event) -> list[Event]:
            return [event] if shows(event, shows_tokens) else []

        events = paced(generation.events(seconds), show, seconds)
        async with aclosing(events):  # type: ignore[type-var]
            async for shown in events:
                yield shown
    finally:
        abandon(opening)


def shows(event: Event, shows_tokens: bool) -> bool:
    if isinstance(event, TextDelta):
        return bool(event.text) or (shows_tokens and bool(event.tokens))
    return not isinstance(event, Waiting)

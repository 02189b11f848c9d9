"""POST /api/chat and /api/generate"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.chat import open_chat
from qwen25vl.serving.dialects import ollama_error
from qwen25vl.serving.errors import of_error, renaming
from qwen25vl.serving.following import Opening, follow, generate_whole
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.models import as_json
from qwen25vl.serving.ollama.ollama_lines import Lines, line, now
from qwen25vl.serving.ollama.ollama_wire import (
    OllamaChat,
    OllamaGenerate,
    OllamaRequest,
    chat_of,
    find_name,
    generate_of,
    own_names,
)
from qwen25vl.serving.opening import open_early
from qwen25vl.serving.reading import client_seconds, read_body
from qwen25vl.serving.sse import EventStream, unless_gone
from qwen25vl.serving.wire import ChatRequest

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

LINES = "application/x-ndjson"


async def create_ollama_chat(service: Service, request: Request) -> Any:
    body = await read_body(request, OllamaChat)
    if not body.messages:
        return loaded(service, body, is_chat=True)
    with renaming(own_names(body)):
        return await answer(service, request, body, chat_of(service, body), is_chat=True)


async def create_ollama_text(service: Service, request: Request) -> Any:
    body = await read_body(request, OllamaGenerate)
    if not (body.prompt or body.images):
        return loaded(service, body, is_chat=False)
    with renaming(own_names(body)):
        return await answer(service, request, body, generate_of(service, body), is_chat=False)


def loaded(service: Service, body: OllamaRequest, is_chat: bool) -> Response:
    """The reply to a request without a question: clients load and unload models by it."""
    find_name(service, body.model)
    reason = "unload" if body.keep_alive in (0, "0") else "load"
    part = Lines(body.model, is_chat, False).part("")
    return as_json({**part, "done": True, "done_reason": reason})


async def answer(
    service: Service, request: Request, body: OllamaRequest, chat: ChatRequest, is_chat: bool
) -> Any:
    lines = Lines(body.model, is_chat, bool(chat.logprobs))
    if body.stream is not False:
        opening = await open_early(open_chat(service, chat, None))
        return EventStream(stream(service, opening, lines), media_type=LINES)
    seconds = client_seconds(request)
    generation = await unless_gone(request, generate_whole(service, chat, seconds))
    state = generation.answers[0]
    assert state.end is not None
    return as_json(lines.whole(generation, state, state.end))


async def stream(service: Service, opening: Opening, lines: Lines) -> AsyncIterator[bytes]:
    """A line for each part. An empty part tells the client that somebody is there."""
    generation: Generation | None = None
    try:
        following = follow(service, opening, lines.has_logprobs)
        async with aclosing(following) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Generation):
                    generation = event
                elif event is None or generation is None:
                    yield line(lines.part(""))
                elif shown := lines.show(generation, event):
                    yield shown
    except Exception as error:
        service.report(error)
        yield line({**ollama_error(of_error(error)), "created_at": now()})

"""POST /v1/messages and /v1/messages/count_tokens"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from qwen25vl.serving.anthropic.messages_blocks import (
    PING,
    Blocks,
    message,
    named,
    stop_of,
    usage_of,
    whole_content,
)
from qwen25vl.serving.anthropic.messages_wire import (
    AnthropicRequest,
    AnthropicTokens,
    chat_of_message,
    own_names,
)
from qwen25vl.serving.chat import open_chat
from qwen25vl.serving.dialects import anthropic_error
from qwen25vl.serving.errors import of_error, renaming
from qwen25vl.serving.following import Opening, follow, generate_whole
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.models import as_json
from qwen25vl.serving.opening import open_early
from qwen25vl.serving.prompts import read_chat
from qwen25vl.serving.reading import client_seconds, read_body
from qwen25vl.serving.sse import KEEP_ALIVE, EventStream, event, unless_gone

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service


async def create_message(service: Service, request: Request) -> Any:
    body = await read_body(request, AnthropicRequest)
    chat = chat_of_message(body)
    if body.stream:
        with renaming(own_names(body)):
            opening = await open_early(open_chat(service, chat, None))
        return EventStream(stream(service, opening, body.model, request.scope))
    seconds = client_seconds(request)
    with renaming(own_names(body)):
        generation = await unless_gone(request, generate_whole(service, chat, seconds))
    answer = generation.answers[0]
    whole = message(new_id(), body.model, whole_content(answer), usage_of(generation))
    return as_json({**whole, **stop_of(answer)})


async def count_message_tokens(service: Service, request: Request) -> Response:
    body = await read_body(request, AnthropicTokens)
    chat = chat_of_message(body)
    service.find_adapter(chat.model)
    with renaming(own_names(body)):
        inputs = await unless_gone(request, read_chat(service, chat))
    return as_json({"input_tokens": int(inputs.input_ids.shape[-1])})


def new_id() -> str:
    return f"msg_{token_hex(12)}"


async def stream(
    service: Service, opening: Opening, model: str, scope: Scope
) -> AsyncIterator[bytes]:
    """The events of a message. Before its first one, only comments may be sent."""
    generation: Generation | None = None
    blocks = Blocks()
    try:
        async with aclosing(follow(service, opening)) as events:  # type: ignore[type-var]
            async for each in events:
                if isinstance(each, Generation):
                    generation = each
                    begun = message(new_id(), model, [], usage_of(generation))
                    yield named("message_start", message=begun)
                elif generation is None:
                    yield KEEP_ALIVE
                elif each is None:
                    yield PING
                else:
                    for part in blocks.show(generation, each):
                        yield part
    except Exception as error:
        service.report(error)
        yield event("error", anthropic_error(of_error(error), scope))

"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.models import as_json
from qwen25vl.serving.prompts import read_chat, read_text
from qwen25vl.serving.reading import read_body
from qwen25vl.serving.sse import unless_gone
from qwen25vl.serving.wire import ChatRequest, Text, TokenId, Wire

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service


class TokenizeRequest(ChatRequest):
    """A prompt, or messages; the tokens of pictures are counted."""

    messages: Annotated[list[dict[str, Any]], Field(max_length=4096, default_factory=list)]
    prompt: Text | None = None
    return_token_strs: bool | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(Wire):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]


async def tokenize(service: Service, request: Request) -> Response:
    body = await read_body(request, TokenizeRequest)
    if (body.prompt is None) == (not body.messages):
        raise ApiError(400, "Give either prompt or messages.", param="prompt")
    if body.prompt is not None:
        inputs = await asyncio.to_thread(read_text, service, body.prompt)
    else:
        inputs = await unless_gone(request, read_chat(service, body))
    tokens = inputs.input_ids[0].tolist()
    found = {"count": len(tokens), "max_model_len": service.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        found["token_strs"] = await asyncio.to_thread(spell_each, service, tokens)
    return as_json(found)


def spell_each(service: Service, tokens: list[int]) -> list[str]:
    tokenizer = service.vlm.processor.tokenizer
    return [tokenizer.decode([token]) for token in tokens]


async def detokenize(service: Service, request: Request) -> Response:
    body = await read_body(request, DetokenizeRequest)
    tokenizer = service.vlm.processor.tokenizer
    return as_json({"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens)})

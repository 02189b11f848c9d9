"""/tokenize, /detokenize, /tokenizer_info and /v1/chat/completions/render, as vLLM has them."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT
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


async def show_tokenizer(service: Service, _: Request) -> Response:
    """What clients that have no tokenizer of their own ask for: lm-evaluation-harness fills the
    template itself."""
    processor = service.vlm.processor
    tokenizer = processor.tokenizer
    return as_json(
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            **tokenizer.named_tokens,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "add_bos_token": False,
            "additional_special_tokens": [
                text for text, number in tokenizer.control_ids.items()
                if number in tokenizer.special_ids
            ],
            "vocab_size": tokenizer.bpe.get_vocab_size() + len(tokenizer.control_ids),
            "model_max_length": service.max_model_len,
            "max_model_len": service.max_model_len,
            "chat_template": processor.chat_template,
        }
    )  # fmt: skip


async def render_prompt(service: Service, request: Request) -> Response:
    """The prompt of a chat request, which is not answered: its text, with one slot for each picture
    and video, and its tokens."""
    body = await read_body(request, ChatRequest)
    service.find_adapter(body.model)
    inputs = await unless_gone(request, read_chat(service, body))
    tokenizer = service.vlm.processor.tokenizer
    tokens = inputs.input_ids[0].tolist()
    slots = [tokenizer.control_ids[slot] for slot in (IMAGE_SLOT, VIDEO_SLOT)]
    narrow = [
        token
        for token, run in groupby(tokens)
        for _ in ([token] if token in slots else run)
    ]  # fmt: skip
    return as_json(
        {
            "prompt": tokenizer.decode(narrow),
            "prompt_token_ids": tokens,
            "count": len(tokens),
            "max_model_len": service.max_model_len,
        }
    )

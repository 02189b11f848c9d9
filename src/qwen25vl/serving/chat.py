"""POST /v1/chat/completions"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.answer_events import (
    AnswerState,
    CallDelta,
    End,
    Event,
    TextDelta,
    TokenInfo,
    Waiting,
)
from qwen25vl.serving.constraints import calls_tools, start_constraint
from qwen25vl.serving.errors import of_error
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.logprobs import entry
from qwen25vl.serving.opening import abandon, open_early, open_inputs, paced, until_open
from qwen25vl.serving.prompt_logprobs import prompt_logprobs
from qwen25vl.serving.prompts import read_chat
from qwen25vl.serving.reading import client_seconds, read_body
from qwen25vl.serving.sampling import check_supported, refuse
from qwen25vl.serving.sse import DONE, KEEP_ALIVE, EventStream, data, to_json, unless_gone
from qwen25vl.serving.wire import ChatRequest

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service


async def create_chat(service: Service, request: Request) -> Any:
    body = await read_body(request, ChatRequest)
    check(body)
    seconds = client_seconds(request)
    if not body.stream:
        return await unless_gone(request, reply(service, body, seconds))
    opening = await open_early(open_chat(service, body, None))
    return EventStream(stream(service, body, opening))


def check(body: ChatRequest) -> None:
    """Raise ApiError for fields that exclude each other or that this server does not have."""
    check_supported(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("top_logprobs", "it needs logprobs: true")
    if body.max_tokens == 0 and body.max_completion_tokens is None:
        raise refuse("max_tokens", "it must be at least 1")
    if body.add_generation_prompt and body.continue_final_message:
        raise refuse("continue_final_message", "it excludes add_generation_prompt")


async def open_chat(service: Service, body: ChatRequest, seconds: float | None) -> Generation:
    """Prepare a request and put it into the queue. Raises ApiError and the package's errors."""
    service.find_adapter(body.model)
    start = await start_constraint(service, body)
    inputs = await read_chat(service, body)
    number = (body.top_logprobs or 0) if body.logprobs else 0
    generation = await open_inputs(service, body, inputs, number, seconds, start)
    if calls_tools(body):
        generation.expect_calls(is_end=not names_tool(body.tool_choice))
    return generation


def names_tool(choice: str | dict[str, Any] | None) -> bool:
    """Whether a request forces a call by its name: OpenAI ends these with "stop"."""
    return isinstance(choice, dict) and choice.get("type") != "allowed_tools"


async def reply(service: Service, body: ChatRequest, seconds: float | None) -> Response:
    """The whole answer at once."""
    whole = await complete(service, body, seconds)
    return Response(to_json(whole), media_type="application/json")


async def complete(service: Service, body: ChatRequest, seconds: float | None) -> dict[str, Any]:
    """A chat completion. Raises ApiError and the package's errors."""
    head = Head.of(service, body)
    generation = await open_chat(service, body, seconds)
    answers = await generation.finish()
    choices = [head.choice(generation, answer) for answer in answers]
    whole = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": generation.usage(),
        "timings": generation.timings(),
    }
    if body.return_token_ids:
        whole["prompt_token_ids"] = generation.prompt_ids
    if body.prompt_logprobs is not None:
        whole["prompt_logprobs"] = await asyncio.to_thread(
            prompt_logprobs, generation, body.prompt_logprobs
        )
    return whole


async def stream(
    service: Service, body: ChatRequest, opening: asyncio.Future[Generation]
) -> AsyncIterator[bytes]:
    """The answer as events. What goes wrong on the way is an event of its own, and then the end."""
    head = Head.of(service, body)
    keep_alive = service.settings.keep_alive_seconds
    try:
        async for _ in until_open(opening, keep_alive):
            yield KEEP_ALIVE
        generation = opening.result()
        for index in range(len(generation.answers)):
            delta: dict[str, Any] = {"role": "assistant", "content": ""}
            first = head.chunk(generation, index, delta)
            if body.return_token_ids:
                first["prompt_token_ids"] = generation.prompt_ids
            yield data(first)
        show = partial(head.show_each, generation)
        async for part in paced(generation.events(keep_alive), show, keep_alive):
            yield part or KEEP_ALIVE
        if head.includes_usage:
            usage = {"usage": generation.usage(), "timings": generation.timings()}
            yield data({**head.frame(), "choices": [], **usage})
        yield DONE
    except Exception as error:
        service.report(error)
        yield data(of_error(error).body())
    finally:
        abandon(opening)


@dataclass(frozen=True)
class Head:
    """What all parts of a reply have in common."""

    id: str
    created: int
    model: str
    body: ChatRequest
    service: Service
    finished: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, service: Service, body: ChatRequest) -> Head:
        name = body.model or service.settings.model_names[0]
        return cls(f"chatcmpl-{token_hex(12)}", int(time.time()), name, body, service)

    @property
    def includes_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.include_usage)

    @property
    def repeats_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.continuous_usage_stats)

    def frame(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }

    def chunk(
        self,
        generation: Generation,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        **ends: Any,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs}
        choice |= {"finish_reason": None, **ends}
        chunk = {**self.frame(), "choices": [choice]}
        if self.repeats_usage:
            chunk["usage"] = generation.usage()
        elif self.includes_usage:
            chunk["usage"] = None
        return chunk

    def show_each(self, generation: Generation, event: Event) -> list[bytes]:
        return [part] if (part := self.show(generation, event)) else []

    def show(self, generation: Generation, event: Event) -> bytes:
        """An event as part of the stream; b"" for one that shows nothing."""
        if isinstance(event, Waiting):
            if not self.body.return_progress:
                return b""
            progress = {"stage": event.stage, "done": event.done, "total": event.total}
            return data({**self.frame(), "choices": [], "progress": progress})
        if isinstance(event, End):
            own = generation.grounding(generation.answers[event.index])
            ends = {"finish_reason": event.reason, "stop_reason": event.detail, **own}
            return data(self.chunk(generation, event.index, {}, **ends))
        if isinstance(event, CallDelta):
            return data(self.chunk(generation, event.index, {"tool_calls": [call_delta(event)]}))
        return self.show_text(generation, event)

    def show_text(self, generation: Generation, event: TextDelta) -> bytes:
        body = self.body
        if not (event.text or body.logprobs or body.return_token_ids):
            return b""
        logprobs = self.logprobs(generation, event.tokens)
        ends = {}
        if body.return_token_ids:
            ends["token_ids"] = [info.token for info in event.tokens]
        chunk = self.chunk(generation, event.index, {"content": event.text}, logprobs, **ends)
        return data(chunk)

    def logprobs(
        self, generation: Generation, tokens: Iterable[TokenInfo]
    ) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        as_ids = bool(self.body.return_tokens_as_token_ids)
        each = [entry(generation.tokenizer, info, as_ids) for info in tokens]
        return {"content": each, "refusal": None}

    def choice(self, generation: Generation, answer: AnswerState) -> dict[str, Any]:
        """A whole answer."""
        assert answer.end is not None
        logprobs = self.logprobs(generation, answer.tokens)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        message |= {"refusal": None, "annotations": []}
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        choice = {
            "index": answer.index,
            "message": {**message, **generation.grounding(answer)},
            "logprobs": logprobs,
            "finish_reason": answer.end.reason,
            "stop_reason": answer.end.detail,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = [info.token for info in answer.tokens]
        return choice


def call_delta(event: CallDelta) -> dict[str, Any]:
    """Clients join the parts of a call as texts: its id and name are sent once."""
    if event.id is None:
        return {"index": event.number, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.number, "id": event.id, "type": "function", "function": function}

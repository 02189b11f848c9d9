"""Answers as Anthropic's messages: blocks of text and of tool uses, whole or in events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen25vl.serving.answer_events import AnswerState, CallDelta, End, Event, TextDelta
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.sse import event


def named(name: str, **values: Any) -> bytes:
    return event(name, {"type": name, **values})


PING = named("ping")


def message(
    id: str, model: str, content: list[dict[str, Any]], usage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": usage,
    }


def whole_content(answer: AnswerState) -> list[dict[str, Any]]:
    """The blocks of an answer, at least one. Of a call that was cut off, the input is empty."""
    text = text_block(answer.text)
    calls = [use_block(call.id, call.name, read_input(call.arguments)) for call in answer.calls]
    return [text, *calls] if answer.text or not calls else calls


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def use_block(id: str, name: str, given: Any) -> dict[str, Any]:
    """A call. caller: the model itself, not a program that it wrote."""
    caller = {"type": "direct"}
    return {"type": "tool_use", "id": id, "name": name, "input": given, "caller": caller}


def read_input(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return {}


def stop_of(answer: AnswerState) -> dict[str, Any]:
    """Why an answer ended."""
    end = answer.end
    assert end is not None
    if end.reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if answer.calls or end.reason == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(end.detail, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": end.detail}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def usage_of(generation: Generation) -> dict[str, Any]:
    """What was reused of a prompt is counted apart from the rest of it; null is what only
    Anthropic's own servers have."""
    usage, cached = generation.usage(), generation.job.num_cached
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": None,
        "cache_creation": None,
        "inference_geo": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }


@dataclass
class Blocks:
    """The events of one answer's blocks. index: of the block that is open, or of the next; kind:
    "text" or "tool_use" of the open one."""

    index: int = 0
    kind: str | None = None

    def show(self, generation: Generation, event: Event) -> Iterator[bytes]:
        if isinstance(event, TextDelta) and event.text:
            if self.kind != "text":
                yield from self.begin(text_block(""))
            yield self.grow({"type": "text_delta", "text": event.text})
        elif isinstance(event, CallDelta):
            if event.id is not None:
                yield from self.begin(use_block(event.id, event.name or "", {}))
            if event.arguments or event.id is not None:
                yield self.grow({"type": "input_json_delta", "partial_json": event.arguments})
        elif isinstance(event, End):
            if self.index == 0 and self.kind is None:
                yield from self.begin(text_block(""))
            yield from self.end()
            stop = stop_of(generation.answers[event.index])
            delta = {**stop, "stop_details": None, "container": None}
            yield named("message_delta", delta=delta, usage=usage_of(generation))
            yield named("message_stop")

    def begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        is_first = self.index == 0 and self.kind is None
        yield from self.end()
        self.kind = block["type"]
        yield named("content_block_start", index=self.index, content_block=block)
        if is_first:
            yield PING

    def grow(self, delta: dict[str, Any]) -> bytes:
        return named("content_block_delta", index=self.index, delta=delta)

    def end(self) -> Iterator[bytes]:
        if self.kind is not None:
            yield named("content_block_stop", index=self.index)
            self.kind = None
            self.index += 1

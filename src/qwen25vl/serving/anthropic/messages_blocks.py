"""Answers as Anthropic's messages: blocks of text and of tool uses, whole or in events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen25vl.serving.generation import AnswerState, CallDelta, End, Event, Generation, TextDelta
from qwen25vl.serving.sse import event


def named(name: str, **values: Any) -> bytes:
    return event(name, {"type": name, **values})


PING = named("ping")


def message(
    id: str, model: str, content: list[dict[str, Any]], usage: dict[str, int]
) -> dict[str, Any]:
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def whole_content(answer: AnswerState) -> list[dict[str, Any]]:
    """The blocks of an answer, at least one. Of a call that was cut off, the input is empty."""
    text = {"type": "text", "text": answer.text}
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": read_input(call.arguments)}
        for call in answer.calls
    ]
    return [text, *calls] if answer.text or not calls else calls


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


def usage_of(generation: Generation) -> dict[str, int]:
    """What was reused of a prompt is counted apart from the rest of it."""
    usage, cached = generation.usage(), generation.job.num_cached
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
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
                yield from self.begin({"type": "text", "text": ""})
            yield self.grow({"type": "text_delta", "text": event.text})
        elif isinstance(event, CallDelta):
            if event.id is not None:
                called = {"type": "tool_use", "id": event.id, "name": event.name}
                yield from self.begin({**called, "input": {}})
            if event.arguments or event.id is not None:
                yield self.grow({"type": "input_json_delta", "partial_json": event.arguments})
        elif isinstance(event, End):
            if self.index == 0 and self.kind is None:
                yield from self.begin({"type": "text", "text": ""})
            yield from self.end()
            stop = stop_of(generation.answers[event.index])
            yield named("message_delta", delta=stop, usage=usage_of(generation))
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

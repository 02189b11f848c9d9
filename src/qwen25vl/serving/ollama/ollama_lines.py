"""Answers as lines of JSON, in Ollama's words. Durations are in nanoseconds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qwen25vl.serving.answer_events import AnswerState, CallDelta, End, Event, TextDelta
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.logprobs import entry
from qwen25vl.serving.sse import to_json

REASONS = {"length": "length"}  # every other end is "stop"


def line(value: dict[str, Any]) -> bytes:
    return to_json(value) + b"\n"


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


@dataclass
class Lines:
    """The lines of one reply. is_chat: with messages, where /api/generate has plain texts.
    call: the arguments of the call that is being written, and its name."""

    model: str
    is_chat: bool
    has_logprobs: bool
    start: float = field(default_factory=time.monotonic)
    name: str | None = None
    arguments: str = ""

    def part(self, text: str, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        head: dict[str, Any] = {"model": self.model, "created_at": now()}
        if not self.is_chat:
            return {**head, "response": text, "done": False}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = calls
        return {**head, "message": message, "done": False}

    def show(self, generation: Generation, event: Event) -> bytes:
        """An event as lines; b"" for one that shows nothing yet. A call is shown once it is whole:
        clients want its arguments as an object."""
        if isinstance(event, TextDelta):
            part = self.part(event.text)
            if self.has_logprobs:
                part["logprobs"] = [entry(generation.tokenizer, each) for each in event.tokens]
            return line(part)
        if isinstance(event, CallDelta):
            shown = b"" if event.id is None else self.finish_call()
            self.name = event.name or self.name
            self.arguments += event.arguments
            return shown
        if isinstance(event, End):
            return self.finish_call() + line(self.end(generation, event, self.part("")))
        return b""

    def finish_call(self) -> bytes:
        call = as_call(self.name, self.arguments)
        self.name, self.arguments = None, ""
        return line(self.part("", [call])) if call else b""

    def whole(self, generation: Generation, answer: AnswerState, end: End) -> dict[str, Any]:
        """An answer in one object."""
        calls = [as_call(call.name, call.arguments) for call in answer.calls]
        part = self.part(answer.text, [call for call in calls if call])
        if self.has_logprobs:
            part["logprobs"] = [entry(generation.tokenizer, each) for each in answer.tokens]
        return self.end(generation, end, part)

    def end(self, generation: Generation, end: End, part: dict[str, Any]) -> dict[str, Any]:
        """The last line: what was not spent on reading and writing was spent on getting ready."""
        timings, usage = generation.timings(), generation.usage()
        total = time.monotonic() - self.start
        read, written = timings["vision"] + timings["prefill"], timings["decode"]
        return {
            **part,
            "done": True,
            "done_reason": REASONS.get(end.reason, "stop"),
            "total_duration": nanoseconds(total),
            "load_duration": nanoseconds(total - read - written),
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": nanoseconds(read),
            "eval_count": usage["completion_tokens"],
            "eval_duration": nanoseconds(written),
        }


def as_call(name: str | None, arguments: str) -> dict[str, Any] | None:
    """A call with its arguments as an object; None for one that was cut off, which its reader
    learns from done_reason."""
    try:
        read = json.loads(arguments or "{}")
    except ValueError:
        return None
    return {"function": {"name": name, "arguments": read}} if name else None

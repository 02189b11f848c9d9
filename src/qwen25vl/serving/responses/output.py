"""The items of a response as an answer grows, and the events that tell of them.

output_item.added  content_part.added  output_text.delta …  output_text.done
content_part.done  output_item.done                                          of a message
output_item.added  function_call_arguments.delta …  .done  output_item.done  of a call
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from qwen25vl.serving.answer_events import CallDelta, End, Event, TextDelta, TokenInfo
from qwen25vl.serving.logprobs import entry

if TYPE_CHECKING:
    from qwen25vl.processing.tokenizer import Tokenizer

Payload = dict[str, Any]


@dataclass
class Output:
    """items: of the response so far, the open one last. shows_logprobs: whether tokens come with
    their log-probabilities. blank: white space that is shown only if more text follows. waiting:
    tokens whose text is held back."""

    tokenizer: Tokenizer
    shows_logprobs: bool = False
    items: list[Payload] = field(default_factory=list)
    blank: str = ""
    waiting: list[Payload] = field(default_factory=list)
    end: End | None = None

    @property
    def open_item(self) -> Payload | None:
        last = self.items[-1] if self.items else None
        return last if last is not None and last["status"] == "in_progress" else None

    def take(self, event: Event) -> list[Payload]:
        """What an event of the answer means, as events of the stream without their numbers."""
        if isinstance(event, TextDelta):
            return self.write(event.text, event.tokens)
        if isinstance(event, CallDelta):
            return self.call(event)
        if isinstance(event, End):
            return self.finish(event)
        return []

    def write(self, text: str, tokens: Iterable[TokenInfo]) -> list[Payload]:
        if self.shows_logprobs:
            self.waiting += [entry(self.tokenizer, info) for info in tokens]
        item = self.open_item
        is_message = item is not None and item["type"] == "message"
        if not is_message and not text.strip():
            self.blank += text  # between two calls, or before the first: no message of its own
            return []
        if not text:
            return []
        events = [] if is_message else [*self.close("completed"), *self.open_message()]
        text, self.blank = self.blank + text, ""
        item = self.items[-1]
        part = item["content"][0]
        part["text"] += text
        logprobs, self.waiting = self.waiting, []
        part["logprobs"] += logprobs
        place = self.place(item, content_index=0)
        shown = [without_bytes(each) for each in logprobs]
        return [*events, named("output_text.delta", **place, delta=text, logprobs=shown)]

    def call(self, event: CallDelta) -> list[Payload]:
        events: list[Payload] = []
        if event.id is not None:
            self.blank, self.waiting = "", []
            events += self.close("completed")
            item = {
                "id": f"fc_{token_hex(16)}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": event.id,
                "name": event.name or "",
                "arguments": "",
            }
            self.items.append(item)
            events.append(self.added(item))
        if event.arguments:
            item = self.items[-1]
            item["arguments"] += event.arguments
            place = self.place(item)
            events.append(named("function_call_arguments.delta", **place, delta=event.arguments))
        return events

    def finish(self, end: End) -> list[Payload]:
        """Close what is open; an answer without anything is an empty message."""
        self.end = end
        events: list[Payload] = []
        if not self.items:
            events += self.open_message()
            if self.blank:
                events += self.write_blank()
        return events + self.close("incomplete" if end.reason == "length" else "completed")

    def write_blank(self) -> list[Payload]:
        text, self.blank = self.blank, ""
        self.items[-1]["content"][0]["text"] = text
        place = self.place(self.items[-1], content_index=0)
        return [named("output_text.delta", **place, delta=text, logprobs=[])]

    def open_message(self) -> list[Payload]:
        item: Payload = {
            "id": f"msg_{token_hex(16)}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self.items.append(item)
        added = self.added(item)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"] = [part]
        place = self.place(item, content_index=0)
        return [added, named("content_part.added", **place, part=copy_of(part))]

    def close(self, status: str) -> list[Payload]:
        """The end of the open item, if there is one."""
        item = self.open_item
        if item is None:
            return []
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            part["logprobs"] += self.waiting
            self.waiting = []
            place = self.place(item, content_index=0)
            shown = [without_bytes(each) for each in part["logprobs"]]
            events = [
                named("output_text.done", **place, text=part["text"], logprobs=shown),
                named("content_part.done", **place, part=copy_of(part)),
            ]
        else:
            place = self.place(item)
            given = {"name": item["name"], "arguments": item["arguments"]}
            events = [named("function_call_arguments.done", **place, **given)]
        place = {"output_index": len(self.items) - 1}
        return [*events, named("output_item.done", **place, item=copy_of(item))]

    def added(self, item: Payload) -> Payload:
        place = {"output_index": len(self.items) - 1}
        return named("output_item.added", **place, item=copy_of(item))

    def place(self, item: Payload, **inner: int) -> Payload:
        return {"item_id": item["id"], "output_index": len(self.items) - 1, **inner}


def named(kind: str, **values: Any) -> Payload:
    return {"type": f"response.{kind}", **values}


def copy_of(value: Payload) -> Payload:
    """As it is now: an event that waits to be sent must not show what came after it."""
    copied = dict(value)
    for name, each in copied.items():
        if isinstance(each, list):
            copied[name] = [copy_of(one) if isinstance(one, dict) else one for one in each]
    return copied


def without_bytes(logprob: Payload) -> Payload:
    """Of a token as the events of a stream have it."""
    best = [{"token": e["token"], "logprob": e["logprob"]} for e in logprob["top_logprobs"]]
    return {"token": logprob["token"], "logprob": logprob["logprob"], "top_logprobs": best}

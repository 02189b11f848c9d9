"""Items of a response's input: as they are kept and listed, and as messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from qwen25vl.serving.errors import ApiError

CALLS = ("function_call", "custom_tool_call")
OUTPUTS = ("function_call_output", "custom_tool_call_output")
KINDS = ("message", *CALLS, *OUTPUTS, "reasoning")
PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}
Item = dict[str, Any]


def read_input(given: str | Sequence[Mapping[str, Any]] | None) -> list[Item]:
    """The input of a request as items with ids. Raises ApiError for what is none."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [read_item(item, f"input[{place}]") for place, item in enumerate(given or ())]


def read_item(given: Mapping[str, Any], param: str) -> Item:
    kind = given.get("type") or ("message" if "role" in given else None)
    if kind not in KINDS:
        known = ", ".join(KINDS)
        message = f"{param}.type: items of this type are not supported; known are {known}."
        raise ApiError(400, message, param=f"{param}.type", code="unsupported_value")
    item: Item = {name: value for name, value in given.items() if value is not None}
    needed = {"message": "role", **dict.fromkeys(CALLS, "name"), **dict.fromkeys(OUTPUTS, "output")}
    if (name := needed.get(kind)) and name not in item:
        message = f"Missing required parameter: '{param}.{name}'."
        raise ApiError(400, message, param=f"{param}.{name}", code="missing_required_parameter")
    item |= {"type": kind, "id": item.get("id") or f"{PREFIXES[kind]}_{token_hex(16)}"}
    if kind == "message":
        item["content"] = list_parts(item["role"], item.get("content"))
    if kind != "reasoning":
        item.setdefault("status", "completed")
    return item


def list_parts(role: Any, content: Any) -> Any:
    """A text as the list of parts that it stands for; parts of the chat route keep their shape."""
    if not isinstance(content, str):
        return content
    if role == "assistant":
        return [{"type": "output_text", "text": content, "annotations": [], "logprobs": []}]
    return [{"type": "input_text", "text": content}]


@dataclass
class Messages:
    """A conversation for the chat route. origins: for each message, what the request calls it."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)

    def add(self, item: Item, origin: str) -> None:
        """Append an item. What the assistant said and called at once is one message, as it was when
        it was written."""
        kind = item["type"]
        if kind == "message":
            content = plain_content(item["role"], item.get("content"))
            self.append({"role": item["role"], "content": content}, origin)
        elif kind in OUTPUTS:
            message = {"role": "tool", "content": item["output"]}
            self.append(message | named(item, "call_id", "tool_call_id"), origin)
        elif kind in CALLS:
            if not self.messages or self.messages[-1]["role"] != "assistant":
                self.append({"role": "assistant", "content": ""}, origin)
            self.messages[-1].setdefault("tool_calls", []).append(as_call(item))

    def append(self, message: dict[str, Any], origin: str) -> None:
        self.messages.append(message)
        self.origins.append(origin)

    def turns(self) -> list[int]:
        """Where the turns of the conversation begin: each with a message of the user."""
        return [place for place, each in enumerate(self.messages) if each["role"] == "user"]

    def without(self, number: int) -> Messages:
        """The same without the first turns, but with all instructions."""
        stop = self.turns()[number] if number else 0
        kept = Messages()
        for place, (message, origin) in enumerate(zip(self.messages, self.origins, strict=True)):
            if place >= stop or message["role"] in ("system", "developer"):
                kept.append(message, origin)
        return kept

    def rename(self, param: str | None) -> str | None:
        """The place in the request that a place in the messages, `messages[3].content`, is of."""
        if param is None or not param.startswith("messages["):
            return "input" if param == "messages" else param
        number, _, rest = param.removeprefix("messages[").partition("]")
        if not number.isdigit() or int(number) >= len(self.origins):
            return "input"
        origin = self.origins[int(number)]
        return origin + rest if origin.startswith("input") else origin


def plain_content(role: str, content: Any) -> Any:
    """The content of one text as this text, which some templates treat otherwise than a list."""
    if role == "assistant" and isinstance(content, list) and len(content) == 1:
        part = content[0]
        if isinstance(part, Mapping) and part.get("type") == "output_text":
            return part.get("text", "")
    return content


def as_call(item: Item) -> dict[str, Any]:
    if item["type"] == "custom_tool_call":
        return {"type": "custom", "custom": {"name": item["name"], "input": item.get("input", "")}}
    function = {"name": item["name"], "arguments": item.get("arguments", "{}")}
    return {"type": "function", "function": function, **named(item, "call_id", "id")}


def named(item: Item, key: str, name: str) -> dict[str, Any]:
    return {name: item[key]} if item.get(key) else {}

"""Replies against the types of OpenAI's Python client, more strictly than the client itself.

The client builds objects without looking at them. Here every value has the type that is declared,
nested objects included, and a field that OpenAI's specification requires is there, even if the
client's type would do without.
"""

from typing import Any

from openai import types
from openai.types import chat, responses
from pydantic import TypeAdapter

# what the specification requires beside what the client's types do
REQUIRED = {
    "text_completion": ("id", "object", "created", "model", "choices"),
    "response": (
        *("id", "object", "created_at", "error", "incomplete_details", "instructions", "model"),
        *("tools", "output", "parallel_tool_calls", "metadata", "tool_choice", "temperature"),
        *("top_p", "status", "text", "truncation", "previous_response_id"),
    ),
    "output_text": ("type", "text", "annotations", "logprobs"),
    "message": ("id", "type", "role", "content", "status"),
    "function_call": ("id", "type", "call_id", "name", "arguments", "status"),
    "function": ("type", "name", "parameters", "strict"),
}
KINDS: dict[str, Any] = {
    "text_completion": types.Completion,
    "chat.completion": chat.ChatCompletion,
    "chat.completion.chunk": chat.ChatCompletionChunk,
    "response": responses.Response,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(responses.ResponseStreamEvent)


def check_reply(value: dict[str, Any]) -> None:
    """A whole reply, or a chunk of a stream of chat or of text completions."""
    kind = value["object"]
    shown = without_nulls(value) if kind == "text_completion" else value
    KINDS[kind].model_validate(shown, strict=True)
    check_required(value)
    assert isinstance(value.get("created", 0), int)
    if kind == "response":
        has_usage = value["status"] in ("completed", "incomplete")
        assert (value["usage"] is not None) == has_usage
    for choice in value.get("choices", ()):
        assert choice["finish_reason"] in (None, "stop", "length", "tool_calls", "content_filter")
        assert "logprobs" in choice
    if kind == "text_completion" and "usage" in value and value["usage"] is not None:
        types.CompletionUsage.model_validate(value["usage"], strict=True)


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """A text completion without what OpenAI sends although its types have no room for it: no end
    yet in a part of a stream, and nothing known of the first token of a prompt."""
    choices = []
    for choice in value["choices"]:
        lists = dict(choice["logprobs"] or {})
        for name in ("token_logprobs", "top_logprobs"):
            if lists.get(name, [0])[:1] == [None]:
                lists[name] = lists[name][1:]
        end = choice["finish_reason"] or "stop"
        choices.append({**choice, "finish_reason": end, "logprobs": lists or None})
    return {**value, "choices": choices}


def check_required(value: Any) -> None:
    if isinstance(value, list):
        for each in value:
            check_required(each)
    if not isinstance(value, dict):
        return
    for name in REQUIRED.get(value.get("object") or value.get("type") or "", ()):
        assert name in value, f"{name} is missing in {value}"
    for each in value.values():
        check_required(each)


def check_event(value: dict[str, Any]) -> None:
    """An event of a stream of /v1/responses."""
    event = EVENTS.validate_python(value, strict=True)
    assert event.type == value["type"]
    if "response" in value:
        check_reply(value["response"])
    for name in ("item", "part"):
        if name in value:
            check_required(value[name])
    if value["type"] == "response.function_call_arguments.done":
        assert value["name"]

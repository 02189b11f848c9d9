"""A request for a response as a request of the chat route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.responses.items import Item, Messages
from qwen25vl.serving.responses.store import Stored
from qwen25vl.serving.responses.wire import ResponsesRequest
from qwen25vl.serving.sampling import check_supported, refuse
from qwen25vl.serving.wire import ChatRequest, SamplingFields

UNSUPPORTED = ("background", "conversation", "prompt")
OF_OTHER_ROUTES = {
    "logprobs": 'ask to include ["message.output_text.logprobs"]',
    "prompt_logprobs": "ask /v1/completions",
    "response_format": "send text.format",
    "return_token_ids": "ask /v1/chat/completions",
}
SHARED = (*SamplingFields.model_fields, "parallel_tool_calls", "top_logprobs",
          "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs")  # fmt: skip


def check(body: ResponsesRequest) -> None:
    """Raise ApiError for what this server does not have."""
    check_supported(body)
    for name in UNSUPPORTED:
        if getattr(body, name) not in (None, False):
            message = f"{name} is not supported by this server."
            raise ApiError(400, message, param=name, code="unsupported_value")
    if (body.n or 1) > 1:
        raise refuse("n", "a response is one answer")
    for name, instead in OF_OTHER_ROUTES.items():
        given = {**vars(body), **(body.model_extra or {})}.get(name)
        if given is not None and given is not False:
            raise refuse(name, f"a response has none; {instead}")
    if not body.input and body.previous_response_id is None:
        message = "Missing required parameter: 'input'."
        raise ApiError(400, message, param="input", code="missing_required_parameter")


def read_history(
    body: ResponsesRequest, chain: Sequence[Stored], items: Sequence[Item]
) -> Messages:
    """The conversation so far. Instructions are those of this request alone."""
    found = Messages()
    if body.instructions:
        found.append({"role": "system", "content": body.instructions}, "instructions")
    for each in chain:
        for item in (*each.items, *each.reply["output"]):
            found.add(item, "previous_response_id")
    for place, item in enumerate(items):
        found.add(item, f"input[{place}]")
    if not found.messages:
        raise refuse("input", "it has no messages")
    return found


def as_chat(body: ResponsesRequest, messages: Sequence[dict[str, Any]]) -> ChatRequest:
    """The same request for the chat route. An answer that an assistant's message begins is never
    continued: each response is an item of its own."""
    fields = {name: getattr(body, name) for name in SHARED}
    fields |= {
        "messages": list(messages),
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": True if body.shows_logprobs else None,
        "response_format": read_format(body),
        "add_generation_prompt": True,
        "stream": None,
        "stream_options": None,
        **read_tools(body),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return ChatRequest.model_construct(**given)


def read_format(body: ResponsesRequest) -> dict[str, Any] | None:
    """`text.format` as the chat route's `response_format`, where it says more than text."""
    given = body.text.format if body.text is not None else None
    kind = (given or {}).get("type", "text")
    if given is None or kind == "text":
        return None
    if kind == "json_schema":
        names = ("name", "description", "schema", "strict")
        inner = {name: given[name] for name in names if given.get(name) is not None}
        return {"type": kind, "json_schema": inner}
    return given


def read_tools(body: ResponsesRequest) -> dict[str, Any]:
    """tools and tool_choice. A choice of allowed tools leaves the others out."""
    tools = [read_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "allowed_tools":
            allowed = read_allowed(choice.get("tools"))
            tools = [tool for tool in tools if tool["function"]["name"] in allowed]
            choice = choice.get("mode", "auto")
        elif kind == "function":
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        else:
            raise unsupported("tool_choice.type", kind)
    return {"tools": tools or None, "tool_choice": choice}


def read_allowed(tools: Any) -> list[str]:
    """The names of the tools that a choice allows."""
    if not isinstance(tools, list):
        raise refuse("tool_choice.tools", "it is no list of tools")
    for number, tool in enumerate(tools):
        if not (isinstance(tool, dict) and isinstance(tool.get("name"), str)):
            raise refuse(f"tool_choice.tools[{number}]", "it is no object with the name of a tool")
    return [tool["name"] for tool in tools]


def read_tool(tool: dict[str, Any], param: str) -> dict[str, Any]:
    """A function of the Responses API, which is flat, as one of the chat route."""
    if tool.get("type") != "function":
        raise unsupported(f"{param}.type", tool.get("type"))
    if not isinstance(tool.get("name"), str):
        message = f"Missing required parameter: '{param}.name'."
        raise ApiError(400, message, param=f"{param}.name", code="missing_required_parameter")
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def unsupported(param: str, kind: Any) -> ApiError:
    message = f"{param}: {str(kind)[:40]!r} is not supported by this server, only functions are."
    return ApiError(400, message, param=param, code="unsupported_value")

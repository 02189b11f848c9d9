"""The requests of Anthropic's Messages API, and what they are in OpenAI's words.

The contents of messages pass as they are: blocks of pictures, documents, tool uses and their
results are read where all messages are.
"""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Field

from qwen25vl.serving.following import as_chat
from qwen25vl.serving.sampling import refuse
from qwen25vl.serving.wire import ChatRequest, StopString, Text, Wire

OWN = ("seed", "min_p", "repetition_penalty", "cache_salt", "mm_processor_kwargs", "priority")
"""Fields of this server that Anthropic's API does not have; its clients send them as extra ones."""
REFUSED_HERE = ("mcp_servers", "container")
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class AnthropicMessage(Wire):
    role: Literal["user", "assistant", "system"]
    content: Text | list[dict[str, Any]]


class AnthropicTool(Wire):
    """type: of the tools that Anthropic itself runs or knows; a client's own is "custom"."""

    name: Annotated[str, Field(min_length=1)]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class AnthropicChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class AnthropicTokens(Wire):
    """POST /v1/messages/count_tokens"""

    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=4096)]
    system: Text | list[dict[str, Any]] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: AnthropicChoice | None = None
    output_config: dict[str, Any] | None = None


class AnthropicRequest(AnthropicTokens):
    """POST /v1/messages"""

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None


def chat_of_message(body: AnthropicTokens) -> ChatRequest:
    """Raises ApiError for what this server does not have."""
    extra = body.model_extra or {}
    for name in REFUSED_HERE:
        if extra.get(name):
            raise refuse(name, "it is not supported by this server")
    choice = body.tool_choice
    fields: dict[str, Any] = {name: extra.get(name) for name in OWN}
    fields |= {
        "model": body.model,
        "messages": [*system_of(body), *combine(body.messages)],
        "tools": [as_tool(tool, number) for number, tool in enumerate(body.tools or ())] or None,
        "tool_choice": as_choice(choice) if choice and body.tools else None,
        "response_format": as_format(body.output_config),
    }
    if choice and choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    if isinstance(body, AnthropicRequest):
        same = ("max_tokens", "temperature", "top_p", "top_k")
        fields |= {name: getattr(body, name) for name in same}
        fields["stop"] = body.stop_sequences or None
    return as_chat(fields)


def system_of(body: AnthropicTokens) -> list[dict[str, Any]]:
    for number, block in enumerate(body.system if isinstance(body.system, list) else ()):
        if block.get("type") == "text" and not isinstance(block.get("text"), str):
            raise refuse(f"system[{number}].text", "expected a text")
    return [{"role": "system", "content": body.system}] if body.system else []


def combine(messages: list[AnthropicMessage]) -> list[dict[str, Any]]:
    """Neighbours of one role are one turn, as Anthropic says."""
    found: list[dict[str, Any]] = []
    for role, group in groupby(messages, lambda message: message.role):
        contents = [message.content for message in group]
        if len(contents) == 1:
            found.append({"role": role, "content": contents[0]})
            continue
        blocks = [block for content in contents for block in as_blocks(content)]
        found.append({"role": role, "content": blocks})
    return found


def own_names(body: AnthropicTokens) -> dict[str, str]:
    """From fields of the chat request to those of this one. A turn that was put together has the
    name of its first message."""
    names = {"response_format.json_schema": "output_config.format", "stop": "stop_sequences"}
    names["response_format"] = "output_config.format"
    places, number = ["system"] if body.system else [], 0
    for _, group in groupby(body.messages, lambda message: message.role):
        places.append(f"messages[{number}]")
        number += len([*group])
    return names | {f"messages[{place}]": name for place, name in enumerate(places)}


def as_blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def as_tool(tool: AnthropicTool, number: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        what = f"{tool.type[:60]} is known to Anthropic's models only; describe it by input_schema"
        raise refuse(f"tools[{number}].type", what)
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema or {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def as_choice(choice: AnthropicChoice) -> str | dict[str, Any]:
    if choice.type != "tool":
        return CHOICES[choice.type]
    if not choice.name:
        raise refuse("tool_choice.name", "it is missing")
    return {"type": "function", "function": {"name": choice.name}}


def as_format(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema of an answer; how much effort is asked for says nothing here."""
    wanted = (config or {}).get("format")
    if not wanted:
        return None
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        raise refuse("output_config.format", "expected one of the type json_schema")
    described = {"name": "answer", "schema": wanted.get("schema")}
    return {"type": "json_schema", "json_schema": described}

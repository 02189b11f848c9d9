"""Which tools an answer may call, and how often: from what clients send to a `Constraint`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen25vl.arguments import outline
from qwen25vl.errors import SchemaError
from qwen25vl.structured.constraints import Constraint, describe, to_json
from qwen25vl.structured.limits import MAX_TOOLS, MAX_TOOLS_BYTES, check_json, check_size
from qwen25vl.structured.schema import SchemaReader

Mode = Literal["none", "auto", "required"]
MAX_NAME = 128  # letters
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """strict: whether the client insists that arguments follow the schema; else they do where the
    schema can be compiled."""

    name: str
    parameters: Any = field(default_factory=lambda: NO_ARGUMENTS)
    strict: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """mode: whether an answer calls no tool, may call, or does nothing else; name: of the only tool
    that it calls, once; names: of those that it may call, where not all."""

    mode: Mode = "auto"
    name: str | None = None
    names: tuple[str, ...] | None = None


def read_tools(tools: Any) -> list[Tool]:
    """Tools as OpenAI's two APIs, Anthropic's and MCP describe them. Raises SchemaError."""
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise SchemaError(f"tools are {outline(tools)}; expected a list of tools")
    if len(tools) > MAX_TOOLS:
        raise SchemaError(f"{len(tools)} tools are given; the limit is {MAX_TOOLS}")
    read = [read_tool(tool, f"tool {number}") for number, tool in enumerate(tools, start=1)]
    names = [tool.name for tool in read]
    if len(set(names)) < len(names):
        raise SchemaError(f"two tools have the name {max(names, key=names.count)!r}")
    return read


def read_tool(tool: Any, where: str) -> Tool:
    values = tool.get("function", tool) if isinstance(tool, Mapping) else tool
    if not isinstance(values, Mapping) or not isinstance(name := values.get("name"), str):
        wanted = "expected {'type': 'function', 'function': {'name': …, 'parameters': …}}"
        raise SchemaError(f"{where} is {outline(tool)}; {wanted}")
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise SchemaError(f"{where} has the name {name!r:.80}; expected 1 to {MAX_NAME} letters")
    found = [values.get(key) for key in ("parameters", "input_schema", "inputSchema")]
    parameters = next((each for each in found if each is not None), NO_ARGUMENTS)
    return Tool(name, parameters, bool(values.get("strict")))


def read_tool_choice(choice: Any) -> ToolChoice:
    """none, auto, required (also "any"), or one function, as OpenAI's two APIs spell it."""
    modes: dict[str, Mode] = {"none": "none", "auto": "auto", "required": "required"}
    modes["any"] = "required"
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str) and choice in modes:
        return ToolChoice(modes[choice])
    if isinstance(choice, Mapping):
        kind = choice.get("type", "function")
        if isinstance(kind, str) and kind in modes:  # Anthropic's
            return ToolChoice(modes[kind])
        named = choice.get("function", choice)
        name = named.get("name") if isinstance(named, Mapping) else None
        if kind in ("function", "tool") and isinstance(name, str):
            return ToolChoice("required", name)
        inner = choice.get("allowed_tools", choice)
        if kind == "allowed_tools" and isinstance(inner, Mapping):
            names = [tool.name for tool in read_tools(inner.get("tools"))]
            return ToolChoice(read_tool_choice(inner.get("mode")).mode, None, tuple(names))
    wanted = '"none", "auto", "required" or {"type": "function", "function": {"name": …}}'
    raise SchemaError(f"tool_choice is {outline(choice)}; expected {wanted}")


def tool_constraint(tools: Any, tool_choice: Any = None, *, parallel: bool = True) -> Constraint:
    """What an answer follows that may call tools.

    It is free text, in which nothing but a whole call may follow <tool_call>. Its arguments follow
    the tool's schema. A schema that cannot be compiled is refused if its tool is strict; else any
    object may stand there. parallel: whether there may be several calls.

    Raises SchemaError.
    """
    read, choice = read_tools(tools), read_tool_choice(tool_choice)
    wanted = (choice.name,) if choice.name is not None else choice.names
    if wanted is not None:
        known = {tool.name for tool in read}
        if strange := [name for name in wanted if name not in known]:
            raise SchemaError(f"tool_choice names {strange[0]!r}, which is not among the tools")
        read = [tool for tool in read if tool.name in wanted]
    if not read and choice.mode == "required":
        raise SchemaError('tool_choice is "required", but there are no tools')
    definitions: dict[str, Any] = {}
    calls = [read_call(tool, number, definitions) for number, tool in enumerate(read)]
    content = {
        "mode": choice.mode if read else "none",
        "max_calls": 1 if choice.name is not None or not parallel else None,
        "calls": calls,
        "definitions": definitions,
    }
    text = to_json(content)
    check_size(text, "what the tools take", MAX_TOOLS_BYTES)
    return Constraint("tools", text)


def read_call(tool: Tool, number: int, definitions: dict[str, Any]) -> dict[str, Any]:
    """A tool's name and the schema of its arguments, whose definitions are added to the others."""
    what = f"the schema of the tool {tool.name}"
    given = describe(tool.parameters)
    check_json(given, what)
    check_size(to_json(given), what)
    try:
        reader = SchemaReader(given, what, f"t{number}d")
        schema = reader.read(given, what)
        definitions.update(reader.finish())
    except SchemaError:
        if tool.strict:
            raise
        schema = {}
    if isinstance(schema, bool):
        schema = {}
    schema.setdefault("type", "object")
    return {"name": tool.name, "arguments": schema, "strict": tool.strict}

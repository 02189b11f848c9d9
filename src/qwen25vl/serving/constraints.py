"""What a request asks its answers to follow, under the names that OpenAI and its peers use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from qwen25vl.errors import SchemaError, UsageError
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.sampling import refuse
from qwen25vl.serving.wire import ChatRequest, SamplingFields
from qwen25vl.structured.constraints import Constraint
from qwen25vl.structured.tool_choice import read_tool_choice, tool_constraint
from qwen25vl.structured.tool_parser import CLOSE, OPEN

if TYPE_CHECKING:
    from qwen25vl.engine.constraint import StartConstraint
    from qwen25vl.processing.tokenizer import Tokenizer
    from qwen25vl.serving.service import Service

T = TypeVar("T")
Make = Callable[[Any], Constraint]
OF_STRUCTURED: dict[str, Make] = {
    "json": Constraint.of_schema,
    "regex": Constraint.of_regex,
    "choice": Constraint.of_choices,
    "grammar": Constraint.of_grammar,
}
OF_FIELD: dict[str, Make] = {
    "guided_json": Constraint.of_schema,
    "guided_regex": Constraint.of_regex,
    "guided_choice": Constraint.of_choices,
    "guided_grammar": Constraint.of_grammar,
    "json_schema": Constraint.of_schema,  # llama.cpp's
    "grammar": Constraint.of_grammar,
    "regex": Constraint.of_regex,  # SGLang's
    "ebnf": Constraint.of_grammar,
}


def find_constraint(request: SamplingFields) -> Constraint | None:
    """Raises ApiError for what is not understood, and where two fields ask for something."""
    found: dict[str, Constraint] = {}
    for name, make in OF_FIELD.items():
        value = getattr(request, name, None)
        if value is not None:
            found[name] = read(name, make, value)
    if request.structured_outputs is not None:
        found |= read_structured(request.structured_outputs)
    if made := read_format(getattr(request, "response_format", None)):
        found["response_format"] = made
    if isinstance(request, ChatRequest) and calls_tools(request):
        found["tools"] = read_tools_of(request)
    if len(found) > 1:
        names = " and ".join(found)
        raise refuse(list(found)[-1], f"{names} both say what the answer follows; give one")
    return next(iter(found.values()), None)


def calls_tools(request: ChatRequest) -> bool:
    """Whether answers may call tools, or must: then there have to be some."""
    is_asked = request.tool_choice not in (None, "none", "auto")
    return (bool(request.tools) or is_asked) and request.tool_choice != "none"


def spared_by_stops(request: SamplingFields, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The tokens between which no stop string ends an answer: those around a call, whose JSON it
    would cut. None where there are no calls, or where the tokenizer spells the tags."""
    if not (isinstance(request, ChatRequest) and calls_tools(request)):
        return None
    controls = tokenizer.control_ids
    return (controls[OPEN], controls[CLOSE]) if {OPEN, CLOSE} <= controls.keys() else None


def read_tools_of(request: ChatRequest) -> Constraint:
    parallel = request.parallel_tool_calls is not False
    read("tool_choice", read_tool_choice, request.tool_choice)

    def make(tools: Any) -> Constraint:
        return tool_constraint(tools, request.tool_choice, parallel=parallel)

    return read("tools", make, request.tools or [])


def read_format(given: dict[str, Any] | None) -> Constraint | None:
    """OpenAI's response_format; llama.cpp's has a schema beside "json_object"."""
    kind = (given or {}).get("type", "text")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        schema = given.get("schema")
        if schema is None:
            return Constraint.of_object()
        return read("response_format.schema", Constraint.of_schema, schema)
    if kind == "json_schema":
        inner = given.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if schema is None:
            raise refuse("response_format.json_schema", "it has no schema")
        return read("response_format.json_schema.schema", Constraint.of_schema, schema)
    if kind in ("regex", "grammar"):
        make = Constraint.of_regex if kind == "regex" else Constraint.of_grammar
        return read("response_format", make, given.get("pattern", given.get("grammar")))
    raise refuse("response_format.type", "expected text, json_object or json_schema")


def read_structured(given: dict[str, Any]) -> dict[str, Constraint]:
    """vLLM's structured_outputs."""
    found = {}
    for name, value in given.items():
        if value is None or value is False:
            continue
        where = f"structured_outputs.{name}"
        if name == "json_object":
            found[where] = Constraint.of_object()
        elif name in OF_STRUCTURED:
            found[where] = read(where, OF_STRUCTURED[name], value)
        elif name not in ("disable_any_whitespace", "disable_additional_properties", "_backend"):
            raise refuse(where[:80], f"expected one of {', '.join(OF_STRUCTURED)}")
    return found


def read(name: str, make: Callable[[Any], T], value: Any) -> T:
    try:
        return make(value)
    except (SchemaError, UsageError) as error:
        raise ApiError(400, f"{name}: {error}", param=name, code="invalid_schema") from None


async def start_constraint(service: Service, request: SamplingFields) -> StartConstraint | None:
    """What makes the state of each answer; None where an answer may be anything."""
    constraint = find_constraint(request)
    if constraint is None:
        return None
    try:
        grammar = await asyncio.to_thread(service.compiler.compile, constraint)
    except SchemaError as error:
        raise ApiError(400, str(error), param=constraint.kind, code="invalid_schema") from None
    return grammar.start

"""What an answer is asked to follow, as a value: hashable, checked, not compiled yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from qwen25vl.arguments import outline
from qwen25vl.errors import SchemaError, UsageError
from qwen25vl.structured.limits import MAX_CHOICES, check_json, check_size
from qwen25vl.structured.schema import read_schema

Kind = Literal["schema", "regex", "choice", "grammar", "tools"]


@dataclass(frozen=True)
class Constraint:
    """kind: what `text` is. Made by the functions below; equal ones are compiled once."""

    kind: Kind
    text: str

    def __repr__(self) -> str:
        return f"Constraint({self.kind}, {self.text[:80]!r})"

    @classmethod
    def of_schema(cls, schema: Any) -> Self:
        """JSON that is valid under a schema: a mapping, a class or a TypeAdapter of pydantic, or
        JSON text. Raises SchemaError."""
        given = describe(schema)
        check_json(given, "the schema")
        check_size(to_json(given), "the schema")
        return cls("schema", to_json(read_schema(given)))

    @classmethod
    def of_object(cls) -> Self:
        """Any JSON object."""
        return cls("schema", to_json({"type": "object"}))

    @classmethod
    def of_regex(cls, pattern: str) -> Self:
        """Text that a regular expression matches from its beginning to its end. The syntax is that
        of Rust's `regex`: no look-around, no references to groups."""
        check_text(pattern, "the regular expression")
        return cls("regex", pattern)

    @classmethod
    def of_choices(cls, choices: Sequence[str]) -> Self:
        """One of these texts."""
        if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
            raise SchemaError(f"the choices are {outline(choices)}; expected a list of texts")
        if len(choices) > MAX_CHOICES:
            raise SchemaError(f"{len(choices):,} choices are given; the limit is {MAX_CHOICES:,}")
        for choice in choices:
            check_text(choice, "a choice")
        text = to_json(list(dict.fromkeys(choices)))
        check_size(text, "the list of choices")
        return cls("choice", text)

    @classmethod
    def of_grammar(cls, grammar: str) -> Self:
        """Text that follows a context-free grammar, in llguidance's variant of Lark (its first
        rule is `start`) or in llama.cpp's GBNF (`root ::= …`)."""
        check_text(grammar, "the grammar")
        return cls("grammar", grammar)


def describe(schema: Any) -> Any:
    """A schema as JSON has it."""
    if isinstance(schema, str):
        try:
            return json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"the schema is no JSON: {error}") from None
    if isinstance(schema, Mapping | bool):
        return schema
    for method in ("model_json_schema", "json_schema"):  # of a class, of a TypeAdapter
        if callable(make := getattr(schema, method, None)):
            return make()
    wanted = "expected a mapping, JSON text, or a class of pydantic"
    raise UsageError(f"the schema is {type(schema).__name__}; {wanted}")


def to_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"the schema is no JSON: {error}") from None


def check_text(text: Any, what: str) -> None:
    if not isinstance(text, str) or not text:
        raise SchemaError(f"{what} is {outline(text)}; expected a text")
    check_size(text, what)

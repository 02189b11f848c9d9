"""From an answer's text to the value that its schema promises."""

from __future__ import annotations

import json
from typing import Any

from qwen25vl.errors import UsageError
from qwen25vl.structured.constraints import Constraint


def parse(text: str, schema: Any, finish_reason: str | None) -> Any:
    """See `Answer.parsed`. What a class of pydantic checks beyond its schema, it checks here, and
    raises its own ValidationError."""
    if schema is None:
        raise UsageError("the question had no schema; ask with schema=")
    if isinstance(schema, Constraint) and schema.kind != "schema":
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(
            f"the answer is no whole JSON: it ended with {finish_reason!r} after {len(text)} "
            "letters; a larger max_new_tokens lets it end by itself"
        ) from None
    for method in ("model_validate_json", "validate_json"):  # of a class, of a TypeAdapter
        if callable(validate := getattr(schema, method, None)):
            return validate(text)
    return value

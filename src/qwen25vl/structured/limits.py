"""How large a schema or grammar may be. Whoever sends one sends work to this process; these limits
are checked before anything is compiled, and `trial` bounds what the compiler makes of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen25vl.errors import SchemaError

MAX_BYTES = 64 * 2**10  # of a schema as JSON, of a pattern, of a grammar
MAX_DEPTH = 32  # schemas within schemas
MAX_NODES = 5_000  # schemas and values of enum
MAX_ENUM = 1_000
MAX_CHOICES = 1_000
MAX_TOOLS = 128
MAX_TOOLS_BYTES = 4 * MAX_BYTES  # of all of them together
MAX_VALUE_DEPTH = 4 * MAX_DEPTH  # of JSON, so that no walk over it runs out of stack
MAX_VALUES = MAX_BYTES  # an upper bound of what fits into so many bytes


def check_size(text: str, what: str, limit: int = MAX_BYTES) -> None:
    """Refuse a text of more bytes."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise SchemaError(f"{what} has {size:,} bytes; at most {limit:,} are accepted")


def check_json(value: Any, what: str) -> None:
    """Refuse what is no JSON, or deeper or longer than any schema may be, without recursion."""
    waiting = [(value, 0)]
    num_values = 0
    while waiting:
        item, depth = waiting.pop()
        num_values += 1
        if depth > MAX_VALUE_DEPTH:
            raise SchemaError(f"{what} is nested more than {MAX_VALUE_DEPTH} deep")
        if num_values > MAX_VALUES:
            raise SchemaError(f"{what} has more than {MAX_VALUES:,} values")
        if isinstance(item, Mapping):
            for key in item:
                if not isinstance(key, str):
                    raise SchemaError(f"{what} has the key {key!r:.80}; expected a text")
            waiting += [(each, depth + 1) for each in item.values()]
        elif isinstance(item, Sequence) and not isinstance(item, str | bytes | bytearray):
            waiting += [(each, depth + 1) for each in item]
        elif not isinstance(item, str | int | float | None):
            raise SchemaError(f"{what} has a {type(item).__name__}, which is no JSON")

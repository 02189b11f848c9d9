"""The keywords of JSON schema (draft 2020-12, and older names where they mean the same): which are
enforced, which say nothing about the answer, and which values each may have.

A keyword in neither list is refused by its name. Ignored, it would let an answer through that the
caller relies on never to see.
"""

from __future__ import annotations

import math
from typing import Any

from qwen25vl.arguments import nearest_name
from qwen25vl.errors import SchemaError

IN_PLACE = ("anyOf", "oneOf", "allOf")  # lists of schemas for the same value
OF_ONE = ("items", "additionalItems", "additionalProperties")
OF_LIST = (*IN_PLACE, "prefixItems")
OF_NAMES = ("properties", "patternProperties")
COUNTS = "minItems maxItems minLength maxLength minProperties maxProperties".split()
BOUNDS = "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()
ENFORCED = (
    *OF_ONE, *OF_LIST, *OF_NAMES, *COUNTS, *BOUNDS,
    "$ref", "const", "enum", "type", "required", "pattern", "format",
)  # fmt: skip
DEFINITIONS = ("$defs", "definitions")
ANNOTATIONS = (
    "$schema $id id $anchor $comment title description default example examples deprecated "
    "readOnly writeOnly discriminator contentMediaType contentEncoding externalDocs xml"
).split()
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = "date-time time date duration email hostname ipv4 ipv6 uuid uri".split()
SAYS_NOTHING = (  # formats that tell a program how to keep a value, not which values there are
    "int32 int64 uint32 uint64 float double password binary byte path file-path directory-path "
    "json-string text markdown html"
).split()
MAX_COUNT = 2**31 - 1


def is_annotation(keyword: str) -> bool:
    return keyword in ANNOTATIONS or (keyword.startswith("x-") and keyword != "x-guidance")


def check_keyword(keyword: str, value: Any, where: str) -> None:
    """Raise SchemaError for a keyword that is not enforced, or a value that it cannot have."""
    if keyword not in ENFORCED:
        nearest = nearest_name(keyword, ENFORCED)
        hint = f"; did you mean {nearest}?" if nearest and nearest.lower() != keyword else ""
        raise SchemaError(f"{where} has {keyword!r}, which is not supported{hint}")
    if keyword in COUNTS and not is_count(value):
        raise wrong(where, keyword, value, f"a whole number from 0 to {MAX_COUNT:,}")
    if keyword in BOUNDS and not is_number(value):
        raise wrong(where, keyword, value, "a number")
    if keyword == "multipleOf" and value <= 0:
        raise wrong(where, keyword, value, "a number above 0")
    if keyword in ("pattern", "format", "$ref") and not isinstance(value, str):
        raise wrong(where, keyword, value, "a text")
    if keyword == "format" and value not in (*FORMATS, *SAYS_NOTHING):
        raise wrong(where, keyword, value, f"one of {', '.join(FORMATS)}")
    if keyword == "type":
        check_type(value, where)
    if keyword == "required":
        is_list = isinstance(value, list | tuple)
        if not is_list or not all(isinstance(name, str) for name in value):
            raise wrong(where, keyword, value, "a list of names")


def check_type(value: Any, where: str) -> None:
    named = value if isinstance(value, list | tuple) and value else [value]
    if not all(isinstance(name, str) and name in TYPES for name in named):
        raise wrong(where, "type", value, f"one of {', '.join(TYPES)}, or a list of them")


def is_count(value: Any) -> bool:
    return is_number(value) and value == int(value) and 0 <= value <= MAX_COUNT


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def wrong(where: str, keyword: str, value: Any, wanted: str) -> SchemaError:
    return SchemaError(f"{where}: {keyword} is {value!r:.80}; expected {wanted}")

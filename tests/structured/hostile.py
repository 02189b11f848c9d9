"""A hundred schemas that were made to hang, crash or fill a server, and mistakes people make."""

from collections.abc import Callable
from typing import Any


def nested(depth: int, wrap: Callable[[Any], Any], inner: Any) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def chain(size: int, link: Callable[[str], Any], end: Any) -> Any:
    """Definitions that each refer to the next, d0 to d1 to …"""
    links = {f"d{i}": link(f"#/$defs/d{i + 1}") for i in range(size)}
    return {"$defs": {**links, f"d{size}": end}, "$ref": "#/$defs/d0"}


def texts(pattern: str, **more: Any) -> Any:
    return {"type": "string", "pattern": pattern, **more}


LEAF = {"type": "object", "properties": {"a": {"type": "string"}}}
MANY = {f"p{i}": {"type": "integer"} for i in range(2000)}

PATTERNS = [
    texts("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    texts("^(a|b|ab|ba)*(a{0,1000}b{0,1000}){0,1000}$"),
    texts("^(a+)+$"),
    texts("^(([a-z])+.)+[A-Z]([a-z])+$"),
    texts("(a)\\1"),
    texts("(?=a)b"),
    texts("(?<!a)b"),
    texts("(" * 5000 + ")" * 5000),
    texts("(" * 200 + "a" + ")*" * 200),
    texts(".*a.{1,2000}"),
    texts("(.*a.{30}){3}"),
    texts("|".join(f"a{i}.*b{i}" for i in range(2000))),
    texts("\\p{L}{1,1000}\\p{N}{1,1000}\\w{1,1000}"),
    texts("["),
    texts("a{9999999999}"),
    texts("a{5,2}"),
    texts("^(\\w+\\s)*$", minLength=1000, maxLength=10000),
    texts("^a$", minLength=5),
    texts("a" * 60_000),
    texts("\\u0000"),
    texts("(?i:" * 100 + "x" + ")" * 100),
    {"allOf": [texts(f".*a{i}.*") for i in range(30)]},
    {"allOf": [texts(f"^(.*,){{{i}}}P.*$") for i in range(1, 20)]},
    {"allOf": [{"format": name} for name in ("uri", "email", "hostname", "ipv6")]},
    {"type": "string", "format": "uri", "minLength": 500, "maxLength": 2000},
    {"type": "object", "patternProperties": {f"^a{i}.*": {} for i in range(500)}},
    {"type": "object", "patternProperties": {f"^.*a{i}.*$": {} for i in range(50)}},
]
COUNTS = [
    {"type": kind, name: number}
    for kind, name in (("string", "maxLength"), ("string", "minLength"), ("array", "maxItems"))
    for number in (10**6, 2**31 - 1, 2**64, 10**200, -1, 1.5, "9", None, True)
]
COUNTS += [
    {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    {"type": "object", "minProperties": 10**9},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 10**6},
    {"type": "object", "minProperties": 3, "maxProperties": 2},
    nested(30, lambda s: {"type": "array", "items": s, "minItems": 100}, {"type": "integer"}),
    nested(12, lambda s: {"anyOf": [s, {"type": "array", "items": s}]}, {"type": "integer"}),
]
NUMBERS = [
    {"type": "number", "multipleOf": 1e-300},
    {"type": "integer", "multipleOf": 999_999_937},
    {"type": "number", "multipleOf": 0},
    {"type": "number", "minimum": float("nan")},
    {"type": "number", "minimum": float("inf")},
    {"type": "integer", "minimum": -(10**308), "maximum": 10**308},
    {"type": "number", "minimum": -1.7e308, "maximum": 1.7e308},
    {"type": "number", "minimum": 5e-324, "maximum": 1e-300},
    {"type": "integer", "minimum": 5, "maximum": 4},
]
REFERENCES = [
    {"$ref": "#"},
    {"$ref": "https://example.com/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/$defs/missing"},
    {"$ref": "#/" + "a/" * 10_000},
    {"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor"}}},
    {"$ref": 7},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    chain(60, lambda to: {"allOf": [{"$ref": to}, {"$ref": to}]}, LEAF),
    chain(60, lambda to: {"anyOf": [{"$ref": to}, {"$ref": to}]}, LEAF),
    chain(60, lambda to: {"oneOf": [{"$ref": to}, {"$ref": to}]}, LEAF),
    chain(60, lambda to: {"properties": {"a": {"$ref": to}, "b": {"$ref": to}}}, LEAF),
    chain(1500, lambda to: {"$ref": to}, LEAF),
    {
        "type": "object",
        "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}},
        "required": ["a", "b"],
    },
]
SIZES = [
    {"description": "x" * 70_000},
    {"enum": list(range(1001))},
    {"enum": [f"v{i}" * 10 for i in range(1000)]},
    {"const": "a" * 60_000},
    {"const": nested(10_000, lambda s: [s], 1)},
    nested(10_000, lambda s: {"type": "array", "items": s}, {}),
    nested(33, lambda s: {"type": "array", "items": s}, {}),
    nested(33, lambda s: {"anyOf": [s, {"type": "null"}]}, {"type": "integer"}),
    {"type": "object", "properties": MANY},
    {"type": "object", "properties": MANY, "required": list(MANY)},
    {"anyOf": [{"const": i} for i in range(3000)]},
    {"type": "array", "prefixItems": [{"type": "integer"}] * 2500, "minItems": 2500},
    {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": LEAF}} for j in range(10)]} for i in range(8)
        ]
    },
    {"anyOf": [{"properties": {"k": {"const": i}, "x": LEAF}} for i in range(700)]},
]
MISTAKES = [
    {"not": {"type": "string"}},
    {"if": {}, "then": {}, "else": {}},
    {"type": "array", "uniqueItems": True},
    {"type": "array", "contains": {}},
    {"type": "object", "propertyNames": {}},
    {"type": "object", "dependentRequired": {}},
    {"type": "object", "unevaluatedProperties": False},
    {"type": "string", "minLenght": 3},
    {"type": "string", "nullable": True},
    {"type": "text"},
    {"type": []},
    {"type": {"a": 1}},
    {"type": "string", "format": "phone"},
    {"enum": []},
    {"enum": "abc"},
    {"anyOf": []},
    {"anyOf": {}},
    {"properties": []},
    {"required": "a"},
    {"items": 3},
    {"additionalItems": {}},
    {"type": "integer", "minimum": 1, "exclusiveMinimum": True},
    {"oneOf": [{"minimum": 1}, {"maximum": 3}]},
    {"oneOf": [LEAF, {**LEAF, "required": ["a"]}]},
    {"x-guidance": {"lenient": True, "whitespace_pattern": ".*"}, "not": {}},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"const": {1, 2}},
    {"const": b"bytes"},
    {1: {}},
    {"const": "\ud800"},
    [],
    3,
    None,
    False,
    "{",
    "[1,",
    "nul",
]
HOSTILE: list[Any] = [*PATTERNS, *COUNTS, *NUMBERS, *REFERENCES, *SIZES, *MISTAKES]

"""A hundred schemas as people write them, whose answers are checked by another implementation."""

from typing import Any

Schema = dict[str, Any]


def record(**properties: Any) -> Schema:
    """An object of which everything is required and nothing else allowed."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(items: Any, low: int = 0, high: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


SHORT = {"type": "string", "maxLength": 6}
WHOLE = {"type": "integer", "minimum": 0, "maximum": 99}
COLOURS = {"enum": ["red", "green", "blue"]}

PLAIN: list[Any] = [
    {"type": "null"},
    {"type": "boolean"},
    {"const": 3},
    {"const": "x"},
    {"const": {"a": [1, None]}},
    {"enum": ["a", "b", 3, None, True]},
    {"enum": [{"a": 1}, [2]]},
    {"enum": ["é", "漢字", 'a"b\\c\n']},
    {"const": "e\u0301 decomposed"},
    {"enum": ["\u0000", "\u001f"]},
    {"enum": ["<|im_end|>", "<tool_call>"]},
    {"type": "string", "maxLength": 5},
    {"type": "string", "minLength": 3, "maxLength": 4},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": "^(?:a|bc){1,3}$"},
    {"type": "string", "pattern": "^\\d{4}$"},
    {"type": "string", "pattern": '^"[a-c]\\\\?"$'},
    *({"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid", "ipv4")),
    {"type": "string", "format": "password", "maxLength": 4},
    {"type": "integer", "format": "int32", "minimum": 1, "maximum": 9},
    {"type": "integer", "minimum": 0, "maximum": 255},
    {"type": "integer", "minimum": -5, "maximum": -2},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 70},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
    {"type": ["integer", "null"], "maximum": 9, "minimum": 0},
    {"type": ["boolean", "null"]},
    {"anyOf": [{"type": "null"}, WHOLE]},
    {"anyOf": [COLOURS, WHOLE]},
    {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    {
        "minimum": 3,
        "maximum": 4,
        "type": "integer",
        "title": "T",
        "description": "d",
        "examples": [3],
        "default": 9,
        "x-order": 1,
    },
]

ARRAYS: list[Any] = [
    array(WHOLE),
    array(WHOLE, 2, 2),
    array(COLOURS, 1, 4),
    array({"type": "boolean"}, 0, 5),
    array(array(WHOLE, 1, 2), 1, 2),
    array({"anyOf": [{"type": "null"}, SHORT]}, 1, 3),
    {"type": "array", "items": False},
    array(record(a=WHOLE), 1, 2),
    {"type": "array", "prefixItems": [WHOLE, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": "array", "items": [COLOURS, WHOLE], "additionalItems": False, "minItems": 2},
    {
        "type": "array",
        "prefixItems": [WHOLE],
        "items": {"type": "null"},
        "minItems": 1,
        "maxItems": 3,
    },
    {
        "type": "array",
        "items": {"type": "number", "minimum": 0, "maximum": 1000},
        "minItems": 4,
        "maxItems": 4,
    },
]

OBJECTS: list[Any] = [
    record(),
    record(a=WHOLE),
    record(a=WHOLE, b=COLOURS),
    record(a=record(b=record(c={"type": "boolean"}))),
    record(name=SHORT, age=WHOLE),
    {"type": "object", "properties": {"a": WHOLE, "b": COLOURS}},
    {"properties": {"a": WHOLE}, "required": ["a"], "type": "object"},
    {
        "type": "object",
        "properties": {"a": WHOLE, "b": True},
        "required": ["a", "b"],
        "additionalProperties": {"type": "null"},
    },
    {"type": "object", "additionalProperties": WHOLE, "maxProperties": 1},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": False}},
    {
        "type": "object",
        "patternProperties": {"^[a-c]$": WHOLE},
        "additionalProperties": False,
        "maxProperties": 1,
    },
    {"type": "object", "properties": {"kind": {"const": "x"}}, "required": ["kind"]},
    record(**{"a b": WHOLE, "ключ": COLOURS, '"q"': {"type": "null"}, "\n": {"type": "boolean"}}),
    record(**{"$ref": WHOLE, "enum": COLOURS, "properties": {"type": "boolean"}}),
    record(bbox_2d=array(WHOLE, 4, 4), label=COLOURS),
    array(record(bbox_2d=array(WHOLE, 4, 4), label=COLOURS), 1, 2),
    record(point_2d=array(WHOLE, 2, 2), label=SHORT),
    record(
        total={"type": "number", "minimum": 0, "maximum": 500}, currency={"enum": ["EUR", "USD"]}
    ),
    record(when={"type": "string", "format": "date"}, who=array(COLOURS, 1, 2)),
    record(ok={"type": "boolean"}, why={"anyOf": [SHORT, {"type": "null"}]}),
    {
        **record(a=WHOLE),
        "description": "not of the answer",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "no",
    },
    {
        "allOf": [
            {"type": "object", "properties": {"a": WHOLE}, "required": ["a"]},
            {"properties": {"b": COLOURS}, "required": ["b"]},
            {"maxProperties": 2},
        ]
    },
    {"anyOf": [record(a=WHOLE), record(b=COLOURS)]},
    {"oneOf": [record(k={"const": 1}, x=WHOLE), record(k={"const": 2}, y=COLOURS)]},
    {
        "type": "object",
        "properties": {"a": {"type": "object"}},
        "required": ["a"],
        "maxProperties": 1,
    },
]

REFERENCES: list[Any] = [
    {"$defs": {"n": WHOLE}, **record(a={"$ref": "#/$defs/n"}, b={"$ref": "#/$defs/n"})},
    {"definitions": {"n": COLOURS}, **array({"$ref": "#/definitions/n"}, 1, 2)},
    {"$defs": {"a/b c~d": WHOLE}, **record(a={"$ref": "#/$defs/a~1b%20c~0d"})},
    {
        "$ref": "#/$defs/t",
        "$defs": {
            "t": {"anyOf": [WHOLE, record(l={"$ref": "#/$defs/t"}, r={"$ref": "#/$defs/t"})]}
        },
    },
    {
        "$defs": {"t": {**record(v=WHOLE, kids=array({"$ref": "#/$defs/t"}, 0, 2))}},
        "$ref": "#/$defs/t",
    },
    {
        "type": "object",
        "properties": {"me": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["me"],
    },
    {
        "$defs": {"A": record(k={"const": "a"}, v=WHOLE), "B": record(k={"const": "b"}, w=COLOURS)},
        "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "discriminator": {"propertyName": "k"},
    },
    {
        "$defs": {"A": record(k={"enum": [1, 2]}), "B": record(k={"const": 3})},
        **array({"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}, 1, 2),
    },
    {
        "properties": {"a": WHOLE, "b": {"$ref": "#/properties/a"}},
        "required": ["b"],
        "type": "object",
    },
    {
        "$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/z"}, "z": COLOURS},
        "$ref": "#/$defs/x",
    },
]


def agent_schema(num_actions: int = 12) -> Schema:
    """As agents that drive a browser send it: its memory, and some of many actions."""
    actions = {
        f"Action{i}": record(
            **{f"act_{i}": record(index=WHOLE, mode=COLOURS, again={"type": "boolean"})}
        )
        for i in range(num_actions)
    }
    names = [{"$ref": f"#/$defs/{name}"} for name in actions]
    mind = {key: {**SHORT, "description": "what " + key} for key in ("memory", "next_goal")}
    return {"$defs": actions, **record(**mind, action=array({"anyOf": names}, 1, 2))}


NUMBERED: list[Any] = [
    record(**{f"field_{j}": [WHOLE, COLOURS, {"type": "boolean"}][(i + j) % 3] for j in range(i)})
    for i in range(1, 13)
]
LARGE: list[Any] = [agent_schema(), agent_schema(60), {"enum": [f"value {i}" for i in range(900)]}]
SCHEMAS: list[Any] = [*PLAIN, *ARRAYS, *OBJECTS, *REFERENCES, *NUMBERED, *LARGE]


def modern(schema: Any) -> Any:
    """A list in `items` by its newer name, which the validator knows."""
    if isinstance(schema.get("items"), list):
        rest = {
            key: value for key, value in schema.items() if key not in ("items", "additionalItems")
        }
        return {**rest, "prefixItems": schema["items"], "items": schema["additionalItems"]}
    return schema

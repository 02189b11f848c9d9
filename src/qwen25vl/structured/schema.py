"""A JSON schema as it was given becomes one that the compiler reads: checked and bounded, without
annotations, with references by plain names.

What is changed keeps every answer valid under the schema as it was given:

* An object that names its properties and says nothing of others is closed: the model writes the
  named ones only. It is left open where it would contradict another part of the schema (`allOf`,
  keywords beside `$ref` or `anyOf`, required names without a property).
* Numbers lie within ±10¹⁸, and have at most ten decimals and no exponent: see `numbers`.
* `oneOf` becomes `anyOf` where no value can match two of its schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from qwen25vl.arguments import outline
from qwen25vl.errors import SchemaError
from qwen25vl.structured.disjoint import are_disjoint
from qwen25vl.structured.keywords import (
    DEFINITIONS,
    IN_PLACE,
    OF_LIST,
    OF_NAMES,
    OF_ONE,
    SAYS_NOTHING,
    check_keyword,
    is_annotation,
    wrong,
)
from qwen25vl.structured.limits import MAX_DEPTH, MAX_ENUM, MAX_NODES, check_json
from qwen25vl.structured.numbers import draw_in, limit_decimals, limit_fractions

OPENS = ("additionalProperties", "patternProperties", "minProperties", "maxProperties")


Schema = dict[str, Any] | bool


def read_schema(schema: Any, what: str = "the schema") -> dict[str, Any]:
    """A schema with `$defs`, ready to be compiled. Raises SchemaError."""
    reader = SchemaReader(schema, what)
    made = reader.read(schema, what)
    definitions = reader.finish()
    if made is False:
        raise SchemaError(f"{what} is false: it allows no value")
    whole = {} if made is True else made
    return {**whole, "$defs": definitions} if definitions else whole


class SchemaReader:
    """Reads one document; the targets of its references get names that begin with `prefix`, and are
    read by `finish`."""

    def __init__(self, document: Any, what: str, prefix: str = "d") -> None:
        check_json(document, what)
        self.document, self.what, self.prefix = document, what, prefix
        self.names: dict[str, str] = {}  # of what references lead to
        self.choices: list[dict[str, Any]] = []  # schemas with oneOf
        self.num_nodes = 0
        self.is_combined = is_combined(document)

    def finish(self) -> dict[str, Any]:
        """What references lead to, by name."""
        definitions: dict[str, Schema] = {}
        while len(definitions) < len(self.names):
            for reference, name in list(self.names.items())[len(definitions) :]:
                target = self.find(reference, self.what)
                definitions[name] = self.read(target, f"{self.what}, {reference:.80}")
        refuse_circles(definitions, self.what)
        for made in self.choices:
            if are_disjoint(made["oneOf"], definitions):
                options = {"anyOf": made.pop("oneOf")}
                made.update({"allOf": [options]} if "anyOf" in made else options)
        return definitions

    def read(self, schema: Any, where: str, depth: int = 0) -> Schema:
        """One schema, at any depth."""
        self.count(1, where)
        if depth > MAX_DEPTH:
            raise SchemaError(f"{where} lies {depth} schemas deep; the limit is {MAX_DEPTH}")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise SchemaError(f"{where} is {outline(schema)}; expected an object with keywords")
        made: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in DEFINITIONS or is_annotation(keyword):
                continue
            check_keyword(keyword, value, where)
            if keyword != "format" or value not in SAYS_NOTHING:
                made[keyword] = self.read_value(keyword, value, where, depth)
        name_items(made, where)
        draw_in(made)
        if not self.is_combined:
            limit_decimals(made)
            limit_fractions(made)
            if is_silent(made):
                made["additionalProperties"] = False
        if "oneOf" in made:
            self.choices.append(made)
        return made

    def read_value(self, keyword: str, value: Any, where: str, depth: int) -> Any:
        inner = f"{where}.{keyword}"
        if keyword == "$ref":
            self.find(value, where)
            name = self.names.setdefault(value, f"{self.prefix}{len(self.names)}")
            return f"#/$defs/{name}"
        if keyword in OF_LIST or (keyword == "items" and isinstance(value, list | tuple)):
            if not isinstance(value, list | tuple) or not (value or keyword == "items"):
                raise wrong(where, keyword, value, "a list of schemas")
            parts = enumerate(value)
            return [self.read(part, f"{inner}[{number}]", depth + 1) for number, part in parts]
        if keyword in OF_ONE:
            return self.read(value, inner, depth + 1)
        if keyword in OF_NAMES:
            if not isinstance(value, Mapping):
                raise wrong(where, keyword, value, "an object of schemas by name")
            return {
                name: self.read(part, f"{inner}.{name:.60}", depth + 1)
                for name, part in value.items()
            }
        if keyword == "enum":
            self.check_enum(value, where)
        return value

    def check_enum(self, value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or not value:
            raise wrong(where, "enum", value, "a list of values")
        if len(value) > MAX_ENUM:
            raise SchemaError(f"{where}: enum has {len(value):,} values; the limit is {MAX_ENUM:,}")
        self.count(len(value), where)

    def count(self, number: int, where: str) -> None:
        self.num_nodes += number
        if self.num_nodes > MAX_NODES:
            raise SchemaError(
                f"{self.what} has more than {MAX_NODES:,} schemas and values ({where:.200} is "
                "beyond them)"
            )

    def find(self, reference: str, where: str) -> Any:
        """What a reference leads to in the document."""
        target = self.document
        if reference != "#" and not reference.startswith("#/"):
            raise wrong(where, "$ref", reference, "a place in the same schema, as #/$defs/NAME")
        for step in reference.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            else:
                raise wrong(where, "$ref", reference, "a place that exists")
        return target


def name_items(made: dict[str, Any], where: str) -> None:
    """The older names of items one by one: a list in `items`, and `additionalItems`."""
    rest = made.pop("additionalItems", None)
    if isinstance(made.get("items"), list):
        made["prefixItems"] = made.pop("items")
        if rest is not None:
            made["items"] = rest
    elif rest is not None:
        raise SchemaError(f"{where} has additionalItems without a list of items")


def is_silent(made: Mapping[str, Any]) -> bool:
    """Whether a schema names properties, and says nothing of others."""
    if "properties" not in made or made.keys() & set(OPENS):
        return False
    return all(name in made["properties"] for name in made.get("required", ()))


def is_combined(document: Any) -> bool:
    """Whether a value has to match several schemas of this document at once, other than one and
    the schema that it refers to."""
    if isinstance(document, list | tuple):
        return any(map(is_combined, document))
    if not isinstance(document, Mapping):
        return False
    asserted = {key for key in document if key not in DEFINITIONS and not is_annotation(key)}
    joins = asserted & {"$ref", *IN_PLACE}
    if "allOf" in joins or (joins and asserted - joins - {"type"}) or len(joins) > 1:
        return True
    return any(map(is_combined, document.values()))


def refuse_circles(definitions: Mapping[str, Schema], what: str) -> None:
    """Refuse a schema that leads to itself without a value in between: no answer would begin."""
    try:
        TopologicalSorter({name: places(made) for name, made in definitions.items()}).prepare()
    except CycleError:
        raise SchemaError(
            f"{what} has a $ref that leads back to itself with no value between"
        ) from None


def places(schema: Schema) -> list[str]:
    """The definitions that a value has to match where it matches this schema."""
    if isinstance(schema, bool):
        return []
    found = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
    for keyword in IN_PLACE:
        for part in schema.get(keyword, ()):
            found += places(part)
    return found

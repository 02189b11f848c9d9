"""Whether at most one schema of a list can match any value, so that `oneOf` says no more than
`anyOf`: their types differ, or all are objects told apart by one required property (a tag)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MAX_HOPS = 8
Definitions = Mapping[str, Any]


def are_disjoint(options: Sequence[Any], definitions: Definitions) -> bool:
    found = [follow(option, definitions) for option in options]
    if is_each_once([types_of(option) for option in found]):
        return True
    if not all(types_of(option) == {"object"} for option in found):
        return False
    names = set.intersection(*(set(option.get("required", ())) for option in found))
    for name in sorted(names):
        tags = [values_of(option.get("properties", {}).get(name), definitions) for option in found]
        if all(tags) and is_each_once(tags):
            return True
    return False


def follow(schema: Any, definitions: Definitions) -> Mapping[str, Any]:
    """What a schema that is nothing but a reference leads to; nothing of true and false."""
    for _ in range(MAX_HOPS):
        if not isinstance(schema, Mapping) or schema.keys() != {"$ref"}:
            break
        schema = definitions.get(schema["$ref"].rpartition("/")[2], {})
    return schema if isinstance(schema, Mapping) else {}


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows, integers as numbers; nothing where it does not say so."""
    stated = schema.get("type", ())
    types = {stated} if isinstance(stated, str) else set(stated)
    return {"number" if name == "integer" else name for name in types}


def values_of(schema: Any, definitions: Definitions) -> set[str]:
    """The values of a tag as JSON; nothing where they are not listed."""
    if schema is None:
        return set()
    schema = follow(schema, definitions)
    listed = [schema["const"]] if "const" in schema else schema.get("enum", ())
    return {json.dumps(value, sort_keys=True) for value in listed}


def is_each_once(sets: Sequence[set[str]]) -> bool:
    """Whether no two of these sets share a member, and none is empty."""
    return all(sets) and sum(map(len, sets)) == len(set().union(*sets))

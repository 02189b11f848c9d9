"""Reading and checking the values of a checkpoint's JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from qwen25vl.arguments import plain_number
from qwen25vl.errors import CheckpointError, ConfigError

T = TypeVar("T")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file. Raises CheckpointError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} lacks {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold one JSON object")
    return values


def from_text(value: Any, kind: str) -> Any:
    """A number or truth value that a file spells as a text; anything else as it is.

    kind: the annotation of the field.
    """
    if not isinstance(value, str):
        return value
    if "bool" in kind and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if "int" in kind or "float" in kind:
        number = plain_number(value, from_text=True)
        return value if number is None or "str" in kind else number
    return value


def read_mapping(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(value := values.get(key) or {}, Mapping):
        raise ConfigError(f"{key} is {value!r}; it must be a JSON object")
    return dict(value)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass from those of the values that are its fields; a null takes the default."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    try:
        return cls(
            **{key: value for key, value in values.items() if key in names and value is not None}
        )
    except TypeError as error:
        raise ConfigError(f"config.json has a value of the wrong type: {error}") from None


def check_fields(config: Any, *, positive: Set[str], exempt: Set[str] = frozenset()) -> None:
    """Check that int fields, except those in `exempt`, are whole numbers above 0, and those in
    `positive` numbers above 0."""
    for name, kind in ((f.name, f.type) for f in fields(config)):
        value = getattr(config, name)
        if kind == "int" and name not in exempt and (type(value) is not int or value < 1):
            raise ConfigError(f"{name} is {value!r}; it must be a whole number above 0")
        if name in positive and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ConfigError(f"{name} is {value!r}; it must be a number above 0")
    if config.hidden_act != "silu":
        raise ConfigError(f"hidden_act is {config.hidden_act!r}; Qwen2.5-VL uses 'silu'")


def require_multiple(config: object, name: str, divisor_name: str) -> None:
    value, divisor = getattr(config, name), getattr(config, divisor_name)
    if value % divisor:
        raise ConfigError(f"{name} {value} does not divide by {divisor_name} {divisor}")

"""Reading and checking the values of a checkpoint's JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from qwen25vl.arguments import plain_number
from qwen25vl.errors import CheckpointError, ConfigError

T = TypeVar("T")
MAX_DEPTH = 32  # of brackets in brackets; the deepest official file has eight
MAX_SHOWN = 80  # letters of a value
MAX_QUOTED = 300
LARGEST = 1e38


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file. Raises CheckpointError where there is none."""
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """A checkpoint's file of text. Raises CheckpointError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} lacks {path.name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def parse_json(text: str | bytes, name: object) -> dict[str, Any]:
    """The JSON object that a text holds. Raises CheckpointError that begins with the name where it
    is damaged, or nested so deeply that whatever walks through it could exhaust the stack."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits
        raise CheckpointError(f"{name} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{name} must hold one JSON object")
    check_depth(values, name)
    return values


@contextmanager
def named_file(path: Path) -> Iterator[None]:
    """Errors about the values of a config name the file that has them."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_depth(values: object, name: object) -> None:
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH):
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [part for each in parts for part in each if isinstance(part, dict | list)]
        if not level:
            return
    raise CheckpointError(f"{name} is nested more than {MAX_DEPTH} deep")


def shown(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def in_one_line(error: BaseException) -> str:
    """What a library says of a file, parts of which it may quote."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


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
        raise ConfigError(f"{key} is {shown(value)}; it must be a JSON object")
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
            raise ConfigError(f"{name} is {shown(value)}; it must be a whole number above 0")
        if name in positive and not (is_plain(value) and value > 0):
            raise ConfigError(f"{name} is {shown(value)}; it must be a number above 0")
    if config.hidden_act != "silu":
        raise ConfigError(f"hidden_act is {shown(config.hidden_act)}; Qwen2.5-VL uses 'silu'")


def check_numbers(config: Any, names: Iterable[str]) -> None:
    """Check that each is a finite number, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not is_plain(value):
            raise ConfigError(f"{name} is {shown(value)}; it must be a number")


def is_plain(value: Any) -> bool:
    """Whether this is a number that float32 has."""
    number = plain_number(value)
    return number is not None and abs(number) < LARGEST


def check_token_ids(config: Any, names: Iterable[str], *, may_be_list: bool = False) -> None:
    """Check that each is the number of a token, or None, or where that may be a list of them."""
    for name in names:
        value = getattr(config, name)
        ids = value if may_be_list and isinstance(value, list | tuple) else [value]
        if value is not None and not all(type(each) is int and 0 <= each < 2**31 for each in ids):
            raise ConfigError(f"{name} is {shown(value)}; it must be the number of a token")


def require_multiple(config: object, name: str, divisor_name: str) -> None:
    value, divisor = getattr(config, name), getattr(config, divisor_name)
    if value % divisor:
        raise ConfigError(f"{name} {value} does not divide by {divisor_name} {divisor}")

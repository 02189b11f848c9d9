"""Reads what config.json says of quantised weights, key by key.

A key that changes what the numbers mean, or may do so, is never passed over: a value that is not
supported, or a key that is unknown and not empty, is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen25vl.config_values import shown
from qwen25vl.errors import CheckpointError

ROOT = "quantization_config"
# by key; None: any value, as it is checked elsewhere or says nothing
Supported = dict[str, tuple[Any, ...] | None]
EMPTY: tuple[Any, ...] = (None, False, {}, [])  # all that an unknown key may hold


class ConfigReader:
    """Checks one folder's configuration; its errors begin with the folder and the key's path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def refuse(self, path: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.folder}: {path} is {shown(value)}; {wanted}")

    def read_object(self, values: object, path: str) -> dict[str, Any]:
        if not isinstance(values, Mapping):
            raise self.refuse(path, values, "it must be a JSON object")
        return dict(values)

    def read_names(self, values: object, path: str) -> tuple[str, ...]:
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.refuse(path, values, "it must be a list of names")
        return tuple(values)

    def check(self, values: object, supported: Supported, path: str) -> dict[str, Any]:
        """The values, where each is one of those supported for its key."""
        read = self.read_object(values, path)
        for key, value in {**dict.fromkeys(supported), **read}.items():
            choices = supported.get(key, EMPTY)
            if choices is not None and not is_one_of(value, choices):
                wanted = (
                    f"expected {' or '.join(map(repr, choices))}"
                    if key in supported
                    else "the key is unknown"
                )
                raise self.refuse(f"{path}.{key}", value, wanted)
        return read


def is_one_of(value: object, choices: tuple[Any, ...]) -> bool:
    """Whether a JSON value is among these: 1 is not True, and 4.0 is not 4."""
    return any(type(value) is type(choice) and value == choice for choice in choices)

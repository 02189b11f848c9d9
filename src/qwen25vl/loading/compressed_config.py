"""The quantization_config of a checkpoint in the compressed-tensors format:
read, and checked key by key.

A key that changes what the numbers mean, or may do so, is never passed over: a value that is not
supported, or a key that is unknown and not empty, is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen25vl.errors import CheckpointError
from qwen25vl.loading.scheme import BITS, GROUP_SIZES, Scheme

METHOD, PACKED, SIGNED = "compressed-tensors", "pack-quantized", "int-quantized"
LINEAR, REGEX = "Linear", "re:"

# by key; None: any value, as it is checked elsewhere or says nothing
Supported = dict[str, tuple[Any, ...] | None]
EMPTY: tuple[Any, ...] = (None, False, {}, [])  # all that an unknown key may hold
# of how the folder was made
DESCRIPTIVE = ("quantization_status", "global_compression_ratio", "version")
TOP: Supported = {
    "quant_method": (METHOD,),
    "format": (PACKED, SIGNED),
    "config_groups": None,
    "ignore": None,
    **dict.fromkeys(DESCRIPTIVE),
}
GROUP: Supported = {
    "targets": None,
    "weights": None,
    "input_activations": None,
    "format": (None, PACKED, SIGNED),
}
NUMBERS: Supported = {
    "type": ("int",),
    **dict.fromkeys(("observer", "observer_kwargs", "scale_dtype", "zp_dtype")),
}
WEIGHTS: Supported = {
    **NUMBERS,
    "num_bits": BITS,
    "symmetric": (True,),
    "actorder": (None, False, "weight", "static"),
}
WEIGHTS_OF_BITS: dict[int, Supported] = {
    4: WEIGHTS | {"strategy": ("group",), "group_size": GROUP_SIZES},
    8: WEIGHTS | {"strategy": ("channel",), "group_size": (None, -1)},
}
ACTIVATIONS: Supported = {
    **NUMBERS,
    "num_bits": (8,),
    "symmetric": None,
    "dynamic": (True,),
    "strategy": ("token",),
}
DEFAULTS = {"num_bits": 8, "type": "int", "symmetric": True}


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose weights are quantised alike:
    8 bits, or 4 bits in groups of `group_size` inputs."""

    bits: int
    group_size: int | None
    targets: tuple[str, ...]

    def covers(self, path: str) -> bool:
        """Whether a target names this linear layer:
        by its class, its path, or a pattern for the path's beginning."""
        return any(
            re.match(target.removeprefix(REGEX), path) is not None
            if target.startswith(REGEX)
            else target in (LINEAR, path)
            for target in self.targets
        )

    @property
    def scheme(self) -> Scheme:
        return Scheme(self.bits, self.group_size)


class ConfigReader:
    """Checks one folder's configuration; its errors begin with the folder and the key's path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def refuse(self, path: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.folder}: {path} is {value!r}; {wanted}")

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

    def read_group(self, values: object, path: str) -> LayerGroup:
        group = self.check(values, GROUP, path)
        weights: dict[str, Any] = DEFAULTS | self.read_object(
            group.get("weights") or {}, f"{path}.weights"
        )
        bits = weights["num_bits"]
        if not is_one_of(bits, (*WEIGHTS_OF_BITS,)):
            wanted = " or ".join(map(str, WEIGHTS_OF_BITS))
            raise self.refuse(f"{path}.weights.num_bits", bits, f"expected {wanted}")
        self.check(weights, WEIGHTS_OF_BITS[bits], f"{path}.weights")
        if activations := group.get("input_activations"):
            numbers = DEFAULTS | self.read_object(activations, f"{path}.input_activations")
            self.check(numbers, ACTIVATIONS, f"{path}.input_activations")
        group_size = weights["group_size"] if bits == 4 else None
        return LayerGroup(
            bits, group_size, self.read_targets(group.get("targets"), f"{path}.targets")
        )

    def read_targets(self, values: object, path: str) -> tuple[str, ...]:
        targets = self.read_names(values, path)
        if not targets:
            raise self.refuse(path, values, "it must name at least one layer")
        for target in targets:
            try:
                re.compile(target.removeprefix(REGEX) if target.startswith(REGEX) else "")
            except re.error as error:
                raise self.refuse(
                    path, values, f"{target!r} is not a regular expression: {error}"
                ) from None
        return targets


def read_groups(config: object, folder: Path) -> list[LayerGroup]:
    """How a checkpoint's weights are quantised: the groups of config_groups in their order.

    Raises CheckpointError that names the first key whose value is not supported, or that is unknown
    and not empty.
    """
    reader, root = ConfigReader(folder), "quantization_config"
    values = reader.check(config, TOP, root)
    if values.get("ignore") is not None:
        reader.read_names(values["ignore"], f"{root}.ignore")
    path = f"{root}.config_groups"
    groups = reader.read_object(values.get("config_groups") or {}, path)
    if not groups:
        raise CheckpointError(
            f"{folder}: {path} holds 0 groups; at least one must say how weights are quantised"
        )
    return [reader.read_group(group, f"{path}.{name}") for name, group in groups.items()]


def is_one_of(value: object, choices: tuple[Any, ...]) -> bool:
    """Whether a JSON value is among these: 1 is not True, and 4.0 is not 4."""
    return any(type(value) is type(choice) and value == choice for choice in choices)

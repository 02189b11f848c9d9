"""The quantization_config of a checkpoint in the compressed-tensors format: read, and checked key
by key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen25vl.errors import CheckpointError
from qwen25vl.loading.formats.config_reader import ROOT, ConfigReader, Supported, is_one_of
from qwen25vl.loading.scheme import BITS, GROUP_SIZES, Scheme

METHOD, PACKED, SIGNED = "compressed-tensors", "pack-quantized", "int-quantized"
LINEAR, REGEX = "Linear", "re:"

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
    4: WEIGHTS | {"symmetric": (True, False), "strategy": ("group",), "group_size": GROUP_SIZES},
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
    """Layers whose weights are quantised alike."""

    scheme: Scheme
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


def read_group(reader: ConfigReader, values: object, path: str) -> LayerGroup:
    group = reader.check(values, GROUP, path)
    weights: dict[str, Any] = DEFAULTS | reader.read_object(
        group.get("weights") or {}, f"{path}.weights"
    )
    bits = weights["num_bits"]
    if not is_one_of(bits, (*WEIGHTS_OF_BITS,)):
        wanted = " or ".join(map(str, WEIGHTS_OF_BITS))
        raise reader.refuse(f"{path}.weights.num_bits", bits, f"expected {wanted}")
    reader.check(weights, WEIGHTS_OF_BITS[bits], f"{path}.weights")
    if activations := group.get("input_activations"):
        numbers = DEFAULTS | reader.read_object(activations, f"{path}.input_activations")
        reader.check(numbers, ACTIVATIONS, f"{path}.input_activations")
    group_size = weights["group_size"] if bits == 4 else None
    scheme = Scheme(bits, group_size, has_zeros=not weights["symmetric"])
    return LayerGroup(scheme, read_targets(reader, group.get("targets"), f"{path}.targets"))


def read_targets(reader: ConfigReader, values: object, path: str) -> tuple[str, ...]:
    targets = reader.read_names(values, path)
    if not targets:
        raise reader.refuse(path, values, "it must name at least one layer")
    for target in targets:
        try:
            re.compile(target.removeprefix(REGEX) if target.startswith(REGEX) else "")
        except re.error as error:
            raise reader.refuse(
                path, values, f"{target!r} is not a regular expression: {error}"
            ) from None
    return targets


def read_groups(config: object, folder: Path) -> list[LayerGroup]:
    """How a checkpoint's weights are quantised: the groups of config_groups in their order.

    Raises CheckpointError that names the first key whose value is not supported, or that is unknown
    and not empty.
    """
    reader = ConfigReader(folder)
    values = reader.check(config, TOP, ROOT)
    if values.get("ignore") is not None:
        reader.read_names(values["ignore"], f"{ROOT}.ignore")
    path = f"{ROOT}.config_groups"
    groups = reader.read_object(values.get("config_groups") or {}, path)
    if not groups:
        raise CheckpointError(
            f"{folder}: {path} holds 0 groups; at least one must say how weights are quantised"
        )
    return [read_group(reader, group, f"{path}.{name}") for name, group in groups.items()]

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
FORMATS = (PACKED, SIGNED, "float-quantized", "naive-quantized", "mixed-precision")
LINEAR, REGEX = "Linear", "re:"

# of how the folder was made, or of what is not stored
DESCRIPTIVE = ("quantization_status", "global_compression_ratio", "version")
TOP: Supported = {
    "quant_method": (METHOD,),
    "format": FORMATS,
    "config_groups": None,
    "ignore": None,
    "sparsity_config": None,
    **dict.fromkeys(DESCRIPTIVE),
}
GROUP: Supported = {
    "targets": None,
    "weights": None,
    "input_activations": None,
    "format": (None, *FORMATS),
}
NUMBERS: Supported = {
    "type": ("int", "float"),
    **dict.fromkeys(("observer", "observer_kwargs", "scale_dtype", "zp_dtype")),
}
SORTED = (True, "group", "dynamic")
WEIGHTS: Supported = {
    **NUMBERS,
    "num_bits": BITS,
    "actorder": (None, False, "weight", "static", *SORTED),
}
EITHER, WHOLE_ROW = (True, False), (None, -1)
# by type and bits, by strategy
KINDS: dict[tuple[str, int], dict[str, Supported]] = {
    ("int", 4): {
        "group": {"symmetric": EITHER, "group_size": GROUP_SIZES},
        "channel": {"symmetric": EITHER, "group_size": WHOLE_ROW},
    },
    ("int", 8): {
        "channel": {"symmetric": EITHER, "group_size": WHOLE_ROW},
        "group": {"symmetric": EITHER, "group_size": GROUP_SIZES},
        "tensor": {"symmetric": EITHER, "group_size": WHOLE_ROW},
    },
    ("float", 8): {
        "channel": {"symmetric": (True,), "group_size": WHOLE_ROW},
        "tensor": {"symmetric": (True,), "group_size": WHOLE_ROW},
        "block": {"symmetric": (True,), "group_size": WHOLE_ROW, "block_structure": None},
    },
}
ACTIVATIONS: Supported = {
    **NUMBERS,
    "num_bits": (8,),
    "symmetric": None,
    "dynamic": (True, False),
    "strategy": ("token", "tensor", "group"),
    "group_size": None,
}
DEFAULTS = {"num_bits": 8, "type": "int", "symmetric": True}


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose weights are quantised alike.

    scheme: the kind of layer that holds them as they are stored; None where there is none. block:
    outputs and inputs that share a scale, of the strategy "block". is_sorted: inputs have groups of
    their own choice, which the file must name.
    """

    scheme: Scheme | None
    targets: tuple[str, ...]
    bits: int
    has_zeros: bool = False
    is_float: bool = False
    is_sorted: bool = False
    block: tuple[int, int] | None = None

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
    kind, bits = weights["type"], weights["num_bits"]
    if not is_one_of(bits, BITS):
        wanted = " or ".join(map(str, BITS))
        raise reader.refuse(f"{path}.weights.num_bits", bits, f"expected {wanted}")
    if not isinstance(kind, str) or (kind, bits) not in KINDS:
        wanted = " or ".join(repr(known) for known, width in KINDS if width == bits)
        raise reader.refuse(f"{path}.weights.type", kind, f"of {bits} bits expected {wanted}")
    strategies, strategy = KINDS[kind, bits], weights.get("strategy")
    if not isinstance(strategy, str) or strategy not in strategies:
        wanted = " or ".join(map(repr, strategies))
        raise reader.refuse(f"{path}.weights.strategy", strategy, f"expected {wanted}")
    supported = WEIGHTS | strategies[strategy] | {"strategy": (strategy,)}
    reader.check(weights, supported, f"{path}.weights")
    if activations := group.get("input_activations"):
        numbers = DEFAULTS | reader.read_object(activations, f"{path}.input_activations")
        reader.check(numbers, ACTIVATIONS, f"{path}.input_activations")
    block = read_block(reader, weights, path) if strategy == "block" else None
    targets = read_targets(reader, group.get("targets"), f"{path}.targets")
    return LayerGroup(
        read_scheme(weights),
        targets,
        bits,
        has_zeros=not weights["symmetric"],
        is_float=kind == "float",
        is_sorted=is_one_of(weights.get("actorder"), SORTED),
        block=block,
    )


def read_scheme(weights: dict[str, Any]) -> Scheme | None:
    """The kind of layer that holds such weights as they are stored, if there is one."""
    has_zeros = not weights["symmetric"]
    if (weights["type"], weights["num_bits"], weights["strategy"]) == ("int", 4, "group"):
        return Scheme(4, weights["group_size"], has_zeros=has_zeros)
    if (weights["type"], weights["strategy"]) == ("int", "channel") and weights["num_bits"] == 8:
        return None if has_zeros else Scheme(8)
    return None


def read_block(reader: ConfigReader, weights: dict[str, Any], path: str) -> tuple[int, int]:
    block = weights.get("block_structure")
    if isinstance(block, str) and re.fullmatch(r"\d{1,4}x\d{1,4}", block):
        block = [int(size) for size in block.split("x")]
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(size) is int and size > 0 for size in block)
    ):
        raise reader.refuse(f"{path}.weights.block_structure", block, "expected two sizes")
    return block[0], block[1]


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
    if sparsity := values.get("sparsity_config"):
        stored = reader.read_object(sparsity, f"{ROOT}.sparsity_config").get("format")
        if stored != "dense":
            wanted = "only dense weights are read"
            raise reader.refuse(f"{ROOT}.sparsity_config.format", stored, wanted)
    path = f"{ROOT}.config_groups"
    groups = reader.read_object(values.get("config_groups") or {}, path)
    if not groups:
        raise CheckpointError(
            f"{folder}: {path} holds 0 groups; at least one must say how weights are quantised"
        )
    return [read_group(reader, group, f"{path}.{name}") for name, group in groups.items()]

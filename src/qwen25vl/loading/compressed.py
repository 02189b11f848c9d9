"""Quantised checkpoints in the compressed-tensors format, which vLLM and transformers load too.

What is written is "pack-quantized", the only form that engines take for quantised weights under activations as they
are: `weight_packed`, `weight_scale` and `weight_shape` in place of `weight`. What is read besides is "int-quantized"
(int8 rows in `weight`), made for engines that round the activations to int8 too; here these stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen25vl.config import read_mapping
from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.checkpoint import SIGNED_BYTES, Checkpoint
from qwen25vl.loading.quantize import GROUP_SIZES, PackedLinear, TorchAoConfig, packed_twin

METHOD, PACKED, SIGNED = "compressed-tensors", "pack-quantized", "int-quantized"
VISION, TEXT = "model.visual.", "model.language_model."
VISION_TARGET, TEXT_TARGET = "re:.*visual[.]blocks[.].*", "re:.*layers[.][0-9]+[.].*"
NOTHING: tuple[Any, ...] = (None, False, {}, [])
Known = dict[str, tuple[Any, ...] | None]  # the values supported; None: any, as it says nothing about the numbers
TOP: Known = {"quant_method": (METHOD,), "format": (PACKED, SIGNED), "config_groups": None, "ignore": None}
TOP |= dict.fromkeys(("quantization_status", "global_compression_ratio", "version"))
GROUP: Known = {"targets": None, "weights": None, "input_activations": None, "format": (None, PACKED, SIGNED)}
NUMBERS: Known = {"type": ("int",), **dict.fromkeys(("observer", "observer_kwargs", "scale_dtype", "zp_dtype"))}
WEIGHTS = NUMBERS | {"num_bits": None, "symmetric": (True,), "actorder": (None, False, "weight", "static")}
OF_BITS: dict[int, Known] = {
    4: WEIGHTS | {"strategy": ("group",), "group_size": GROUP_SIZES},
    8: WEIGHTS | {"strategy": ("channel",), "group_size": (None, -1)},
}
DEFAULTS = {"num_bits": 8, "type": "int", "symmetric": True}
ACTIVATIONS = NUMBERS | {"num_bits": (8,), "symmetric": None, "dynamic": (True,), "strategy": ("token",)}


def describe(model: nn.Module) -> dict[str, Any] | None:
    """The quantization_config of a model; None where nothing is quantised."""
    schemes = {path: module.scheme for path, module in model.named_modules() if isinstance(module, PackedLinear)}
    text = next((scheme for path, scheme in schemes.items() if path.startswith(TEXT)), None)
    if text is None:
        return None
    vision = next((scheme for path, scheme in schemes.items() if path.startswith(VISION)), None)
    kept = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    ignored = ["re:.*visual[.].*"] if vision is None and any(path.startswith(VISION) for path in kept) else []
    ignored += [
        f"re:.*{re.escape(path.removeprefix(TEXT).removeprefix('model.'))}$"
        for path in kept
        if path.startswith(TEXT) or (vision is not None and path.startswith(VISION))
    ]
    groups = [describe_group(text, "Linear")]
    if vision is not None and vision.bits != text.bits:  # no "Linear": some readers take the first group that fits
        groups = [describe_group(text, TEXT_TARGET), describe_group(vision, VISION_TARGET)]
    return {
        "quant_method": METHOD,
        "format": PACKED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": ["lm_head", *ignored],
    }


def describe_group(scheme: TorchAoConfig, target: str) -> dict[str, Any]:
    by_group = {"strategy": "group", "group_size": scheme.inputs_per_scale(0)}
    scales = by_group if scheme.bits == 4 else {"strategy": "channel", "group_size": None}
    weights = {"num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False, **scales}
    return {"targets": [target], "weights": weights, "input_activations": None, "output_activations": None}


def weight_shapes(model: nn.Module) -> dict[str, torch.Tensor]:
    """The `weight_shape` of each quantised layer, which the format stores and a model knows."""
    return {
        f"{path}.weight_shape": torch.tensor([module.out_features, module.in_features])
        for path, module in model.named_modules()
        if isinstance(module, PackedLinear)
    }


def read_scheme(config: Mapping[str, Any], folder: Path) -> TorchAoConfig:
    """How a checkpoint's weights are quantised.

    Raises CheckpointError that names the first key whose value is not supported, or that is unknown and not empty.
    """

    def check(values: object, known: Known, path: str) -> dict[str, Any]:
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{folder}: {path} is {values!r}; it must be a JSON object")
        for key, value in {**dict.fromkeys(known), **values}.items():
            supported = known.get(key, NOTHING)
            if supported is not None and value not in supported:
                wanted = " or ".join(map(repr, supported)) if key in known else "nothing by that name"
                raise CheckpointError(f"{folder}: {path}.{key} is {value!r}; supported is {wanted}")
        return dict(values)

    root = "quantization_config"
    schemes, vision = [], False
    for name, values in read_mapping(check(config, TOP, root), "config_groups").items():
        path = f"{root}.config_groups.{name}"
        group = check(values, GROUP, path)
        weights = {**DEFAULTS, **read_mapping(group, "weights")}
        bits = check({"num_bits": weights["num_bits"]}, {"num_bits": (*OF_BITS,)}, f"{path}.weights")["num_bits"]
        check(weights, OF_BITS[bits], f"{path}.weights")
        if group.get("input_activations"):
            check({**DEFAULTS, **read_mapping(group, "input_activations")}, ACTIVATIONS, f"{path}.input_activations")
        if bits == 8 and group["targets"] == [VISION_TARGET]:
            vision = True
            continue
        schemes.append(TorchAoConfig(f"int{bits}_weight_only", weights.get("group_size") if bits == 4 else None))
    if len(set(schemes)) != 1:
        raise CheckpointError(f"{folder}: {root}.config_groups holds {len(schemes)} groups; supported is one kind")
    return replace(schemes[0], vision=vision)


def expect_packed(model: nn.Module, checkpoint: Checkpoint, scheme: TorchAoConfig) -> None:
    """Give a model on "meta" the quantised layers that a checkpoint stores. Raises TensorError for other shapes."""
    for path, linear in [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]:
        shape, rows = [linear.out_features, linear.in_features], checkpoint.stored.get(f"{path}.weight")
        if rows is not None and rows.type_name == "I8" and list(rows.shape) == shape and scheme.bits == 8:
            packed = replace(rows, shape=(shape[0], -(-shape[1] // 4)), type_name=SIGNED_BYTES)
            checkpoint.stored[f"{path}.weight_packed"] = packed
            del checkpoint.stored[f"{path}.weight"]
        elif f"{path}.weight_packed" not in checkpoint.stored:
            continue
        if (found := checkpoint.unpacked_shapes.get(path, shape)) != shape:
            raise TensorError(f"{checkpoint.folder}: {path}.weight_shape is {found}, config.json makes it {shape}")
        model.set_submodule(path, packed_twin(linear, scheme.of(path)))

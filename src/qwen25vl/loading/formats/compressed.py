"""Quantised checkpoints in the compressed-tensors format, which vLLM and transformers load too.

What is written is "pack-quantized", the only form that engines take for quantised weights under
activations as they are: `weight_packed`, `weight_scale` and `weight_shape` in place of `weight`,
and `weight_zero_point` where the zero is not the middle of the codes.
What is read besides is "int-quantized" (int8 rows in `weight`), made for engines that round the
activations to int8 too; here these stay as they are. `compressed_config.py` reads what config.json
says of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.checkpoint import Checkpoint, hub_name
from qwen25vl.loading.formats.compressed_config import METHOD, PACKED, LayerGroup
from qwen25vl.loading.formats.compressed_others import expect_other
from qwen25vl.loading.quantization import make_packed_layer
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import PackedLinear

VISION, TEXT = "model.visual.", "model.language_model."
VISION_TARGET, TEXT_TARGET = "re:.*visual[.]blocks[.].*", "re:.*layers[.][0-9]+[.].*"
HEAD = "lm_head"
OF_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
Form = tuple[int, int | None, bool]  # bits, inputs per scale where in groups, zero points


def describe_quantisation(model: nn.Module) -> dict[str, Any] | None:
    """The quantization_config of a model; None where nothing is quantised."""
    paths = paths_of_forms(model)
    if not paths:
        return None
    groups = [describe_group(*form, choose_targets(paths, form)) for form in paths]
    groups.sort(key=lambda group: group["targets"] == [VISION_TARGET])
    packed = [path for alike in paths.values() for path in alike]
    return {
        "quant_method": METHOD,
        "format": PACKED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": list_ignored(model, packed),
    }


def paths_of_forms(model: nn.Module) -> dict[Form, list[str]]:
    """The quantised layers of each form, by path."""
    paths: dict[Form, list[str]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, PackedLinear):
            group_size = layer.group_size if layer.bits == 4 else None
            form = layer.bits, group_size, layer.weight_zero_point is not None
            paths.setdefault(form, []).append(path)
    return paths


def choose_targets(paths: dict[Form, list[str]], form: Form) -> list[str]:
    """Names for the layers of one form: as few as tell them from the others.

    "Linear", which fits all, serves only alone: some readers take the first group that fits.
    """
    if len(paths) == 1:
        return ["Linear"]
    if len(paths) == 2:
        towers = {one: {tower_of(path) for path in alike} for one, alike in paths.items()}
        if sorted(map(sorted, towers.values())) == [[TEXT], [VISION]]:
            return [TEXT_TARGET if towers[form] == {TEXT} else VISION_TARGET]
    return [pattern_of(path) for path in paths[form]]


def tower_of(path: str) -> str:
    return VISION if path.startswith(VISION) else TEXT


def pattern_of(path: str) -> str:
    """A pattern for one layer, whatever stands before its name in another layout."""
    return f"re:.*{re.escape(path.removeprefix(TEXT).removeprefix('model.'))}$"


def list_ignored(model: nn.Module, packed: Sequence[str]) -> list[str]:
    """Names of the linear layers that are not quantised; the vision encoder by one pattern where
    none of it is."""
    has_vision = any(path.startswith(VISION) for path in packed)
    kept = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    ignored = [] if HEAD in packed else [HEAD]
    if not has_vision and any(path.startswith(VISION) for path in kept):
        ignored.append("re:.*visual[.].*")
    parts = (TEXT, VISION) if has_vision else TEXT
    return [*ignored, *(pattern_of(path) for path in kept if path.startswith(parts))]


def describe_group(
    bits: int, group_size: int | None, has_zeros: bool, targets: list[str]
) -> dict[str, Any]:
    strategy = "group" if bits == 4 else "channel"
    numbers = {"num_bits": bits, "type": "int", "symmetric": not has_zeros, "dynamic": False}
    weights = {**numbers, "strategy": strategy, "group_size": group_size}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }


def weight_shapes(model: nn.Module) -> dict[str, torch.Tensor]:
    """The `weight_shape` of each quantised layer, which the format stores and a model knows."""
    return {
        f"{path}.weight_shape": torch.tensor(
            [module.out_features, module.in_features], dtype=torch.int64, device="cpu"
        )
        for path, module in model.named_modules()
        if isinstance(module, PackedLinear)
    }


def expect_packed(model: nn.Module, checkpoint: Checkpoint, groups: Sequence[LayerGroup]) -> None:
    """Give a model on "meta" the quantised layers that a checkpoint stores.

    Raises TensorError for other shapes, CheckpointError for a quantised layer that no group covers.
    """
    for path, linear in [
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)
    ]:
        covering = [group for group in groups if group.covers(path) or group.covers(hub_name(path))]
        schemes = [group.scheme for group in covering if group.scheme is not None]
        expect_signed_rows(path, linear, checkpoint, schemes)
        drop_activations(path, checkpoint)
        is_packed = f"{path}.weight_packed" in checkpoint.stored
        if not is_packed and f"{path}.weight_scale" not in checkpoint.stored:
            continue
        if not covering:
            raise CheckpointError(
                f"{checkpoint.folder}: {path} is quantised, but no target in config_groups names it"
            )
        shape = [linear.out_features, linear.in_features]
        if (found := checkpoint.unpacked_shapes.get(path, shape)) != shape:
            raise TensorError(
                f"{checkpoint.folder}: {path}.weight_shape is {found}, config.json makes it {shape}"
            )
        candidates = [make_packed_layer(linear, scheme) for scheme in schemes]
        fitting = [layer for layer in candidates if is_stored(layer, path, checkpoint)]
        is_sorted = f"{path}.weight_g_idx" in checkpoint.stored
        if is_sorted or (not fitting and len(schemes) < len(covering)):
            expect_other(model, path, linear, checkpoint, covering)
        elif is_packed:
            if all(group.is_sorted for group in covering):
                raise TensorError(f"{checkpoint.folder}: {hub_name(path)}.weight_g_idx is missing")
            # of none that fits, Checkpoint.match names the sizes
            model.set_submodule(path, [*fitting, *candidates][0])


def expect_signed_rows(
    path: str, linear: nn.Linear, checkpoint: Checkpoint, schemes: Sequence[Scheme]
) -> None:
    """Have int8 rows read as `weight_packed`, where a group of 8 bits covers the layer."""
    rows, shape = checkpoint.stored.get(f"{path}.weight"), (linear.out_features, linear.in_features)
    if (
        rows is None
        or rows.type_name != "I8"
        or rows.shape != shape
        or all(scheme.bits != 8 for scheme in schemes)
    ):
        return
    words = shape[0], -(-shape[1] // 4)
    packed = replace(rows, shape=words, type_name="I32", convert=pack_signed_rows)
    checkpoint.stored[f"{path}.weight_packed"] = packed
    del checkpoint.stored[f"{path}.weight"]


def drop_activations(path: str, checkpoint: Checkpoint) -> None:
    """Forget the scales of activations, which stay as they are here."""
    for name in OF_ACTIVATIONS:
        checkpoint.stored.pop(f"{path}.{name}", None)


def pack_signed_rows(rows: torch.Tensor) -> torch.Tensor:
    """int8 rows to words of four codes, level + 128."""
    return F.pad(rows.view(torch.uint8) ^ 0x80, (0, -rows.shape[1] % 4)).view(torch.int32)


def is_stored(layer: PackedLinear, path: str, checkpoint: Checkpoint) -> bool:
    """Whether a layer's tensors have the shapes that are stored.

    Several groups may cover a layer, and readers differ in which of them goes first;
    the shapes tell.
    """
    names = "weight_packed", "weight_scale", "weight_zero_point"
    stored = {name: checkpoint.stored.get(f"{path}.{name}") for name in names}
    shapes = {name: tensor.shape for name, tensor in stored.items() if tensor is not None}
    return shapes == {name: tuple(buffer.shape) for name, buffer in layer.named_buffers()}

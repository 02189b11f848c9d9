"""Forms of compressed-tensors that no layer holds as they are stored.

    weight_packed [O, ⌈I · bits / 32⌉] int32    codes, 2**(bits − 1) above the level
    weight_scale [O, G]    weight_zero_point [⌈O · bits / 32⌉, G] int32, packed down the outputs
    weight_g_idx [I] int32    the group of each input, where these were sorted ("actorder")
    w = (level − zero) · scale

4 bits with one scale for each output become groups with equal scales: exactly the same. All else
(8 bits in groups or with zeros, sorted inputs, 8-bit floating point) is worked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from qwen25vl.errors import TensorError
from qwen25vl.loading.checkpoint import Checkpoint, StoredTensor, hub_name
from qwen25vl.loading.dequantised import dequantise, require_finite
from qwen25vl.loading.formats import fp8
from qwen25vl.loading.formats.codes import read_groups, scale_groups, subtract_zeros, unpack_words
from qwen25vl.loading.formats.compressed_config import LayerGroup
from qwen25vl.loading.quantization import make_packed_layer
from qwen25vl.loading.scheme import GROUP_SIZES, Scheme

PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")


def expect_other(
    model: nn.Module,
    path: str,
    linear: nn.Linear,
    checkpoint: Checkpoint,
    groups: Sequence[LayerGroup],
) -> None:
    """Have one layer of such a form read. Raises TensorError for tensors of other shapes."""
    stored = checkpoint.stored
    if f"{path}.weight_packed" not in stored:
        block = next((group.block for group in groups if group.block is not None), None)
        fp8.work_out(checkpoint, path, block)
        return
    if all(group.has_zeros for group in groups) and f"{path}.weight_zero_point" not in stored:
        raise TensorError(f"{checkpoint.folder}: {hub_name(path)}.weight_zero_point is missing")
    parts = {name: stored[f"{path}.{name}"] for name in PARTS if f"{path}.{name}" in stored}
    num_outputs, num_inputs = linear.out_features, linear.in_features
    bits = next(
        (group.bits for group in groups if not group.is_float
         and parts["weight_packed"].shape == (num_outputs, -(-num_inputs * group.bits // 32))),
        None,
    )  # fmt: skip
    if bits is None or not fit_together(parts, num_outputs, num_inputs, bits):
        found = {name: list(tensor.shape) for name, tensor in parts.items()}
        raise TensorError(
            f"{checkpoint.folder}: {path} is stored as {found}, which is no matrix of "
            f"{[num_outputs, num_inputs]}"
        )
    if (
        bits == 4
        and parts["weight_scale"].shape == (num_outputs, 1)
        and "weight_g_idx" not in parts
    ):
        group_size = next((g for g in reversed(GROUP_SIZES) if num_inputs % g == 0), None)
        if group_size is not None:
            repeat_scales(model, path, linear, checkpoint, group_size)
            return
    for name in parts:
        del stored[f"{path}.{name}"]
    work_out(checkpoint, path, list(parts.items()), (num_outputs, num_inputs), bits)


def fit_together(
    parts: dict[str, StoredTensor], num_outputs: int, num_inputs: int, bits: int
) -> bool:
    """Whether scales, zeros and groups are those of a matrix of this size."""
    scale = parts.get("weight_scale")
    if scale is None or scale.type_name not in ("F16", "BF16", "F32") or len(scale.shape) > 2:
        return False
    rows, num_groups = scale.shape if len(scale.shape) == 2 else (1, 1)
    if rows != num_outputs and (rows, num_groups) != (1, 1):
        return False
    shapes: dict[str, tuple[int, ...]] = {
        "weight_zero_point": (-(-num_outputs * bits // 32), num_groups),
        "weight_g_idx": (num_inputs,),
    }
    others = {name: parts[name].shape for name in shapes if name in parts}
    has_groups = "weight_g_idx" in parts or num_inputs % num_groups == 0
    return has_groups and all(shape == shapes[name] for name, shape in others.items())


def repeat_scales(
    model: nn.Module, path: str, linear: nn.Linear, checkpoint: Checkpoint, group_size: int
) -> None:
    """Have a scale for each output read as one for each of its groups."""
    stored, num_groups = checkpoint.stored, linear.in_features // group_size
    has_zeros = f"{path}.weight_zero_point" in stored
    for name in ("weight_scale", "weight_zero_point") if has_zeros else ("weight_scale",):
        tensor = stored[f"{path}.{name}"]
        repeat = partial(torch.Tensor.repeat_interleave, repeats=num_groups, dim=1)
        stored[f"{path}.{name}"] = replace(
            tensor, shape=(tensor.shape[0], num_groups), convert=repeat
        )
    scheme = Scheme(4, group_size, has_zeros=has_zeros)
    model.set_submodule(path, make_packed_layer(linear, scheme))


def work_out(
    checkpoint: Checkpoint,
    path: str,
    parts: list[tuple[str, StoredTensor]],
    shape: tuple[int, int],
    bits: int,
) -> None:
    """Have a layer's weight read as numbers."""
    names = [name for name, _ in parts]
    scale_name = dict(parts)["weight_scale"].name
    middle = 1 << bits - 1

    def prepare(name: str, tensor: StoredTensor) -> StoredTensor:
        if name == "weight_scale":
            read = partial(read_scales, num_outputs=shape[0], name=scale_name)
            return replace(tensor, convert=read)
        if name == "weight_g_idx":
            num_groups = (dict(parts)["weight_scale"].shape or (1,))[-1]
            read = partial(read_groups, num_groups=num_groups, name=tensor.name)
            return replace(tensor, convert=read)
        return tensor

    def rows(tensors: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        given = dict(zip(names, tensors, strict=True))
        levels = unpack_words(given["weight_packed"][start:stop], bits)[:, : shape[1]].float()
        scales = given["weight_scale"][start:stop]
        groups = given.get("weight_g_idx")
        if "weight_zero_point" in given:
            zeros = zeros_of(given["weight_zero_point"], bits, start, stop)
            subtract_zeros(levels, zeros, groups)
        else:
            levels.sub_(middle)
        return scale_groups(levels, scales, groups)

    form = f"{bits} bits{' sorted by activations' if 'weight_g_idx' in names else ''}"
    prepared = [prepare(name, tensor) for name, tensor in parts]
    dequantise(checkpoint, f"{path}.weight", prepared, shape, rows, f"compressed-tensors ({form})")


def read_scales(scales: torch.Tensor, num_outputs: int, name: str) -> torch.Tensor:
    """[O, G] float32"""
    whole = scales.float().view(scales.shape if scales.ndim == 2 else (1, 1))
    return require_finite(whole, name).expand(num_outputs, -1)


def zeros_of(words: torch.Tensor, bits: int, start: int, stop: int) -> torch.Tensor:
    """Zeros of the outputs from one to another, [n, G] float32, out of words down the outputs."""
    per_word = 32 // bits
    first = start // per_word
    some = words[first : -(-stop // per_word)]
    codes = unpack_words(some.T, bits).T  # [outputs, G]
    return codes[start - first * per_word : stop - first * per_word].float()

"""What the kernels accept: type, device, shape and layout of every operand of every operation.

A kernel trusts its pointers, so nothing reaches one that does not pass here. What does not pass is
computed by torch (reference.py), which is right for every shape that means something and raises its
own error for the others.

M rows · K inputs · O outputs · N tokens or patches · H query heads, G key heads · d head size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from qwen25vl.errors import UsageError
from qwen25vl.kernels.readable import (
    BF16,
    has_rows,
    has_storage,
    is_bias,
    is_dense,
    is_observed,
    is_packed,
    is_plain,
    is_readable,
)

GROUP_SIZES = (32, 64, 128)
MAX_SHARED_HEADS = 96  # query heads of one key head that the attention kernel takes


class Product(NamedTuple):
    """A linear layer as `decode` takes it: weight [O, K] in 16 bits or its codes in 8 or 4, scale,
    zero points of 4-bit codes, bias [O].

    step: bytes from row to row of 8-bit codes; inputs that share a scale of 4-bit ones.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    zero_point: torch.Tensor | None
    bias: torch.Tensor | None
    bits: int
    inputs: int
    outputs: int
    step: int = 0


def fit_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """x [..., K], weight [O, K], bias [O], all bfloat16"""
    if weight.ndim != 2 or not weight.numel():
        return False
    num_outputs, num_inputs = weight.shape
    return (
        has_rows(x, num_inputs)
        and is_dense(weight, BF16, num_outputs, num_inputs)
        and is_bias(bias, num_outputs)
    )


def refuse_other_types(x: torch.Tensor, codes: torch.Tensor) -> None:
    """Raise UsageError for what is no quantised layer: torch would compute something from other
    codes as well."""
    if codes.dtype != torch.uint8 or not x.is_floating_point():
        raise UsageError(
            f"a quantised layer has {x.dtype} inputs, {codes.dtype} codes; expected floats, uint8"
        )


def fit_linear_int8(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> bool:
    """x [..., K], codes [O, K] uint8, scale [O] float32, bias [O]. Codes may be the first K columns
    of wider rows, if the last row is as wide as the others: the kernel reads whole rows."""
    if codes.ndim != 2 or not codes.numel() or not is_readable(codes, torch.uint8):
        return False
    (num_outputs, num_inputs), (row_stride, column_stride) = codes.shape, codes.stride()
    room = codes.untyped_storage().nbytes() - codes.storage_offset()
    return (
        has_rows(x, num_inputs)
        and column_stride == 1
        and row_stride >= num_inputs
        and room >= num_outputs * row_stride
        and is_dense(scale, torch.float32, num_outputs)
        and is_bias(bias, num_outputs)
    )


def fit_linear_int4(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    zero_point: torch.Tensor | None,
) -> bool:
    """x [..., K], codes [O, groups · g / 2] uint8, scale [O, groups] float16, bias [O], zero_point
    [⌈O / 8⌉, groups] int32; the groups cover K."""
    if codes.ndim != 2 or scale.ndim != 2 or not scale.numel() or not x.ndim:
        return False
    num_outputs, num_groups = scale.shape
    group_size, num_inputs = 2 * codes.shape[1] // num_groups, x.shape[-1]
    return (
        group_size in GROUP_SIZES
        and num_groups == -(-num_inputs // group_size)
        and has_rows(x, num_inputs)
        and is_dense(codes, torch.uint8, num_outputs, num_groups * group_size // 2)
        and is_dense(scale, torch.float16, num_outputs, num_groups)
        and is_bias(bias, num_outputs)
        and is_zero_point(zero_point, num_outputs, num_groups)
    )


def is_zero_point(zero_point: torch.Tensor | None, num_outputs: int, num_groups: int) -> bool:
    num_words = -(-num_outputs // 8)
    return zero_point is None or is_dense(zero_point, torch.int32, num_words, num_groups)


def fit_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """x [..., K], weight [K], both bfloat16"""
    return weight.ndim == 1 and has_rows(x, len(weight)) and is_dense(weight, BF16, len(weight))


def fit_silu_mul(gate: torch.Tensor, up: torch.Tensor) -> bool:
    """gate and up of one shape, bfloat16, contiguous"""
    is_pair = not is_observed() and is_packed(gate, BF16) and is_packed(up, BF16)
    return is_pair and gate.shape == up.shape and gate.numel() > 0


def fit_rotation(cos: torch.Tensor, sin: torch.Tensor, num_rows: int, size: int) -> bool:
    """cos and sin [N, 1, d / 2], both bfloat16 or both float32"""
    if size % 2 or cos.dtype not in (BF16, torch.float32):
        return False
    return all(is_dense(angles, cos.dtype, num_rows, 1, size // 2) for angles in (cos, sin))


def fit_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """x [N, H, d] bfloat16, the heads of a row side by side, and its rotation"""
    if x.ndim != 3 or not x.numel() or not is_readable(x, BF16):
        return False
    return x.stride()[1:] == (x.shape[2], 1) and fit_rotation(cos, sin, x.shape[0], x.shape[2])


def fit_heads(num_heads: int, num_kv_heads: int, size: int) -> bool:
    """Whether the attention kernel takes H query heads that share G key heads, of this size."""
    is_shared = num_kv_heads > 0 and num_heads % num_kv_heads == 0
    return (
        is_shared
        and 0 < num_heads <= MAX_SHARED_HEADS * num_kv_heads
        and size > 0
        and size % 2 == 0
    )


def fit_attend(
    q: torch.Tensor,
    lengths: Sequence[int],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    causal: bool,
) -> bool:
    """q [N, H, d]; lengths, keys, values of each segment, the latter two [G, M, d], all bfloat16.

    The lengths add up to N; with `causal` a segment has at least as many keys as rows. Rows of keys
    are equally far apart in all segments, and so are those of values; numbers of a head lie side by
    side.
    """
    if q.ndim != 3 or not q.numel() or not is_readable(q, BF16) or q.stride(2) != 1:
        return False
    is_listed = keys and len(keys) == len(values) == len(lengths) and keys[0].ndim == 3
    if not is_listed or min(lengths) < 1 or sum(lengths) != len(q):
        return False
    (_, num_heads, size), (num_kv_heads, *_) = q.shape, keys[0].shape
    steps = keys[0].stride(1), values[0].stride(1)
    if not fit_heads(num_heads, num_kv_heads, size):
        return False
    for length, *pair in zip(lengths, keys, values, strict=True):
        num_keys = pair[0].shape[1] if pair[0].ndim == 3 else 0
        for tensor, step in zip(pair, steps, strict=True):
            if not is_plain(tensor, BF16) or tensor.shape != (num_kv_heads, num_keys, size):
                return False
            is_laid_out = tensor.stride()[1:] == (step, 1) and has_storage(tensor)
            if not is_laid_out or num_keys < (length if causal else 1):
                return False
    return True


def fit_product(product: Product, num_inputs: int, num_outputs: int) -> bool:
    """Whether a linear layer is one of [num_inputs -> num_outputs] that `decode` can read."""
    row = torch.empty(1, num_inputs, dtype=BF16, device="cpu")
    if (product.inputs, product.outputs) != (num_inputs, num_outputs) or len(
        product.weight
    ) != num_outputs:
        return False
    if product.bits != 4 and product.zero_point is not None:
        return False
    if product.bits == 16:
        return fit_linear(row, product.weight, product.bias)
    if product.scale is None:
        return False
    if product.bits == 8:
        is_same_step = product.step == product.weight.stride(0)
        return is_same_step and fit_linear_int8(row, product.weight, product.scale, product.bias)
    is_same_step = product.step * product.scale.shape[-1] == 2 * product.weight.shape[-1]
    return (
        product.bits == 4
        and is_same_step
        and fit_linear_int4(row, product.weight, product.scale, product.bias, product.zero_point)
    )


def fit_decode(
    x: torch.Tensor,
    num_layers: int,
    rotation: tuple[torch.Tensor, torch.Tensor],
    sequences: Sequence[tuple[torch.Tensor, int, int]],
    num_heads: int,
) -> bool:
    """x [N, D] bfloat16, the rotation of its rows, and the sequences that they belong to, as
    `ops.decode` takes them.

    Every cache [layers, 2, G, capacity, d] has room for its sequence's new rows, which add up to N.
    """
    if x.ndim != 2 or not x.numel() or not is_readable(x, BF16) or not x.is_contiguous():
        return False
    if not sequences:
        return False
    first = sequences[0][0]
    if first.ndim != 5 or sum(rows for _, _, rows in sequences) != len(x):
        return False
    _, _, num_kv_heads, _, size = first.shape
    for storage, length, rows in sequences:
        capacity = storage.shape[3] if storage.ndim == 5 else 0
        if not is_dense(storage, BF16, num_layers, 2, num_kv_heads, capacity, size):
            return False
        if rows < 1 or length < 0 or length + rows > capacity:
            return False
    is_whole = num_heads * size == x.shape[1] and fit_heads(num_heads, num_kv_heads, size)
    return is_whole and fit_rotation(*rotation, len(x), size)


def fit_frames(frames: torch.Tensor, height: int, width: int) -> bool:
    """frames uint8 [T, 3, H, W], to be resized to height × width pixels; strides do not matter"""
    is_picture = frames.ndim == 4 and frames.shape[1] == 3 and frames.numel() > 0
    return is_picture and is_readable(frames, torch.uint8) and height > 0 and width > 0


def fit_patches(
    frames: torch.Tensor, size: tuple[int, int], mean: torch.Tensor, deviation: torch.Tensor,
    patch: int, merge: int, temporal: int,
) -> bool:  # fmt: skip
    """`fit_frames`, and: mean, deviation float32 [3], sides that are multiples of patch · merge"""
    if not fit_frames(frames, *size) or min(patch, merge, temporal) < 1:
        return False
    is_whole = all(side % (patch * merge) == 0 for side in size)
    return is_whole and is_dense(mean, torch.float32, 3) and is_dense(deviation, torch.float32, 3)

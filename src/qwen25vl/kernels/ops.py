"""The only door to compiled code. Each operation asks for its kernel and takes its twin in torch where there is none.

The kernels serve bfloat16 on the CPU where no gradient is kept. The integer ones also quantise the activations, to 8
bits in groups of 128 inputs of a row: half a step of 1/127 of the group's largest number at most. Every row is
computed alone, in the same order whatever stands beside it: a row gives the same bits alone and in a batch.

M rows · K inputs · O outputs · g group size
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812

from qwen25vl.kernels import native, twins

MAX_SHARED_HEADS = 96  # query heads of one key head that the attention kernel takes


def kernel_for(name: str, *tensors: torch.Tensor) -> native.Function | None:
    """The compiled kernel of this name, if these bfloat16 operands are its kind."""
    for tensor in tensors:
        if tensor.dtype != torch.bfloat16 or not tensor.is_cpu or (tensor.requires_grad and torch.is_grad_enabled()):
            return None
    return native.function(name)


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Product(NamedTuple):
    """A linear layer as `decode` takes it: weight [O, K] in 16 bits or its codes in 8 or 4, scale, bias [O].

    step: bytes from row to row of 8-bit codes; inputs that share a scale of 4-bit ones.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    bits: int
    inputs: int
    outputs: int
    step: int = 0


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y[m, o] = Σ_k x[m, k] · weight[o, k] + bias[o]: x [..., K], weight [O, K], bias [O] -> [..., O]"""
    kernel = kernel_for("linear_bf16", x, weight)
    if kernel is None or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    rows, y = open_product(x, len(weight))
    sizes = y.numel() // len(weight), weight.shape[1], len(weight)
    kernel(y.data_ptr(), rows.data_ptr(), weight.data_ptr(), address(bias), *sizes, torch.get_num_threads())
    return y


def linear_int8(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`twins.linear_int8`; codes may be the first K columns of wider rows."""
    kernel = kernel_for("linear_int8", x)
    if kernel is None:
        return twins.linear_int8(x, codes, scale, bias)
    rows, y = open_product(x, len(codes))
    sizes = y.numel() // len(codes), codes.shape[1], len(codes), codes.stride(0)
    operands = y.data_ptr(), rows.data_ptr(), codes.data_ptr(), scale.data_ptr(), address(bias)
    kernel(*operands, *sizes, torch.get_num_threads())
    return y


def linear_int4(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`twins.linear_int4`"""
    kernel = kernel_for("linear_int4", x)
    if kernel is None:
        return twins.linear_int4(x, codes, scale, bias)
    rows, y = open_product(x, len(codes))
    sizes = y.numel() // len(codes), x.shape[-1], len(codes), 2 * codes.shape[1] // scale.shape[1]
    operands = y.data_ptr(), rows.data_ptr(), codes.data_ptr(), scale.data_ptr(), address(bias)
    kernel(*operands, *sizes, torch.get_num_threads())
    return y


def open_product(x: torch.Tensor, num_outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x with its rows one after another in memory, room for the outputs)"""
    return x.contiguous(), torch.empty(*x.shape[:-1], num_outputs, dtype=x.dtype)


def attend(
    q: torch.Tensor,
    lengths: Sequence[int],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    causal: bool,
) -> torch.Tensor | None:
    """softmax(q·kᵀ/√d)·v of each head in each segment, or None where there is no kernel for it.

    q [N, H, d] holds `lengths` rows of every segment, one segment after another; keys, values: [K, M, d] of each
    segment, with the same distance between rows in all. With `causal` the last row of a segment sees all its M keys,
    each row before it one less.
    """
    kernel = kernel_for("attend", q, keys[0], values[0])
    _, num_heads, size = q.shape
    num_kv_heads = len(keys[0])
    if kernel is None or num_heads > MAX_SHARED_HEADS * num_kv_heads or size % 2 or q.stride(2) != 1:
        return None
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    segments = (
        (start, length, k.shape[1], k.data_ptr(), v.data_ptr(), k.stride(0), v.stride(0))
        for start, length, k, v in zip(accumulate(lengths, initial=0), lengths, keys, values, strict=False)
    )
    table = array("q", chain.from_iterable(segments))  # eight bytes a number; a tensor would take 6 µs to build
    kernel(
        *(out.data_ptr(), q.data_ptr(), q.stride(0), q.stride(1), table.buffer_info()[0], len(keys)),
        *(keys[0].stride(1), values[0].stride(1), num_heads, num_kv_heads, size, size**-0.5, causal),
        torch.get_num_threads(),
    )
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`twins.rms_norm`"""
    kernel = kernel_for("rms_norm", x, weight)
    if kernel is None:
        return twins.rms_norm(x, weight, eps)
    x, y = open_product(x, x.shape[-1])
    sizes = x.numel() // x.shape[-1], x.shape[-1]
    kernel(y.data_ptr(), x.data_ptr(), weight.data_ptr(), eps, *sizes, torch.get_num_threads())
    return y


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`twins.silu_mul`"""
    kernel = kernel_for("silu_mul", gate, up)
    if kernel is None or not (gate.is_contiguous() and up.is_contiguous()):
        return twins.silu_mul(gate, up)
    y = torch.empty_like(gate)
    kernel(y.data_ptr(), gate.data_ptr(), up.data_ptr(), y.numel(), torch.get_num_threads())
    return y


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """`twins.rotate`; x [N, H, d] may lie in a wider matrix."""
    kernel = kernel_for("rotate", x)
    cos, sin = rotation
    in_place = x.ndim == 3 and x.stride(2) == 1 and x.stride(1) == x.shape[2] and cos.is_contiguous()
    if kernel is None or not in_place or cos.dtype not in (torch.bfloat16, torch.float32):
        return twins.rotate(x, cos, sin)
    y = torch.empty(x.shape, dtype=x.dtype)
    angles = cos.data_ptr(), sin.data_ptr(), cos.dtype == torch.bfloat16
    kernel(y.data_ptr(), x.data_ptr(), x.stride(0), *angles, *x.shape, torch.get_num_threads())
    return y


def decode(
    x: torch.Tensor,
    layers: array[int],
    eps: float,
    rotation: tuple[torch.Tensor, torch.Tensor],
    sequences: Sequence[tuple[torch.Tensor, int, int]],
    num_heads: int,
) -> bool:
    """x [N, D] through all decoder layers, in place; False, and nothing is done, where there is no kernel for it.

    layers: for each the addresses of its two norms and the numbers of its seven `Product`s. sequences: each one's
    cache [layers, 2, K, capacity, d], the tokens in it, and how many of the rows are its own and go behind these.
    """
    kernel = kernel_for("decode", x, *(storage for storage, _, _ in sequences))
    cos, sin = rotation
    num_layers, _, num_kv_heads, _, size = sequences[0][0].shape
    if kernel is None or num_heads > MAX_SHARED_HEADS * num_kv_heads or size % 2 or not cos.is_contiguous():
        return False
    table = array("q", chain.from_iterable((s.data_ptr(), s.shape[3], n, rows) for s, n, rows in sequences))
    kernel(
        *(x.data_ptr(), layers.buffer_info()[0], num_layers, eps, size**-0.5),
        *(cos.data_ptr(), sin.data_ptr(), cos.dtype == torch.bfloat16, table.buffer_info()[0], len(sequences)),
        *(len(x), num_heads, num_kv_heads, size, torch.get_num_threads()),
    )
    return True

"""The only door to compiled code. Each operation checks its operands, asks for its kernel and takes
its twin in torch where there is none for them.

The kernels serve bfloat16 on the CPU where no gradient is kept. The integer ones also quantise the
activations, to 8 bits in groups of 128 inputs of a row: half a step of 1/127 of the group's largest
number at most. Every row is computed alone, in the same order whatever stands beside it: a row
gives the same bits alone and in a batch.

M rows · K inputs · O outputs · g group size
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain

import torch
from torch.nn import functional as F  # noqa: N812

from qwen25vl.kernels import fallback, library, operands, reference
from qwen25vl.kernels.allocator import empty, empty_as
from qwen25vl.kernels.operands import Product
from qwen25vl.kernels.readable import BF16
from qwen25vl.threads import num_threads

__all__ = ["Product", "add", "attend", "decode", "empty_like", "linear", "linear_int4",
           "linear_int8", "rms_norm",
           "rotate", "silu_mul"]  # fmt: skip

NUMBERS_OF_LAYER = 2 + 7 * 8  # of the table that `decode` reads


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y[m, o] = Σ_k x[m, k] · weight[o, k] + bias[o]: x [..., K], weight [O, K], bias [O] -> [...,
    O]"""
    kernel = library.function("linear_bf16") if operands.fit_linear(x, weight, bias) else None
    if kernel is None:
        return F.linear(x, weight, bias)
    rows, y = open_product(x, len(weight))
    sizes = y.numel() // len(weight), weight.shape[1], len(weight)
    kernel(
        y.data_ptr(),
        rows.data_ptr(),
        weight.data_ptr(),
        address(bias),
        *sizes,
        num_threads(),
    )
    return y


def linear_int8(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`reference.linear_int8`; codes may be the first K columns of wider rows."""
    kernel = (
        library.function("linear_int8") if operands.fit_linear_int8(x, codes, scale, bias) else None
    )
    if kernel is None:
        operands.refuse_other_types(x, codes)
        return fallback.linear_int8(x, codes, scale, bias)
    rows, y = open_product(x, len(codes))
    sizes = y.numel() // len(codes), codes.shape[1], len(codes), codes.stride(0)
    pointers = y.data_ptr(), rows.data_ptr(), codes.data_ptr(), scale.data_ptr(), address(bias)
    kernel(*pointers, *sizes, num_threads())
    return y


def linear_int4(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference.linear_int4`"""
    fits = operands.fit_linear_int4(x, codes, scale, bias, zero_point)
    kernel = library.function("linear_int4") if fits else None
    if kernel is None:
        operands.refuse_other_types(x, codes)
        return fallback.linear_int4(x, codes, scale, bias, zero_point)
    rows, y = open_product(x, len(codes))
    sizes = y.numel() // len(codes), x.shape[-1], len(codes), 2 * codes.shape[1] // scale.shape[1]
    weight = codes.data_ptr(), scale.data_ptr(), address(zero_point), address(bias)
    kernel(y.data_ptr(), rows.data_ptr(), *weight, *sizes, num_threads())
    return y


def open_product(x: torch.Tensor, num_outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x with its rows one after another in memory, room for the outputs)"""
    return x.contiguous(), empty((*x.shape[:-1], num_outputs), x)


def attend(
    q: torch.Tensor,
    lengths: Sequence[int],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    causal: bool,
) -> torch.Tensor | None:
    """softmax(q·kᵀ/√d)·v of each head in each segment, or None where there is no kernel for it.

    q [N, H, d] holds `lengths` rows of every segment, one segment after another; keys, values: [K,
    M, d] of each segment, with the same distance between rows in all. With `causal` the last row of
    a segment sees all its M keys, each row before it one less.
    """
    name = "attend" if causal else "attend_segments"
    kernel = (
        library.function(name) if operands.fit_attend(q, lengths, keys, values, causal) else None
    )
    if kernel is None:
        return None
    (_, num_heads, size), num_kv_heads = q.shape, len(keys[0])
    out = empty(q.shape, q)
    segments = (
        (start, length, k.shape[1], k.data_ptr(), v.data_ptr(), k.stride(0), v.stride(0))
        for start, length, k, v in zip(
            accumulate(lengths, initial=0), lengths, keys, values, strict=False
        )
    )
    table = array(
        "q", chain.from_iterable(segments)
    )  # eight bytes a number; a tensor would take 6 µs to build
    kernel(
        *(
            out.data_ptr(),
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            table.buffer_info()[0],
            len(keys),
        ),
        *(
            keys[0].stride(1),
            values[0].stride(1),
            num_heads,
            num_kv_heads,
            size,
            size**-0.5,
            causal,
        ),
        num_threads(),
    )
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`reference.rms_norm`"""
    kernel = library.function("rms_norm") if operands.fit_rms_norm(x, weight) else None
    if kernel is None:
        return reference.rms_norm(x, weight, eps)
    x, y = open_product(x, x.shape[-1])
    sizes = x.numel() // x.shape[-1], x.shape[-1]
    kernel(y.data_ptr(), x.data_ptr(), weight.data_ptr(), eps, *sizes, num_threads())
    return y


def empty_like(x: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
    """Room for a result beside those of the kernels, of the shape of x if none is given. Where they
    do not serve x it is torch's, which could not use what the arena keeps."""
    shape = x.shape if shape is None else shape
    is_served = x.is_cpu and x.dtype == BF16 and library.function("linear_bf16") is not None
    return empty(shape, x) if is_served else x.new_empty(shape)


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x + y, of one shape and type: torch's sum, in memory as the kernels take it for their
    results."""
    if torch.is_grad_enabled() or not x.is_cpu or x.shape != y.shape or x.dtype != y.dtype:
        return x + y
    return torch.add(x, y, out=empty_like(x))


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`reference.silu_mul`"""
    kernel = library.function("silu_mul") if operands.fit_silu_mul(gate, up) else None
    if kernel is None:
        return reference.silu_mul(gate, up)
    y = empty_as(gate)
    kernel(y.data_ptr(), gate.data_ptr(), up.data_ptr(), y.numel(), num_threads())
    return y


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """`reference.rotate`; x [N, H, d] may lie in a wider matrix."""
    cos, sin = rotation
    kernel = library.function("rotate") if operands.fit_rotate(x, cos, sin) else None
    if kernel is None:
        return reference.rotate(x, cos, sin)
    y = empty(x.shape, x)
    angles = cos.data_ptr(), sin.data_ptr(), cos.dtype == torch.bfloat16
    kernel(y.data_ptr(), x.data_ptr(), x.stride(0), *angles, *x.shape, num_threads())
    return y


def decode(
    x: torch.Tensor,
    layers: array[int],
    eps: float,
    rotation: tuple[torch.Tensor, torch.Tensor],
    sequences: Sequence[tuple[torch.Tensor, int, int]],
    num_heads: int,
) -> bool:
    """x [N, D] through all decoder layers, in place; False, and nothing is done, where there is no
    kernel for it.

    layers: for each the addresses of its two norms and the numbers of its seven `Product`s.
    sequences: each one's cache [layers, 2, K, capacity, d], the tokens in it, and how many of the
    rows are its own and go behind these.
    """
    num_layers, cos, sin = len(layers) // NUMBERS_OF_LAYER, *rotation
    fits = operands.fit_decode(x, num_layers, rotation, sequences, num_heads)
    kernel = library.function("decode") if fits else None
    if kernel is None:
        return False
    _, _, num_kv_heads, _, size = sequences[0][0].shape
    table = array(
        "q", chain.from_iterable((s.data_ptr(), s.shape[3], n, rows) for s, n, rows in sequences)
    )
    kernel(
        *(x.data_ptr(), layers.buffer_info()[0], num_layers, eps, size**-0.5),
        *(
            cos.data_ptr(),
            sin.data_ptr(),
            cos.dtype == torch.bfloat16,
            table.buffer_info()[0],
            len(sequences),
        ),
        *(len(x), num_heads, num_kv_heads, size, num_threads()),
    )
    return True

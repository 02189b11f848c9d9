"""Quantised linear layers in torch: other devices and types, gradients, machines without compiled
kernels.

The equations are those of `twins`. Weights are unpacked at every call, as many rows at a time as
stay in a processor's cache. Where torch's own operation for 4-bit weights is fast, a layer can keep
a copy in that operation's layout (`pack_for_torch`).

M rows · K inputs · O outputs · g group size · K' = K in whole groups
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import cache

import torch
from torch.nn import functional as F  # noqa: N812

from qwen25vl.errors import UsageError
from qwen25vl.kernels import library
from qwen25vl.kernels.reference import ZERO_POINT, unpack_zeros

ELEMENTS_AT_A_TIME = 2**19
MAX_ROWS_IN_FLOAT32 = (
    4  # of bfloat16 rows: a faster product in bfloat16 costs a conversion of the weight
)
MAX_ROWS_OF_INT8_MM = 16
MAX_ROWS_OF_INT4_MM = 32  # beyond these, unpacking the weight first is faster
OUTPUTS_PER_TILE = 16


def linear_int8(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`reference.linear_int8`. The CPU sums x · level and applies the scale in float32: no sum
    overflows."""
    if codes.ndim != 2 or scale.shape != codes.shape[:1] or x.shape[-1:] != codes.shape[1:]:
        raise misfit(x, codes, scale)
    check_bias(bias, len(codes))
    announce(x)
    rows = x.reshape(-1, x.shape[-1])
    if not x.is_cpu:
        weight = (codes.to(torch.float32) - ZERO_POINT[8]) * scale.to(torch.float32)[:, None]
        return F.linear(x, weight.to(x.dtype), bias)
    y = sum_levels(rows, codes).to(accurate(x.dtype)) * scale
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).view(*x.shape[:-1], len(codes))


def sum_levels(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Σ_k x[m, k] · level[o, k]: [M, O], in bfloat16 where that is x's type and the rows are many,
    else wider."""
    blocks = codes.split(rows_at_a_time(codes.shape[1]))
    signed = (block.view(torch.int8) ^ -ZERO_POINT[8] for block in blocks)
    is_inference = not (torch.is_grad_enabled() and rows.requires_grad)
    # torch's kernel reads past the end of rows whose length is no multiple of 16
    is_aligned = codes.shape[1] % 32 == 0
    few = len(rows) <= MAX_ROWS_OF_INT8_MM
    if rows.dtype == torch.bfloat16 and is_inference and is_aligned and few:
        rows = rows.contiguous()
        unit = torch.ones(len(codes), dtype=rows.dtype, device="cpu")
        sums = [torch._weight_int8pack_mm(rows, levels, unit[: len(levels)]) for levels in signed]
    else:
        rows = rows.to(product_dtype(rows))
        sums = [F.linear(rows, levels.to(rows.dtype)) for levels in signed]
    return torch.cat(sums, -1)


def linear_int4(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference.linear_int4`. The weight is scaled in float32 before the product: no sum
    overflows."""
    is_grouped = codes.ndim == scale.ndim == 2 and scale.shape[1] > 0 and x.ndim > 0
    group_size = 2 * codes.shape[1] // scale.shape[1] if is_grouped else 0
    if group_size == 0 or scale.shape != (len(codes), -(-x.shape[-1] // group_size)):
        raise misfit(x, codes, scale)
    check_zero_point(zero_point, scale)
    check_bias(bias, len(codes))
    announce(x)
    rows = x.reshape(-1, x.shape[-1])
    num_outputs = rows_at_a_time(2 * codes.shape[1]) if x.is_cpu else len(codes)
    dtype = product_dtype(rows)
    rows = rows.to(dtype)
    zeros = None if zero_point is None else unpack_zeros(zero_point, len(codes))
    sums = []
    for first in range(0, len(codes), num_outputs):
        some = slice(first, first + num_outputs)
        some_zeros = None if zeros is None else zeros[some]
        weight = unpack_int4(codes[some], scale[some], accurate(x.dtype), some_zeros)
        sums.append(F.linear(rows, weight[:, : x.shape[-1]].to(dtype)))
    y = torch.cat(sums, -1)
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).view(*x.shape[:-1], len(codes))


def unpack_int4(
    codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """`reference.dequantise_int4` in a fifth of its time: [O, K' / 2] bytes, [O, K' / g], zeros
    [O, K' / g] unpacked -> [O, K']"""
    pairs = codes.to(torch.int16)  # 0x00hl
    pairs = (pairs | pairs << 4).bitwise_and_(0x0F0F)  # 0x0h0l: in memory l, h
    groups = pairs.view(torch.int8).view(*scale.shape, -1)
    groups.sub_(ZERO_POINT[4] if zeros is None else zeros.view(torch.int8)[..., None])
    return groups.to(dtype).mul_(scale.to(dtype)[..., None]).flatten(1)


def pack_for_torch(
    codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operands of torch's product of bfloat16 with 4 bits, from `reference.linear_int4`'s.

    codes [O, K' / 2] uint8, scale [O, K' / g] float16, zero_point [⌈O / 8⌉, K' / g] int32 -> the
    codes in torch's order [O', K' / 2] uint8, where O' is O rounded up to whole tiles; scale and
    offset [K' / g, O', 2] bfloat16: torch has weight = scale · (code − 8) + offset. The order
    depends on the processor.
    """
    missing = -len(codes) % OUTPUTS_PER_TILE
    scale = scale.float()
    offset = torch.zeros_like(scale)
    if zero_point is not None:
        offset = (ZERO_POINT[4] - unpack_zeros(zero_point, len(codes)).float()) * scale
    codes, scale, offset = (F.pad(each, (0, 0, 0, missing)) for each in (codes, scale, offset))
    step = -(-rows_at_a_time(2 * codes.shape[1]) // 64) * 64  # the largest tile
    ordered = [
        torch._convert_weight_to_int4pack_for_cpu(
            torch.stack((block & 15, block >> 4), -1).flatten(1).int(), 2
        )
        for block in codes.split(step)
    ]
    scale_and_offset = torch.stack((scale, offset), -1).transpose(0, 1)
    return torch.cat(ordered), scale_and_offset.to(torch.bfloat16).contiguous()


def serves_packed(x: torch.Tensor) -> bool:
    """Whether `linear_packed_int4` takes these activations, and faster than unpacking the weight
    would be."""
    num_rows = x.numel() // max(1, x.shape[-1])
    is_kind = x.dtype == torch.bfloat16 and x.is_cpu and 0 < num_rows <= MAX_ROWS_OF_INT4_MM
    return is_kind and not torch.is_grad_enabled() and has_fast_int4()


@cache
def has_fast_int4() -> bool:
    """Whether torch's product with 4 bits is vectorised here; its plain loop is slower than
    unpacking."""
    has_it = hasattr(torch, "_weight_int4pack_mm_for_cpu") and sys.platform != "win32"
    return has_it and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def linear_packed_int4(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale_and_offset: torch.Tensor,
    num_outputs: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference.linear_int4` of `pack_for_torch`'s operands: sums in float32, scales and
    offsets rounded to bfloat16."""
    announce(x)
    num_inputs = 2 * packed.shape[1]
    rows = F.pad(x.reshape(-1, x.shape[-1]), (0, num_inputs - x.shape[-1])).contiguous()
    group_size = num_inputs // len(scale_and_offset)
    y = torch._weight_int4pack_mm_for_cpu(rows, packed, group_size, scale_and_offset)
    y = y[:, :num_outputs]
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).reshape(*x.shape[:-1], num_outputs)


def misfit(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> UsageError:
    """For operands that torch would broadcast to some result."""
    shapes = ", ".join(str(list(tensor.shape)) for tensor in (x, codes, scale))
    return UsageError(
        f"inputs, codes and scale of a quantised layer have shapes {shapes}, which do not fit "
        "together"
    )


def check_zero_point(zero_point: torch.Tensor | None, scale: torch.Tensor) -> None:
    wanted = -(-len(scale) // 8), scale.shape[1]
    if zero_point is not None and (zero_point.shape, zero_point.dtype) != (wanted, torch.int32):
        raise UsageError(
            f"the zero points of a quantised layer are {zero_point.dtype} of shape "
            f"{list(zero_point.shape)}; expected torch.int32, {list(wanted)}"
        )


def check_bias(bias: torch.Tensor | None, num_outputs: int) -> None:
    if bias is not None and bias.shape != (num_outputs,):
        raise UsageError(
            f"the bias of a quantised layer has shape {list(bias.shape)}; expected [{num_outputs}]"
        )


def rows_at_a_time(num_columns: int) -> int:
    return max(1, ELEMENTS_AT_A_TIME // num_columns)


def product_dtype(rows: torch.Tensor) -> torch.dtype:
    """The type in which a product of rows and an unpacked weight is fastest without overflow."""
    is_small = rows.dtype == torch.bfloat16 and len(rows) <= MAX_ROWS_IN_FLOAT32
    return (
        torch.float32 if rows.is_cpu and (is_small or rows.dtype == torch.float16) else rows.dtype
    )


def accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def announce(x: torch.Tensor) -> None:
    """Warn, once for each reason, where answers will be slow; training is never served by the
    kernels."""
    is_kernels_type = x.is_cpu and x.dtype == torch.bfloat16
    has_kernels = (
        is_kernels_type and library.function("linear_int8") is not None
    )  # only these operands lack one
    if not torch.is_grad_enabled() and not has_kernels:
        warn_slow(x.device.type, x.dtype)


@cache
def warn_slow(device: str, dtype: torch.dtype) -> None:
    """Say why no kernel serves quantised layers on this device in this type, and what would
    help."""
    remedy = "load without quantisation where memory allows"
    if device != "cpu":
        reason = f"there are none for {device}"
    elif dtype != torch.bfloat16:
        reason = f"they take bfloat16, not {str(dtype).removeprefix('torch.')}"
        remedy = f"load with dtype='bfloat16', or {remedy}"
    else:
        reason = library.choose().why
        if os.environ.get("QWEN25VL_KERNELS"):
            remedy = "unset QWEN25VL_KERNELS"
        elif library.is_supported():
            remedy = f"install a C++ compiler and reinstall qwen25vl, or {remedy}"
    warnings.warn(
        f"quantised layers are slow without compiled kernels ({reason}): they save memory, not "
        f"time; {remedy}",
        stacklevel=3,
    )

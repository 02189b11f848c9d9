"""The only door to compiled code: each operation with its equation, written in torch.

M rows · K inputs · O outputs · g group size
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

INT4_ZERO = 8
MAX_INT8_KERNEL_ROWS = 64  # torch's kernel reads int8 weights directly, but with more rows unpacking them first wins
INT8_KERNEL_STEP = 32


def linear_int8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y[m, o] = scale[o] · Σ_k x[m, k] · weight[o, k] + bias[o]

    x [..., K] floating, weight [O, K] int8, or uint8 with 128 added, scale [O] float32, bias [O] -> [..., O] in x's
    dtype. The sum is rounded to x's dtype once, scale and bias are applied in float32.
    """
    if weight.dtype == torch.uint8:
        weight = (weight ^ 128).view(torch.int8)
    rows = (x.flatten(0, -2) if x.ndim > 1 else x[None]).contiguous()
    if fits_int8_kernel(rows):
        sums = torch._weight_int8pack_mm(rows, weight, torch.ones_like(scale, dtype=x.dtype))
    else:
        sums = F.linear(rows, weight.to(x.dtype))
    y = sums.float() * scale
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def fits_int8_kernel(rows: torch.Tensor) -> bool:
    """Few bfloat16 rows on a CPU, without a gradient, for which torch's kernel has no formula.

    NOTE: that kernel reads past the end of rows whose length is no multiple of 16, without a check.
    """
    needs_gradient = torch.is_grad_enabled() and rows.requires_grad
    is_even = rows.shape[1] % INT8_KERNEL_STEP == 0 and rows.dtype == torch.bfloat16
    return is_even and len(rows) <= MAX_INT8_KERNEL_ROWS and rows.device.type == "cpu" and not needs_gradient


def linear_int4(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y[m, o] = Σ_k x[m, k] · scale[o, k // g] · level[o, k] + bias[o]

    x [..., K] floating, packed [O, K' / 2] uint8 and scale [O, K' / g] float16 as `dequantise_int4` reads them, where
    K' is K rounded up to whole groups, bias [O] -> [..., O] in x's dtype.
    """
    return F.linear(x, dequantise_int4(packed, scale, x.shape[-1], x.dtype), bias)


def dequantise_int4(packed: torch.Tensor, scale: torch.Tensor, num_inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """weight[o, k] = scale[o, k // g] · level[o, k], both in `dtype`: [O, num_inputs]"""
    weight = torch.empty(*packed.shape, 2, dtype=dtype, device=packed.device)
    weight[..., 0] = packed & 15
    weight[..., 1] = packed >> 4
    groups = weight.sub_(INT4_ZERO).view(*scale.shape, -1)
    return groups.mul_(scale.to(dtype)[..., None]).flatten(1)[:, :num_inputs]


def pack_int4(levels: torch.Tensor) -> torch.Tensor:
    """Levels −8 … 7 [O, K], K even, to bytes [O, K / 2]: level + 8, the even column in the low half.

    Viewed as little-endian int32 these bytes are the `weight_packed` of the compressed-tensors format.
    """
    codes = (levels + INT4_ZERO).to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4

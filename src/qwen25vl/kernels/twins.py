"""Every compiled operation as its equation in torch: for other devices and types, for gradients, and for the tests.

M rows · K inputs · O outputs · g group size
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

ZERO_POINT = {4: 8, 8: 128}


def linear_int8(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y[m, o] = scale[o] · Σ_k x[m, k] · (codes[o, k] − 128) + bias[o]

    x [..., K] floating, codes [O, K] uint8, scale [O] float32, bias [O] -> [..., O] in x's dtype. The sum is rounded
    to x's dtype once; scale and bias are applied in float32.
    """
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == torch.bfloat16 and x.is_cpu and not x.requires_grad and len(rows) <= 16 and x.shape[-1] % 32 == 0:
        # torch's kernel reads past the end of other rows. Its signed levels are made by blocks that stay in the cache
        unit = torch.ones_like(scale, dtype=x.dtype)
        step = max(1, 2**21 // x.shape[-1])
        blocks = zip(codes.split(step), unit.split(step), strict=True)
        sums = [torch._weight_int8pack_mm(rows, block.view(torch.int8) ^ -128, one) for block, one in blocks]
        y = torch.cat(sums, -1).view(*x.shape[:-1], len(codes))
    else:
        y = F.linear(x, codes.to(x.dtype) - ZERO_POINT[8])
    y = y.float() * scale
    return (y if bias is None else y + bias).to(x.dtype)


def linear_int4(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y[m, o] = Σ_k x[m, k] · scale[o, k // g] · level[o, k] + bias[o]

    x [..., K] floating, codes [O, K' / 2] uint8 and scale [O, K' / g] float16 as `dequantise_int4` reads them, where
    K' is K rounded up to whole groups, bias [O] -> [..., O] in x's dtype.
    """
    return F.linear(x, dequantise_int4(codes, scale, x.shape[-1], x.dtype), bias)


def dequantise_int4(codes: torch.Tensor, scale: torch.Tensor, num_inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """weight[o, k] = scale[o, k // g] · level[o, k], both in `dtype`: [O, num_inputs]"""
    weight = torch.empty(*codes.shape, 2, dtype=dtype, device=codes.device)
    weight[..., 0] = codes & 15
    weight[..., 1] = codes >> 4
    groups = weight.sub_(ZERO_POINT[4]).view(*scale.shape, -1)
    return groups.mul_(scale.to(dtype)[..., None]).flatten(1)[:, :num_inputs]


def pack_int4(levels: torch.Tensor) -> torch.Tensor:
    """Levels −8 … 7 [O, K], K even, to bytes [O, K / 2]: level + 8, the even column in the low half."""
    codes = (levels + ZERO_POINT[4]).to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = w · x / sqrt(mean(x²) + eps), the mean in float32 (arXiv 1910.07467)."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """y = gate / (1 + exp(−gate)) · up"""
    return F.silu(gate) * up


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn every head of x [N, H, d] by its row's angles, cos and sin [N, 1, d/2], in their precision."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

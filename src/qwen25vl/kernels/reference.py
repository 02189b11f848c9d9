"""Every compiled operation as its equation in torch: for other devices and types, for gradients,
and for the tests.

M rows · K inputs · O outputs · g group size
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

ZERO_POINT = {4: 8, 8: 128}


def linear_int8(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y[m, o] = Σ_k x[m, k] · scale[o] · (codes[o, k] − 128) + bias[o]

    x [..., K] floating, codes [O, K] uint8, scale [O] float32, bias [O] -> [..., O] in x's dtype.
    Computed in float32 (float64 where x is), rounded once.
    """
    return linear_in_float32(x, dequantise_int8(codes, scale, x.shape[-1]), bias)


def linear_int4(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """y[m, o] = Σ_k x[m, k] · scale[o, k // g] · (code[o, k] − zero[o, k // g]) + bias[o]

    x [..., K] floating, codes [O, K' / 2] uint8, scale [O, K' / g] float16 and zero_point [⌈O / 8⌉,
    K' / g] int32 as `dequantise_int4` reads them, where K' is K rounded up to whole groups, bias
    [O] -> [..., O] in x's dtype. Without zero_point all zeros are 8. Computed in float32 (float64
    where x is), rounded once.
    """
    weight = dequantise_int4(codes, scale, x.shape[-1], torch.float32, zero_point)
    return linear_in_float32(x, weight, bias)


def linear_in_float32(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(
        x.dtype
    )


def dequantise_int8(codes: torch.Tensor, scale: torch.Tensor, num_inputs: int) -> torch.Tensor:
    """weight[o, k] = scale[o] · (codes[o, k] − 128) in float32: [O, num_inputs]"""
    return (codes[:, :num_inputs].float() - ZERO_POINT[8]) * scale.float().view(-1, 1)


def dequantise_int4(
    codes: torch.Tensor,
    scale: torch.Tensor,
    num_inputs: int,
    dtype: torch.dtype,
    zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """weight[o, k] = scale[o, k // g] · (code[o, k] − zero[o, k // g]), all in `dtype`: [O,
    num_inputs]"""
    weight = torch.empty(*codes.shape, 2, dtype=dtype, device=codes.device)
    weight[..., 0] = codes & 15
    weight[..., 1] = codes >> 4
    zero = ZERO_POINT[4] if zero_point is None else unpack_zeros(zero_point, len(codes))[..., None]
    groups = weight.view(*scale.shape, -1).sub_(zero)
    return groups.mul_(scale.to(dtype)[..., None]).flatten(1)[:, :num_inputs]


def unpack_zeros(zero_point: torch.Tensor, num_outputs: int) -> torch.Tensor:
    """Words [⌈O / 8⌉, groups] int32 of the zeros of eight outputs, the first in the lowest bits ->
    [O, groups] uint8, from 0 to 15"""
    places = torch.arange(0, 32, 4, dtype=torch.int32, device=zero_point.device)
    zeros = (zero_point[:, None] >> places[:, None] & 15).to(torch.uint8)
    return zeros.flatten(0, 1)[:num_outputs]


def pack_zeros(zeros: torch.Tensor) -> torch.Tensor:
    """The inverse: [O, groups] -> [⌈O / 8⌉, groups] int32"""
    padded = F.pad(zeros.to(torch.int32), (0, 0, 0, -len(zeros) % 8)).unflatten(0, (-1, 8))
    places = torch.arange(0, 32, 4, dtype=torch.int32, device=zeros.device)
    words: torch.Tensor = (padded << places[:, None]).sum(1, dtype=torch.int32)
    return words


def pack_int4(levels: torch.Tensor) -> torch.Tensor:
    """Levels −8 … 7 [..., K], K even, to bytes [..., K / 2]: level + 8, the even column in the low
    half."""
    codes = (levels + ZERO_POINT[4]).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = w · x / sqrt(mean(x²) + eps), the mean in float32 (arXiv 1910.07467)."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """y = gate / (1 + exp(−gate)) · up"""
    return F.silu(gate) * up


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn every head of x [N, H, d] by its row's angles, cos and sin [N, 1, d/2], in their
    precision."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

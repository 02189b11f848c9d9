"""Numbers made into GGUF's blocks: rows [n, k] float32 to bytes, the inverse of gguf_blocks.py.

Rounding is that of ggml's reference code, except for Q6_K, whose scales it searches for; here they
follow from the largest number of each sub-block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from qwen25vl.errors import TensorError
from qwen25vl.loading.gguf_weights import PLAIN

ROWS_AT_A_TIME = 2**20  # numbers that are encoded at once


def largest(blocks: torch.Tensor) -> torch.Tensor:
    """[..., n] to [..., 1]: the number that is the farthest from 0, with its sign"""
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))


def inverse(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, 0, 1 / scales)


def as_half(scales: torch.Tensor) -> torch.Tensor:
    """[n, 1] float32 to the bytes [n, 2] of float16. Raises TensorError where it overflows."""
    made = scales.half()
    if not made.isfinite().all():
        raise TensorError("numbers too large for the float16 scales of this type, or not finite")
    return made.view(torch.uint8)


def encode_q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """[n, 32] to [n, 18]"""
    scales = largest(blocks) / -8
    codes = (blocks * inverse(scales) + 8.5).clamp_(0, 15).to(torch.uint8)
    return torch.cat([as_half(scales), codes[:, :16] | codes[:, 16:] << 4], 1)


def encode_q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """[n, 32] to [n, 34]"""
    scales = blocks.abs().amax(1, keepdim=True) / 127
    levels = blocks * inverse(scales)
    codes = (levels.abs() + 0.5).floor_().copysign_(levels).to(torch.int8)
    return torch.cat([as_half(scales), codes.view(torch.uint8)], 1)


def encode_q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """[n, 256] to [n, 210]"""
    parts = blocks.unflatten(1, (16, 16))
    wanted = (largest(parts) / -32).squeeze(-1)
    scale = largest(wanted) / -128
    half = as_half(scale)
    factors = (wanted * inverse(scale)).round_().clamp_(-128, 127)
    steps = half.view(torch.float16).float() * factors
    codes = (parts * inverse(steps)[..., None]).round_().clamp_(-32, 31).add_(32).to(torch.uint8)
    quarters = codes.view(-1, 2, 4, 32)  # of each half of the block
    low = quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4
    places = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device="cpu")[:, None]
    high = ((quarters >> 4) << places).sum(2, dtype=torch.uint8)
    scales = factors.to(torch.int8).view(torch.uint8)
    return torch.cat([low.flatten(1), high.flatten(1), scales, half], 1)


ENCODERS: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "Q4_0": (32, encode_q4_0), "Q8_0": (32, encode_q8_0), "Q6_K": (256, encode_q6_k),
}  # fmt: skip


def encode_tensor(tensor: torch.Tensor, type_name: str, name: str) -> torch.Tensor:
    """A tensor's bytes in a type. Raises TensorError, with the name, for what it cannot hold."""
    if type_name in PLAIN:
        made = tensor.to(PLAIN[type_name]).contiguous()
        if not made.isfinite().all():
            raise TensorError(f"{name}: numbers too large for {type_name}, or not finite")
        return made.reshape(-1).view(torch.uint8)
    per, encode = ENCODERS[type_name]
    step = max(1, ROWS_AT_A_TIME // tensor.shape[-1])
    try:
        parts = [encode(rows.float().reshape(-1, per)).flatten() for rows in tensor.split(step)]
    except TensorError as error:
        raise TensorError(f"{name}: {error}") from None
    return torch.cat(parts)

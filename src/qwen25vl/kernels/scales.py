"""Weights to levels of 8 or 4 bits: the scale of each group with the least error, and the levels
packed; compiled, or the same in torch.

A scale s gives a weight w the level q = round(w / s), one of −half … half − 1, where half is 128 or
8. For given levels the best scale is Σwq / Σq², which reduces the squared error from Σw² by
(Σwq)² / Σq². The largest |w| goes to the side that has one level more, so s may be negative.

O outputs · n groups of an output · g weights of a group
"""

from __future__ import annotations

import torch

from qwen25vl.kernels import library
from qwen25vl.kernels.readable import is_readable
from qwen25vl.kernels.reference import ZERO_POINT, pack_int4
from qwen25vl.threads import num_threads

SMALLEST_SCALE = 2.0**-20  # of which float16 still keeps five bits


def search(groups: torch.Tensor, bits: int, parts: torch.Tensor) -> torch.Tensor:
    """The scale of each group with the least Σ (w − s·q)² found: float32 [O, n, g] -> [O, n].

    parts [p]: where the largest |w| is tried, in lowest levels. The best trial gets one refinement
    step. NaN for a group with a weight that is not finite.
    """
    kernel = library.function("search_scales") if is_served(groups) else None
    if kernel is None:
        return search_in_torch(groups, ZERO_POINT[bits], parts.tolist())
    found = torch.empty(groups.shape[:-1], dtype=torch.float32, device="cpu")
    trials = parts.to("cpu", torch.float32).contiguous()
    pointers = found.data_ptr(), groups.data_ptr(), trials.data_ptr()
    sizes = found.numel(), groups.shape[-1], ZERO_POINT[bits], len(trials)
    kernel(*pointers, *sizes, num_threads())
    return found


def pack(groups: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest levels as codes, level + half: float32 [O, n, g] and [O, n] -> uint8 [O, n,
    g · bits / 8], of 4 bits the even one of two in the low half of a byte."""
    fits = is_served(groups) and is_served(scale) and scale.shape == groups.shape[:-1]
    kernel = library.function("pack_levels") if fits else None
    if kernel is None:
        return pack_in_torch(groups, scale, bits)
    width = groups.shape[-1] * bits // 8
    codes = torch.empty(*groups.shape[:-1], width, dtype=torch.uint8, device="cpu")
    pointers = codes.data_ptr(), groups.data_ptr(), scale.data_ptr()
    kernel(*pointers, scale.numel(), groups.shape[-1], bits, num_threads())
    return codes


def is_served(tensor: torch.Tensor) -> bool:
    return is_readable(tensor, torch.float32) and tensor.is_contiguous()


def search_in_torch(groups: torch.Tensor, half: int, parts: list[float]) -> torch.Tensor:
    low, high = groups.amin(-1), groups.amax(-1)  # each a tenth of the time of aminmax
    extreme = torch.where(-low > high, low, high)
    best = scale = extreme * 0  # NaN, and that to the end, where a weight is not finite
    for part in [*parts, None]:
        trial = scale if part is None else extreme / (-half * part)
        levels = nearest_levels(groups, keep_off_zero(trial), half)
        product = torch.linalg.vecdot(groups, levels)
        square = torch.linalg.vecdot(levels, levels).clamp_(min=1)
        reduction = product.square() / square
        scale = torch.where(reduction > best, product / square, scale)
        best = torch.maximum(best, reduction)
    return keep_off_zero(scale)


def pack_in_torch(groups: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    levels = nearest_levels(groups, scale, ZERO_POINT[bits]).to(torch.int16)
    return pack_int4(levels) if bits == 4 else (levels + ZERO_POINT[bits]).to(torch.uint8)


def nearest_levels(groups: torch.Tensor, scale: torch.Tensor, half: int) -> torch.Tensor:
    return (groups * scale.reciprocal()[..., None]).round_().clamp_(-half, half - 1)


def keep_off_zero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale.abs() < SMALLEST_SCALE, SMALLEST_SCALE, scale)

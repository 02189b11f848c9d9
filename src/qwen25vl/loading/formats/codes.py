"""Small whole numbers out of words, and matrices of them with scales: what several formats share.

Codes of 2, 4 or 8 bits fill a word, the first in the lowest bits.
"""

from __future__ import annotations

import torch

from qwen25vl.errors import TensorError


def read_groups(groups: torch.Tensor, num_groups: int, name: str) -> torch.Tensor:
    """The group of each input. Raises TensorError for one that has no scale."""
    lowest, highest = groups.aminmax()
    if lowest < 0 or highest >= num_groups:
        raise TensorError(f"{name} names groups from {lowest} to {highest} of {num_groups}")
    return groups.long()


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Words [..., n] of 32 bits to codes [..., 32 n / bits] uint8."""
    # NOTE contiguous() would leave a single column as it is, with strides that cannot be viewed
    dense = words.clone(memory_format=torch.contiguous_format)
    return unpack_bytes(dense.view(torch.uint8), bits)


def unpack_bytes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes [..., n] to codes [..., 8 n / bits] uint8."""
    if bits == 8:
        return packed
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device="cpu")
    codes: torch.Tensor = packed[..., None] >> places & (1 << bits) - 1
    return codes.flatten(-2)


def scale_groups(
    levels: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """levels · scale, in place.

    levels [n, I] float32; scales [n, G] of G equal groups of inputs, or of the group that `groups`
    [I] gives each input.
    """
    if groups is not None:
        return levels.mul_(scales[:, groups])
    return levels.view(*scales.shape, -1).mul_(scales[..., None]).view_as(levels)


def subtract_zeros(
    levels: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """levels − zero, in place; the arguments as in `scale_groups`."""
    if groups is not None:
        return levels.sub_(zeros[:, groups])
    return levels.view(*zeros.shape, -1).sub_(zeros[..., None]).view_as(levels)

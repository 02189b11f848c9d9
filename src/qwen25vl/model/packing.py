"""Between the ecosystem's padded [batch, length] and the packed rows used inside.

Padding is dropped at the door: linear layers never see it, attention walks real tokens only. So a
sequence gives the same numbers alone, in a batch, padded on the left or on the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwen25vl.errors import UsageError


@dataclass(frozen=True)
class Packing:
    """Which cells of a [B, L] batch hold tokens. `mask` is bool [B, L]; `lengths` counts tokens per
    row."""

    mask: torch.Tensor
    lengths: list[int]

    @classmethod
    def of(cls, shape: tuple[int, int], attention_mask: torch.Tensor | None) -> Packing:
        """Read an attention mask [B, ≥ L]; of a longer one (that counts cached tokens too) the last
        L columns."""
        batch, length = shape
        if attention_mask is None:
            return cls(torch.ones(shape, dtype=torch.bool, device="cpu"), [length] * batch)
        if (
            attention_mask.ndim != 2
            or attention_mask.shape[0] != batch
            or attention_mask.shape[1] < length
        ):
            raise UsageError(
                f"attention_mask has shape {list(attention_mask.shape)}; expected [{batch}, "
                f"{length}]"
            )
        mask = attention_mask[:, -length:].bool()
        lengths = mask.sum(1).tolist()
        if 0 in lengths:
            raise UsageError(
                f"row {lengths.index(0)} of the batch has no tokens: its attention_mask is all 0"
            )
        return cls(mask, lengths)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, L, …] -> [N, …]"""
        return padded[self.mask.to(padded.device)]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[N, …] -> [B, L, …], zeros where padding was."""
        padded = packed.new_zeros(*self.mask.shape, *packed.shape[1:])
        padded[self.mask.to(packed.device)] = packed
        return padded

"""Hidden states and attention weights of a forward pass, in the padded shapes of the ecosystem.

What is returned must be what the pass went on with: then gradients of the logits reach it. So each
packed tensor is unpacked into its padded place and packed again.
"""

from __future__ import annotations

import torch

from qwen25vl.model.cache import KVCache
from qwen25vl.model.packing import Packing


class Watch:
    """Collects what `LanguageModel.run` shows it of one call."""

    def __init__(self, packing: Packing, key_mask: torch.Tensor) -> None:
        """key_mask: bool [B, M], where the tokens of each row stand among all columns so far."""
        self.packing, self.key_mask = packing, key_mask
        self.states: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []

    def see_states(self, packed: torch.Tensor) -> torch.Tensor:
        """[N, D], collected as [B, L, D]"""
        self.states.append(self.packing.unpack(packed))
        return self.packing.pack(self.states[-1])

    def see_weights(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """[H, rows, M'] of each row of the batch, collected as [B, H, L, M]"""
        length, num_columns = self.packing.mask.shape[1], self.key_mask.shape[1]
        places = [
            (query.nonzero(), key.nonzero().flatten())
            for query, key in zip(self.packing.mask.cpu(), self.key_mask.cpu(), strict=True)
        ]
        padded = []
        for part, (rows, columns) in zip(weights, places, strict=True):
            full = part.new_zeros(len(part), length, num_columns)
            full[:, rows, columns] = part
            padded.append(full)
        self.weights.append(torch.stack(padded))
        rows_of = zip(self.weights[-1], places, strict=True)
        return [full[:, rows, columns] for full, (rows, columns) in rows_of]


def columns_of_tokens(
    packing: Packing, attention_mask: torch.Tensor | None, caches: list[KVCache] | None
) -> torch.Tensor:
    """bool [B, M]: where the tokens of each row stand, those in its cache included. The attention
    mask tells if it reaches that far back; otherwise cached tokens stand side by side."""
    before = [cache.length for cache in caches] if caches else [0] * len(packing.lengths)
    mask = packing.mask.cpu()
    if not any(before):
        return mask
    width = max(before)
    if attention_mask is not None and attention_mask.shape[1] > mask.shape[1]:
        earlier = attention_mask[:, : -mask.shape[1]].bool().cpu()
        if earlier.sum(1).tolist() == before:
            return torch.cat([earlier, mask], dim=1)
    columns = torch.arange(width, device="cpu")
    earlier = columns >= width - torch.tensor(before, dtype=torch.int64, device="cpu")[:, None]
    return torch.cat([earlier, mask], dim=1)

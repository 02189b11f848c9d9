"""The caches of a batch as one object with the methods that code for transformers expects.

Each row has a cache of its own, of its own length. Where transformers counts padded columns, this
counts the tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qwen25vl.model.cache import KVCache


@dataclass(frozen=True)
class CacheLayer:
    """keys, values [B, kv_heads, tokens, head_dim] of one layer; shorter rows begin with zeros."""

    keys: torch.Tensor
    values: torch.Tensor

    def get_seq_length(self) -> int:
        return self.keys.shape[2]


class BatchCache(list[KVCache]):
    """One cache for each row of a batch, as `forward` returns and takes them."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the longest row; all layers have as many."""
        return max((cache.length for cache in self), default=0)

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """−1: a cache grows as needed."""
        return -1

    @property
    def max_batch_size(self) -> int:
        return len(self)

    @property
    def is_initialized(self) -> bool:
        return self.get_seq_length() > 0

    @property
    def layers(self) -> list[CacheLayer]:
        """Copies of the stored keys and values, layer by layer."""
        length = self.get_seq_length()
        layers = []
        for layer in range(len(self[0].storage)):
            rows = [cache.storage[layer, :, :, : cache.length] for cache in self]
            padded = [torch.nn.functional.pad(r, (0, 0, length - r.shape[2], 0)) for r in rows]
            keys, values = torch.stack(padded, dim=1)
            layers.append(CacheLayer(keys, values))
        return layers

    def crop(self, max_length: int) -> None:
        """Forget the last tokens of every row, so that the longest keeps `max_length`; a negative
        number says how many to forget."""
        surplus = -max_length if max_length < 0 else self.get_seq_length() - max_length
        for cache in self if surplus > 0 else ():
            length = max(0, cache.length - surplus)
            cache.crop(length, cache.position_after(length))

    def reset(self) -> None:
        """Forget all tokens."""
        for cache in self:
            cache.crop(0, 0)

    def batch_select_indices(self, indices: Iterable[int] | torch.Tensor) -> None:
        """Keep these rows, in this order; a row that is named twice is copied."""
        wanted = [int(index) for index in indices]
        chosen: list[KVCache] = []
        for index in wanted:
            is_taken = any(cache is self[index] for cache in chosen)
            chosen.append(self[index].clone() if is_taken else self[index])
        self[:] = chosen

    def reorder_cache(self, beam_idx: Iterable[int] | torch.Tensor) -> None:
        """The same, under the name that beam search uses."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times, one after another."""
        self.batch_select_indices([row for row in range(len(self)) for _ in range(repeats)])

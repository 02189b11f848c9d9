"""The key/value cache of one sequence. Callers own it and pass it in; a batch is a list of them."""

from __future__ import annotations

import torch

from qwen25vl.config import Qwen2_5_VLTextConfig
from qwen25vl.errors import UsageError


class KVCache:
    """Keys and values of the tokens seen so far, in every layer, for one sequence.

    `length` counts the stored tokens, `next_position` is the MRoPE position of the token to come (they differ: a
    picture takes fewer positions than tokens). Storage [layers, 2, kv_heads, capacity, head_dim] doubles when full.
    """

    def __init__(
        self,
        config: Qwen2_5_VLTextConfig,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        capacity: int = 256,
    ) -> None:
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, capacity, config.head_dim)
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0
        self.next_position = 0

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all."""
        capacity = self.storage.shape[3]
        if length <= capacity:
            return
        shape = list(self.storage.shape)
        shape[3] = max(length, 2 * capacity)
        grown = self.storage.new_empty(shape)
        grown[:, :, :, : self.length] = self.storage[:, :, :, : self.length]
        self.storage = grown

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a layer's keys, values [kv_heads, tokens, head_dim] behind the stored ones and return all of them,
        [kv_heads, length + tokens, head_dim] each. `length` moves on with `advance`, once after the last layer."""
        stop = self.length + keys.shape[1]
        stored_keys, stored_values = self.storage[layer]
        stored_keys[:, self.length : stop] = keys
        stored_values[:, self.length : stop] = values
        return stored_keys[:, :stop], stored_values[:, :stop]

    def advance(self, num_tokens: int) -> None:
        self.length += num_tokens

    def crop(self, length: int, next_position: int) -> None:
        """Forget everything after the first `length` tokens. Raises UsageError where there are fewer."""
        if not 0 <= length <= self.length:
            raise UsageError(f"a cache of {self.length} tokens can not be cut to {length}")
        self.length, self.next_position = length, next_position

    def clone(self) -> KVCache:
        """A copy that can go its own way."""
        twin = object.__new__(KVCache)
        twin.storage, twin.length, twin.next_position = self.storage.clone(), self.length, self.next_position
        return twin

    def get_seq_length(self) -> int:
        """The ecosystem's name for `length`."""
        return self.length

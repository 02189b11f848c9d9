"""The key/value cache of one sequence. Callers own it and pass it in; a batch is a list of them."""

from __future__ import annotations

from typing import Any

import torch

from qwen25vl.config import Qwen2_5_VLTextConfig
from qwen25vl.errors import UsageError

GROWTH = 8  # a full cache grows by an eighth
NO_ENDS = torch.empty(0, dtype=torch.int64, device="cpu")


class KVCache:
    """Keys and values of the tokens seen so far, in every layer, for one sequence.

    `length` counts the stored tokens, `next_position` is the MRoPE position of the token to come
    (they differ: a picture takes fewer positions than tokens). `ends` [k] int64 says the same after
    each of the first tokens, up to the last picture or jump; further ones count on. Storage is
    [layers, 2, kv_heads, capacity, head_dim].

    Generation reserves the whole capacity at once, for the prompt and the longest answer allowed,
    and never moves it. Pages that hold no token yet take no memory. A caller of `forward` who does
    not know how much will follow gets a cache that grows when it is full: by an eighth, and while
    it is copied both exist.
    """

    def __init__(
        self,
        config: Qwen2_5_VLTextConfig,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        capacity: int = 256,
    ) -> None:
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, capacity, config.head_dim)
        self.storage = allocate(shape, dtype, device)
        self.length = 0
        self.next_position = 0
        self.ends = NO_ENDS

    @property
    def capacity(self) -> int:
        """Tokens for which there is room."""
        return self.storage.shape[3]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all."""
        if length > self.capacity:
            self.storage = self.copy_storage(max(length, self.capacity + self.capacity // GROWTH))

    def copy_storage(self, capacity: int) -> torch.Tensor:
        """The stored tokens in new storage with room for `capacity` tokens."""
        shape = list(self.storage.shape)
        shape[3] = capacity
        copied = allocate(tuple(shape), self.storage.dtype, self.storage.device)
        copied[:, :, :, : self.length] = self.storage[:, :, :, : self.length]
        return copied

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a layer's keys, values [kv_heads, tokens, head_dim] behind the stored ones and return
        all of them, [kv_heads, length + tokens, head_dim] each. `length` moves on with `advance`,
        once after the last layer."""
        stop = self.length + keys.shape[1]
        stored_keys, stored_values = self.storage[layer]
        stored_keys[:, self.length : stop] = keys
        stored_values[:, self.length : stop] = values
        return stored_keys[:, :stop], stored_values[:, :stop]

    def advance(self, num_tokens: int) -> None:
        self.length += num_tokens

    def crop(self, length: int, next_position: int) -> None:
        """Forget everything after the first `length` tokens. Raises UsageError where there are
        fewer."""
        if not 0 <= length <= self.length:
            raise UsageError(f"a cache of {self.length} tokens cannot be cut to {length}")
        self.length, self.next_position = length, next_position
        self.ends = self.ends[:length]

    def take_positions(self, positions: torch.Tensor) -> None:
        """Note where the tokens [3, n] stand that were stored last."""
        ends = ends_of(positions)
        before = self.length - len(ends)
        start = self.next_position
        counted_on = torch.arange(start + 1, start + 1 + len(ends), device="cpu")
        if not torch.equal(ends, counted_on):
            gap = torch.arange(len(self.ends) - before, 0, device="cpu") + 1 + start
            self.ends = torch.cat([self.ends, gap, ends])
        self.next_position = int(ends[-1])

    def position_after(self, length: int) -> int:
        """Where a token stands that follows the first `length` ones."""
        if not length:
            return 0
        if length <= len(self.ends):
            return int(self.ends[length - 1])
        return self.next_position - (self.length - length)

    def clone(self) -> KVCache:
        """A copy of the stored tokens with the same capacity, independent of this cache."""
        twin = object.__new__(KVCache)
        twin.storage = self.copy_storage(self.capacity)
        twin.length, twin.next_position = self.length, self.next_position
        twin.ends = self.ends
        return twin

    def copy_prefix(self, other: KVCache, length: int, next_position: int) -> None:
        """Begin with the first `length` tokens of another cache; what is stored here is
        replaced."""
        self.reserve(length)
        self.storage[:, :, :, :length] = other.storage[:, :, :, :length]
        self.length, self.next_position = length, next_position
        self.ends = other.ends[:length]

    def copy_of_prefix(self, length: int, next_position: int) -> KVCache:
        """A cache of its first `length` tokens, with room for no more."""
        copied = object.__new__(KVCache)
        copied.storage = self.storage[:, :, :, :length].clone()
        copied.length, copied.next_position = length, next_position
        copied.ends = self.ends[:length]
        return copied

    def get_seq_length(self) -> int:
        """The ecosystem's name for `length`."""
        return self.length


def allocate(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """A tensor that can be written outside of inference mode too: `forward` goes on from caches
    that generation has made."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=device)


def cache_bytes(config: Qwen2_5_VLTextConfig, num_tokens: int, item: int = 2) -> int:
    """Keys and values of all layers; item: bytes of a number, 2 in bfloat16."""
    return (
        2
        * item
        * num_tokens
        * config.num_hidden_layers
        * config.num_key_value_heads
        * config.head_dim
    )


def ends_of(positions: torch.Tensor) -> torch.Tensor:
    """Behind the largest position so far, after each token: [n] of positions [3, n]."""
    return positions.cpu().max(dim=0).values.cummax(dim=0).values + 1


def check_caches(
    past: Any, num_rows: int, config: Qwen2_5_VLTextConfig, dtype: torch.dtype
) -> list[KVCache]:
    """The caches that a caller gives for a batch. Raises UsageError for caches of other packages,
    of another model or dtype, and for another number of them."""
    wanted = "expected what generate or forward returned; leave it out to begin"
    if not isinstance(past, list | tuple):
        raise UsageError(f"past_key_values is {type(past).__name__}; {wanted}")
    if strange := [type(cache).__name__ for cache in past if not isinstance(cache, KVCache)]:
        raise UsageError(f"past_key_values holds {strange[0]}; {wanted}")
    if len(past) != num_rows:
        raise UsageError(f"past_key_values has {len(past)} sequences, the batch {num_rows}")
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, config.head_dim)
    for cache in past:
        layers, pair, heads, _, width = cache.storage.shape
        if (layers, pair, heads, width) != shape or cache.storage.dtype != dtype:
            raise UsageError(
                f"past_key_values has {layers} layers, {heads} heads of {width} numbers in "
                f"{cache.storage.dtype}; the model has {shape[0]}, {shape[2]} of {shape[3]} in "
                f"{dtype}"
            )
    return list(past)

"""Caches of finished sequences, kept whole, so that a prompt that begins alike is not read again.

With the compiled kernels a token's keys and values have the same bits in whatever pieces they were
computed. So a kept cache may be cut at any token, answers included, and what follows has the bits
of a fresh start. The longest common prefix with any kept sequence is copied; the last token of a
prompt is always computed, for its logits.

A sequence's key is the list of its token ids. The tokens of a medium all have one id, so there each
number is a hash of the medium's content, its settings and the place within it.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen25vl.arguments import byte_limit
from qwen25vl.engine.medium import Medium
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.layers import is_plain

Key = NDArray[np.int64]
SALT = os.urandom(16)  # nobody can construct media with equal hashes
MIN_TOKENS = 16  # shorter prefixes are not worth a copy


@dataclass(eq=False)
class KeptCache:
    """A cache with the tokens it holds, and the state of the weights that computed it."""

    key: Key
    cache: KVCache
    weights: Any

    @property
    def num_bytes(self) -> int:
        """On a CPU of the tokens stored: the rest of the storage was never touched."""
        storage = self.cache.storage
        if storage.device.type != "cpu":
            return storage.nbytes
        return storage.nbytes // self.cache.capacity * self.cache.length


class PrefixCache:
    """Kept caches within `max_bytes`; above it the least recently used ones are dropped. A copy or
    an unpickled one is empty. Raises UsageError for an invalid `max_bytes`."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = byte_limit("prefix_cache_bytes", max_bytes)
        self.kept: list[KeptCache] = []  # the least recently used first
        self.lock = Lock()

    def __reduce__(self) -> tuple[type[PrefixCache], tuple[int]]:
        return PrefixCache, (self.max_bytes,)

    def __repr__(self) -> str:
        return f"PrefixCache({len(self.kept)} kept, {self.num_bytes} of {self.max_bytes} bytes)"

    @property
    def num_bytes(self) -> int:
        return sum(kept.num_bytes for kept in self.kept)

    def find(self, key: Key, weights: Any) -> tuple[KeptCache, int] | None:
        """The kept cache that shares the longest prefix with a prompt, and its length, at most one
        less than the prompt's; None where no prefix is worth it."""
        with self.lock:
            fitting = [kept for kept in self.kept if kept.weights == weights]
            lengths = [min(common_prefix(kept.key, key), len(key) - 1) for kept in fitting]
            longest = max(lengths, default=0)
            if longest < MIN_TOKENS:
                return None
            best = fitting[lengths.index(longest)]
            self.kept.remove(best)
            self.kept.append(best)
            return best, longest

    def keep(self, key: Key, cache: KVCache, weights: Any) -> None:
        """Keep the cache of a sequence that is over. One that continues a kept one replaces it."""
        if not MIN_TOKENS <= len(key) == cache.length:
            return
        new = KeptCache(key, cache, weights)
        with self.lock:
            if any(begins_with(old.key, key) for old in self.kept if old.weights == weights):
                return
            self.kept = [old for old in self.kept if not is_replaced(old, new)]
            self.kept.append(new)
            self.shrink_to(self.max_bytes)

    def shrink_to(self, max_bytes: int) -> None:
        """Drop the least recently used caches until no more than this is left; for holders of the
        lock."""
        while self.kept and self.num_bytes > max_bytes:
            self.kept.pop(0)

    def release(self, num_bytes: int) -> None:
        """Free at least this much, or everything."""
        with self.lock:
            self.shrink_to(max(0, self.num_bytes - num_bytes))

    def clear(self) -> None:
        with self.lock:
            self.kept.clear()


def prefix_key(ids: Sequence[int], media: Sequence[Medium], salt: str = "") -> Key:
    """The key of a sequence: its ids, and negative hashes in the place of media. With a salt it
    has no beginning in common with keys of another one."""
    key = np.array(ids, dtype=np.int64)
    if salt:
        key[0] = np.uint64(hash_of((salt, ids[0])) | 2**63).astype(np.int64)
    for medium in media:
        start = np.uint64(hash_of(medium.key()))
        places = np.arange(medium.stop - medium.start, dtype=np.uint64)
        hashed = (start + places * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(2**63)
        key[medium.start : medium.stop] = hashed.view(np.int64)
    return key


def hash_of(value: object) -> int:
    """64 bits that nobody outside this process can foresee."""
    digest = hashlib.blake2b(repr(value).encode(), key=SALT, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def common_prefix(a: Key, b: Key) -> int:
    """The number of leading numbers that are equal."""
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(differs.argmax()) if differs.any() else size


def begins_with(key: Key, prefix: Key) -> bool:
    return len(prefix) <= len(key) and bool((key[: len(prefix)] == prefix).all())


def is_replaced(old: KeptCache, new: KeptCache) -> bool:
    """Whether a kept cache is of no use beside a new one: it is the new one's beginning, or its
    model has other weights by now or does not exist any more. Those of other models stay: a model
    under an adapter is one of its own."""
    if old.weights == new.weights:
        return begins_with(new.key, old.key)
    models = (kept.weights[0] if isinstance(kept.weights, tuple) else None for kept in (old, new))
    old_model, new_model = models
    return old_model == new_model or (old_model is not None and old_model() is None)


def weights_state(model: Qwen2_5_VLCausalModel) -> Any:
    """Equal as long as a model computes the same: addresses and version counters of its tensors.

    None where that cannot be told (hooks, layers of other packages, tensors without a counter), and
    under the rule "hf5", which gives an answer other positions once it is part of a prompt.

    NOTE The counter misses writes through `.data`: clear the cache after these.
    """
    if model.model.mrope == "hf5":
        return None
    if not is_plain(model):
        return None
    try:
        tensors = (*model.parameters(), *model.buffers())
        numbers = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        return weakref.ref(model), numbers
    except RuntimeError:  # made in inference mode
        return None

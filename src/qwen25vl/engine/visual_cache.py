"""Visual tokens of pictures and clips seen lately, so that they are not computed again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from threading import Lock
from typing import Any

import torch

from qwen25vl.arguments import byte_limit
from qwen25vl.engine.medium import Medium
from qwen25vl.model.vision import Qwen2_5_VLVisionModel


class VisualCache:
    """Tokens of one picture or clip each, by the bytes of its patches, its grid and the encoder.

    The caller owns it and passes it to `generate` or `stream`. Above `max_bytes` the least recently
    used items are dropped. `clear` it after changing an encoder's weights in place. Several threads
    may share it. A copy or an unpickled cache is empty: items belong to the encoder object that
    made them. Raises UsageError for an invalid `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = byte_limit("visual_cache_bytes", max_bytes)
        self.num_bytes = 0
        self.items: OrderedDict[Any, torch.Tensor] = OrderedDict()
        self.lock = Lock()

    def __reduce__(self) -> tuple[type[VisualCache], tuple[int]]:
        return VisualCache, (self.max_bytes,)

    def __repr__(self) -> str:
        return f"VisualCache({len(self.items)} items, {self.num_bytes} of {self.max_bytes} bytes)"

    def find(self, key: Any) -> torch.Tensor | None:
        """The tokens [n, D] of an item, which is then the most recently used; or None."""
        with self.lock:
            tokens = self.items.get(key)
            if tokens is not None:
                self.items.move_to_end(key)
            return tokens

    def digests(self) -> set[bytes]:
        """Of the media whose tokens are here, for requests without a salt."""
        with self.lock:
            return {digest for *_, digest, salt in self.items if not salt}

    def keep(self, key: Any, tokens: torch.Tensor) -> None:
        """Store an item as the newest, and drop the oldest ones above the limit."""
        with self.lock:
            self.items[key] = tokens
            self.items.move_to_end(key)
            self.num_bytes = sum(item.nbytes for item in self.items.values())
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self.items.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        with self.lock:
            self.items.clear()
            self.num_bytes = 0


def item_key(visual: Qwen2_5_VLVisionModel, medium: Medium, salt: str = "") -> Any:
    """Equal for equal patches under the same encoder (which it does not keep alive) in the same
    precision. salt: those of another one are not found."""
    weight = visual.patch_embed.proj.weight
    return weakref.ref(visual), weight.dtype, weight.device, medium.grid, medium.find_digest(), salt

"""Visual tokens of pictures and clips seen lately, so that they are not computed again at every
question."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch

from qwen25vl.arguments import whole_number
from qwen25vl.errors import UsageError
from qwen25vl.inputs import Grid, Patches
from qwen25vl.model.vision import Progress, Qwen2_5_VLVisionModel, read_grids


class VisualCache:
    """Tokens of one picture or clip each, by the bytes of its patches, its grid and the encoder.
    The caller owns it and passes it to `generate` or `stream`. Above `max_bytes` the least recently
    used items are dropped.

    `clear` it after changing an encoder's weights in place. Several threads may share it. A copy
    or an unpickled cache is empty: items belong to the encoder object that made them. Raises
    UsageError for an invalid `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        size = whole_number(max_bytes)
        if size is None or size < 0:
            wanted = "a whole number of at least 0, which keeps nothing"
            raise UsageError(f"visual_cache_bytes is {max_bytes!r}; it must be {wanted}")
        self.max_bytes = size
        self.num_bytes = 0
        self.items: OrderedDict[Any, torch.Tensor] = OrderedDict()
        self.lock = Lock()

    def __reduce__(self) -> tuple[type[VisualCache], tuple[int]]:
        return VisualCache, (self.max_bytes,)

    def __repr__(self) -> str:
        return f"VisualCache({len(self.items)} items, {self.num_bytes} of {self.max_bytes} bytes)"

    def encode(
        self,
        visual: Qwen2_5_VLVisionModel,
        pixel_values: torch.Tensor | Patches,
        grid_thw: torch.Tensor | Sequence[Grid],
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """What `visual(pixel_values, grid_thw, progress)` gives; it is called with the unknown
        items, each once."""
        grids = read_grids(grid_thw, visual.config.spatial_merge_size)
        sizes = [t * h * w for t, h, w in grids]
        if sum(sizes) != len(pixel_values):
            return visual(pixel_values, grids, progress)  # type: ignore[no-any-return]  # it says what is wrong
        patches = pixel_values if isinstance(pixel_values, Patches) else Patches([pixel_values])
        parts = [patches.take(size) for size in sizes]
        keys = [item_key(visual, part, grid) for part, grid in zip(parts, grids, strict=True)]
        with self.lock:
            found = {key: self.items[key] for key in keys if key in self.items}
        missing = {key: i for i, key in enumerate(keys) if key not in found}
        new_patches = Patches([part for i in missing.values() for part in parts[i]])
        parts.clear()  # the encoder lets go of what it has read
        if missing:
            tokens = visual(new_patches, [grids[i] for i in missing.values()], progress)
            unit = visual.config.spatial_merge_size**2
            new = tokens.split([sizes[i] // unit for i in missing.values()])
            found |= zip(
                missing, new if len(new) == 1 else [part.clone() for part in new], strict=True
            )
        self.keep(found)
        return torch.cat([found[key] for key in keys]) if len(keys) > 1 else found[keys[0]]

    def keep(self, found: dict[Any, torch.Tensor]) -> None:
        """Store what was just used as the newest, and let go of the oldest."""
        with self.lock:
            self.items |= found
            for key in found:
                self.items.move_to_end(key)
            self.num_bytes = sum(item.nbytes for item in self.items.values())
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self.items.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        with self.lock:
            self.items.clear()
            self.num_bytes = 0


def item_key(visual: Qwen2_5_VLVisionModel, patches: Sequence[torch.Tensor], grid: Grid) -> Any:
    """Equal for equal patches under the same encoder (which it does not keep alive) in the same
    precision."""
    digest = hashlib.blake2b(digest_size=20)
    for part in patches:
        digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    weight = visual.patch_embed.proj.weight
    return weakref.ref(visual), weight.dtype, weight.device, grid, digest.digest()

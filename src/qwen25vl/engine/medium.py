"""The pictures and clips of a prompt: where they stand, and what the encoder still has to do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import MessageError
from qwen25vl.inputs import DeferredPatches, Grid, ModelInputs, Part, Patches
from qwen25vl.model.qwen2_5_vl import check_pair
from qwen25vl.model.vision import fit_grids

Kind = Literal["image", "video"]


@dataclass(eq=False)
class Medium:
    """One picture or clip of one prompt.

    start, stop: its tokens in the prompt. patches: not yet encoded, in one or several tensors;
    tokens [stop − start, D]: encoded, until the prompt is read past them. digest: equal for equal
    patches, once it was needed. seconds_per_grid: of a clip.
    """

    kind: Kind
    grid: Grid
    start: int
    stop: int
    patches: list[Part]
    seconds_per_grid: float = 0.0
    digest: bytes | None = None
    tokens: torch.Tensor | None = None

    @property
    def num_patches(self) -> int:
        t, h, w = self.grid
        return t * h * w

    def find_digest(self) -> bytes:
        """The digest, computed from the patches at first."""
        if self.digest is None:
            if not self.patches:
                raise RuntimeError("the digest of a medium is needed before it is encoded")
            digest = hashlib.blake2b(digest_size=20)
            for patches in self.patches:
                part = patches.compute() if isinstance(patches, DeferredPatches) else patches
                digest.update(str(part.dtype).encode())
                digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self.digest = digest.digest()
        return self.digest

    def key(self) -> tuple[Any, ...]:
        """Equal for media that stand for the same numbers in a prompt."""
        return self.kind, self.grid, self.seconds_per_grid, self.find_digest()


def split_media(
    inputs: ModelInputs, prompts: Sequence[list[int]], config: Qwen2_5_VLConfig
) -> list[list[Medium]]:
    """The media of each prompt, in the order of their slots. `Patches` are emptied.

    prompts: the unpadded ids of each; that slots and grids fit was checked with the positions.
    Raises UsageError where pixels and grids do not fit.
    """
    merge = config.vision_config.spatial_merge_size
    images = take_items(inputs.pixel_values, inputs.image_grid_thw, "image_grid_thw", config)
    videos = take_items(inputs.pixel_values_videos, inputs.video_grid_thw, "video_grid_thw", config)
    seconds = inputs.second_per_grid_ts
    rates = [float(s) for s in seconds] if seconds is not None else []
    kinds: dict[int, Kind] = {config.image_token_id: "image", config.video_token_id: "video"}
    result = []
    for row, ids in enumerate(prompts):
        media: list[Medium] = []
        known = [item.digest for item in inputs.media if item.conversation == row]
        index = 0
        while index < len(ids):
            kind = kinds.get(ids[index])
            if kind is None:
                index += 1
                continue
            grid, patches = (images if kind == "image" else videos).pop(0)
            rate = rates.pop(0) if kind == "video" else 0.0
            stop = index + grid[0] * grid[1] * grid[2] // merge**2
            media.append(Medium(kind, grid, index, stop, patches, rate))
            index = stop
        for medium, digest in zip(media, known, strict=False):
            medium.digest = digest
        result.append(media)
    return result


def take_items(
    pixels: torch.Tensor | Patches | None,
    grid_thw: torch.Tensor | None,
    grid_name: str,
    config: Qwen2_5_VLConfig,
) -> list[tuple[Grid, list[Part]]]:
    """Each picture or clip of one kind: its grid and its patches."""
    check_pair(pixels, grid_thw, grid_name)
    if pixels is None or grid_thw is None:
        return []
    grids = fit_grids(grid_thw, pixels, config.vision_config)
    patches = pixels if isinstance(pixels, Patches) else Patches([pixels])
    return [((t, h, w), patches.take_parts(t * h * w)) for t, h, w in grids]


def check_slots(
    prompts: Sequence[list[int]], inputs: ModelInputs, config: Qwen2_5_VLConfig
) -> None:
    """Refuse slots without media: positions alone do not tell which pixels are missing."""
    for kind, slot_id, pixels in (
        ("picture", config.image_token_id, inputs.pixel_values),
        ("video", config.video_token_id, inputs.pixel_values_videos),
    ):
        num_slots = sum(ids.count(slot_id) for ids in prompts)
        if num_slots and pixels is None:
            raise MessageError(
                f"the prompt has slots for {num_slots} {kind} tokens, but 0 are given"
            )

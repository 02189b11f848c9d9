"""One picture or clip of a request, made ready: from its source and its options to patches.

Sizes follow the nearest word: the item's own options, then the call's, the
processor's, the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qwen25vl.errors import MessageError
from qwen25vl.inputs import MediaItem
from qwen25vl.memory import require_bytes
from qwen25vl.processing.image import ImageSettings, patchify
from qwen25vl.processing.media import load_picture, original_size
from qwen25vl.processing.messages import Part
from qwen25vl.processing.sources import source_name
from qwen25vl.processing.video import VideoOptions, load_clip


@dataclass(frozen=True)
class Prepared:
    """patches: [N, 1176], float32 unless another dtype was asked for; grid: (t, h, w) in patches;
    item: what else is known; no conversation yet.
    """

    patches: torch.Tensor
    grid: tuple[int, int, int]
    item: MediaItem


def prepare_part(
    part: Part,
    settings: ImageSettings,
    video_options: VideoOptions,
    max_decoded_pixels: int,
    dtype: torch.dtype,
) -> Prepared:
    """A picture or a video of a conversation; its own options go before the others."""
    if part.source is None:
        kind = "a picture" if part.kind == "image" else "a video"
        raise MessageError(
            f"a slot for {kind} in a message has no content; name its url, path or {part.kind}, "
            "or render it (tokenize=False) and give both to the processor"
        )
    if part.kind == "image":
        return prepare_picture(part.source, part.options, settings, max_decoded_pixels, dtype)
    return prepare_video(part.source, video_options.override(part.options), settings, dtype)


def prepare_picture(
    source: Any,
    options: Mapping[str, Any],
    settings: ImageSettings,
    max_decoded_pixels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Prepared:
    """options: the item's own, of min_pixels, max_pixels, resized_height, resized_width; settings:
    all others'. max_decoded_pixels: as in `load_picture`."""
    name = source_name(source)
    picture = load_picture(source, name=name, max_decoded_pixels=max_decoded_pixels)
    height, width = original_size(picture)
    settings = settings.with_budget(options.get("min_pixels"), options.get("max_pixels"))
    asked = {key: options.get(key) for key in ("resized_height", "resized_width")}
    size = settings.model_size(height, width, **asked, name=name)
    needed = 3 * settings.temporal_patch_size * size[0] * size[1] * dtype.itemsize  # the patches
    needed += 2 * 3 * picture.height * picture.width  # the picture as bytes, then as an array
    require_bytes(needed, torch.device("cpu"), f"{name} at {size[1]}×{size[0]} pixels")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]  # [H, W, 3] -> [1, 3, H, W]
    patches, grid = patchify(pixels, settings, size, dtype)
    num_tokens = len(patches) // settings.merge_size**2
    item = MediaItem("image", name, 0, (height, width), size, num_tokens)
    return Prepared(patches, grid, item)


def prepare_video(
    source: Any, options: VideoOptions, settings: ImageSettings, dtype: torch.dtype = torch.float32
) -> Prepared:
    """options: the item's over the call's, the processor's and the checkpoint's."""
    name = source_name(source)
    clip = load_clip(source, options, factor=settings.factor, name=name)
    patches, grid = patchify(clip.frames, settings, dtype=dtype)
    num_tokens = len(patches) // settings.merge_size**2
    seconds = clip.seconds_per_grid(settings.temporal_patch_size)
    sizes = clip.original_size, clip.model_size
    return Prepared(
        patches, grid, MediaItem("video", name, 0, *sizes, num_tokens, len(clip.frames), seconds)
    )

"""One picture or clip of a request, made ready: from its source and its options to patches.

Sizes follow the nearest word: the item's own options, then the call's, the
processor's, the checkpoint's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qwen25vl.errors import MessageError
from qwen25vl.inputs import DeferredPatches, Grid, MediaItem
from qwen25vl.inputs import Part as PatchPart
from qwen25vl.memory import require_bytes
from qwen25vl.processing.image import ImageSettings, patchify
from qwen25vl.processing.media import load_picture, original_size
from qwen25vl.processing.messages import Part
from qwen25vl.processing.pdf import PdfPage
from qwen25vl.processing.sources import source_name
from qwen25vl.processing.video import VideoOptions, load_clip


@dataclass(frozen=True)
class Prepared:
    """patches: [N, 1176], float32 unless another dtype was asked for; grid: (t, h, w) in patches;
    item: what else is known; no conversation yet.
    """

    patches: PatchPart
    grid: Grid
    item: MediaItem


@dataclass(frozen=True)
class Preparation:
    """How the media of a call are prepared.

    pictures, clips: how they become patches; videos: which frames are taken. known: digests of
    media whose patches will probably not be needed; None where no digests are wanted.
    max_source_frames: of a video file; None for no limit.
    """

    pictures: ImageSettings
    clips: ImageSettings
    videos: VideoOptions
    max_decoded_pixels: int
    dtype: torch.dtype = torch.float32
    known: Collection[bytes] | None = None
    max_source_frames: int | None = None


def prepare_part(part: Part, how: Preparation) -> Prepared:
    """A picture or a video of a conversation; its own options go before the others."""
    if part.source is None:
        kind = "a picture" if part.kind == "image" else "a video"
        raise MessageError(
            f"a slot for {kind} in a message has no content; name its url, path or {part.kind}, "
            "or render it (tokenize=False) and give both to the processor"
        )
    if part.kind == "image":
        given = how.pictures, how.max_decoded_pixels, how.dtype, how.known
        return prepare_picture(part.source, part.options, *given)
    options = how.videos.override(part.options)
    given_clip = how.clips, how.dtype, how.known, how.max_source_frames
    return prepare_video(part.source, options, *given_clip)


def prepare_picture(
    source: Any,
    options: Mapping[str, Any],
    settings: ImageSettings,
    max_decoded_pixels: int | None = None,
    dtype: torch.dtype = torch.float32,
    known: Collection[bytes] | None = None,
) -> Prepared:
    """options: the item's own, of min_pixels, max_pixels, resized_height, resized_width; settings:
    all others'. max_decoded_pixels: as in `load_picture`."""
    if isinstance(source, PdfPage):
        return prepare_page(source, options, settings, dtype, known)
    name = source_name(source)
    given = None if settings.do_rescale else read_values(source)
    if given is None:
        picture = load_picture(source, name=name, max_decoded_pixels=max_decoded_pixels)
        height, width = original_size(picture)
        decoded_pixels = picture.height * picture.width
    else:
        height, width = given.shape[-2:]
        decoded_pixels = height * width
    settings = settings.with_budget(options.get("min_pixels"), options.get("max_pixels"))
    own_size = {key: options.get(key) for key in ("resized_height", "resized_width")}
    size = settings.model_size(height, width, **own_size, name=name)
    needed = 3 * settings.temporal_patch_size * size[0] * size[1] * dtype.itemsize  # the patches
    needed += 2 * 3 * decoded_pixels  # the picture as bytes, then as an array
    require_bytes(needed, torch.device("cpu"), f"{name} at {size[1]}×{size[0]} pixels")
    if given is None:  # [H, W, 3] -> [1, 3, H, W]
        given = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    patches, grid, digest = cut_or_defer(given, settings, size, dtype, known)
    num_tokens = len(patches) // settings.merge_size**2
    item = MediaItem("image", name, 0, (height, width), size, num_tokens, digest=digest)
    return Prepared(patches, grid, item)


def prepare_page(
    page: PdfPage,
    options: Mapping[str, Any],
    settings: ImageSettings,
    dtype: torch.dtype,
    known: Collection[bytes] | None,
) -> Prepared:
    """As `prepare_picture`, of a page of a document, which is rendered at the model size."""
    settings = settings.with_budget(options.get("min_pixels"), options.get("max_pixels"))
    own_size = {key: options.get(key) for key in ("resized_height", "resized_width")}
    height, width = page.pixels
    size = settings.model_size(height, width, **own_size, name=page.name)
    needed = (3 * settings.temporal_patch_size * dtype.itemsize + 2 * 3) * size[0] * size[1]
    require_bytes(needed, torch.device("cpu"), f"{page.name} at {size[1]}×{size[0]} pixels")
    frames = torch.from_numpy(page.render(*size)).permute(2, 0, 1)[None]
    patches, grid, digest = cut_or_defer(frames, settings, size, dtype, known)
    num_tokens = len(patches) // settings.merge_size**2
    item = MediaItem("image", page.name, 0, size, size, num_tokens, digest=digest)
    return Prepared(patches, grid, replace(item, page=page.number, page_size=page.size))


def read_values(source: Any) -> torch.Tensor | None:
    """A copy of an array of floats with three channels as [1, 3, H, W], whatever its values mean;
    None for any other source."""
    if not isinstance(source, np.ndarray | torch.Tensor) or source.ndim != 3:
        return None
    if isinstance(source, np.ndarray):
        is_float = source.dtype.kind == "f"
        values = torch.from_numpy(source.astype(np.float32)) if is_float else None
    else:
        values = source if source.is_floating_point() else None
    if values is None or 3 not in (values.shape[0], values.shape[-1]):
        return None
    is_last = values.shape[-1] == 3 and (values.shape[0] != 3 or isinstance(source, np.ndarray))
    planes = values.permute(2, 0, 1) if is_last else values
    return planes[None].to(device="cpu", dtype=torch.float32, copy=True)


def prepare_video(
    source: Any,
    options: VideoOptions,
    settings: ImageSettings,
    dtype: torch.dtype = torch.float32,
    known: Collection[bytes] | None = None,
    max_source_frames: int | None = None,
) -> Prepared:
    """options: the item's over the call's, the processor's and the checkpoint's;
    max_source_frames: as in `load_clip`."""
    name = source_name(source)
    bounds = settings.min_pixels, settings.max_pixels
    how: dict[str, Any] = {"factor": settings.factor, "bounds": bounds, "name": name}
    clip = load_clip(source, options, max_source_frames=max_source_frames, **how)
    patches, grid, digest = cut_or_defer(clip.frames, settings, None, dtype, known)
    num_tokens = len(patches) // settings.merge_size**2
    seconds = clip.seconds_per_grid(settings.temporal_patch_size)
    item = MediaItem(
        "video",
        name,
        0,
        *(clip.original_size, clip.model_size),
        num_tokens,
        len(clip.frames),
        seconds,
        digest,
        source_fps=clip.source_fps,
        num_source_frames=clip.num_source_frames,
        frame_numbers=clip.numbers,
    )
    return Prepared(patches, grid, item)


def cut_or_defer(
    frames: torch.Tensor,
    settings: ImageSettings,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
    known: Collection[bytes] | None,
) -> tuple[PatchPart, Grid, bytes | None]:
    """The patches of frames [T, 3, H, W], their grid, and a digest of all that they depend on where
    digests are wanted. The patches of known frames are deferred."""
    if known is None:
        return *patchify(frames, settings, size, dtype), None
    digest = digest_frames(frames, settings, size, dtype)
    if digest not in known:
        return *patchify(frames, settings, size, dtype), digest
    height, width = size or frames.shape[-2:]
    grid = (
        -(-len(frames) // settings.temporal_patch_size),
        height // settings.patch_size,
        width // settings.patch_size,
    )
    row = 3 * settings.temporal_patch_size * settings.patch_size**2

    def compute() -> torch.Tensor:
        return patchify(frames, settings, size, dtype)[0]

    return DeferredPatches((grid[0] * grid[1] * grid[2], row), dtype, compute), grid, digest


def digest_frames(
    frames: torch.Tensor, settings: ImageSettings, size: tuple[int, int] | None, dtype: torch.dtype
) -> bytes:
    """SHA-256, for which processors have instructions: a third of the time of cutting patches."""
    digest = hashlib.sha256(repr((frames.shape, settings, size, dtype)).encode())
    rows = frames.movedim(1, -1).contiguous()  # the order in which decoders write them
    digest.update(rows.numpy().data)
    return digest.digest()

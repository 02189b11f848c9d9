"""Clips whose frames are given one by one:
a list of pictures, pictures in one data URI, or an array.

All of them are taken, at the rate that is said to be theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from qwen25vl.errors import MediaFormatError, MediaSizeError, UsageError
from qwen25vl.processing.base64_text import is_data_uri, trim_text
from qwen25vl.processing.clip import Clip, resize_all
from qwen25vl.processing.media import load_picture, to_uint8
from qwen25vl.processing.pixels import check_dense
from qwen25vl.processing.video_options import VideoOptions

DEFAULT_FPS = 2.0
MAX_FRAMES = 768


def split_frames(source: str | bytes | bytearray) -> list[str] | None:
    """The data URIs of the frames in "data:video/jpeg;base64,FRAME,FRAME,…";
    None for any other source.

    A comma is no letter of base64, so data with one holds several frames whatever its stated type
    is. A comma at the end is no further frame, and each frame may repeat the beginning of a URI.
    """
    if not is_data_uri(source):
        return None
    uri = trim_text(source.encode() if isinstance(source, str) else bytes(source)).decode(
        "utf-8", "replace"
    )
    head, _, payload = uri.partition(",")
    kind = head.lower()
    if not kind.endswith(";base64"):
        return None
    frames = [
        text for text in payload.rstrip().removesuffix(",").split(",") if not is_data_uri(text)
    ]
    if len(frames) == 1 and not kind.startswith("data:video/jpeg"):
        return None
    return [f"{head},{frame}" for frame in frames]


def clip_from_pictures(
    pictures: Sequence[Any], options: VideoOptions, factor: int, name: str
) -> Clip:
    """Raises MediaSizeError for pictures of unequal size, none, or more than max_frames."""
    fps = given_rate(len(pictures), options, name)

    def frames() -> Iterator[torch.Tensor]:
        first_size = None
        for number, source in enumerate(pictures, start=1):
            picture = load_picture(source, name=f"picture {number} of {name}")
            first_size = first_size or picture.size
            if picture.size != first_size:
                sizes = (
                    f"{picture.width}×{picture.height} pixels, the first one "
                    f"{first_size[0]}×{first_size[1]}"
                )
                raise MediaSizeError(f"picture {number} of {name} has {sizes}; all must be equal")
            yield torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    clip, original_size = resize_all(frames(), len(pictures), options, factor, name)
    return Clip(clip, fps, original_size, options.raw_fps or fps)


def clip_from_array(
    array: np.ndarray | torch.Tensor, options: VideoOptions, factor: int, name: str
) -> Clip:
    """Frames whose sides are whole tokens already come from another resizer and keep their size,
    unless options ask for one: so what `qwen_vl_utils.process_vision_info` returns passes
    unchanged."""
    if isinstance(array, torch.Tensor):
        check_dense(array, name)
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]) or 0 in array.shape:
        raise MediaFormatError(
            f"{name} is not a video; expected frames as [T, 3, H, W] or [T, H, W, 3]"
        )
    fps = given_rate(array.shape[0], options, name)
    frames = torch.from_numpy(to_uint8(array, name))
    if array.shape[1] != 3 or (array.shape[-1] == 3 and isinstance(array, np.ndarray)):
        frames = frames.permute(0, 3, 1, 2)
    original_size = (frames.shape[-2], frames.shape[-1])
    if not is_model_size(original_size, options, factor):
        frames, _ = resize_all(frames, len(frames), options, factor, name)
    return Clip(frames, fps, original_size, options.raw_fps or fps)


def is_model_size(size: tuple[int, int], options: VideoOptions, factor: int) -> bool:
    """Whether frames of this size are whole tokens, within the bounds,
    and no other size is asked for."""
    is_asked = (
        size[0] % factor or size[1] % factor or options.total_pixels or options.resized_height
    )
    return not is_asked and (options.min_pixels or 0) <= math.prod(size) <= (
        options.max_pixels or math.inf
    )


def given_rate(count: int, options: VideoOptions, name: str) -> float:
    """The rate of frames that are given one by one; none of them is left out."""
    if (
        options.nframes is not None
        or options.video_start is not None
        or options.video_end is not None
    ):
        raise UsageError(
            f"nframes, video_start and video_end need a video file, but {name} is given as frames"
        )
    most = options.max_frames or MAX_FRAMES
    if not 1 <= count <= most:
        raise MediaSizeError(
            f"{name} has {count} frames; between 1 and max_frames={most} can be taken"
        )
    return float(options.sample_fps or options.fps or DEFAULT_FPS)

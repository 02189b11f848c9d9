"""Clips whose frames are given one by one:
a list of pictures, pictures in one data URI, or an array.

All of them are taken, at the rate that is said to be theirs, or as many as are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from qwen25vl.errors import MediaFormatError, MediaSizeError, UsageError
from qwen25vl.processing.base64_text import is_data_uri, trim_text
from qwen25vl.processing.clip import Clip, given_frame_size, resize_all
from qwen25vl.processing.media import load_picture, to_uint8
from qwen25vl.processing.pixels import check_dense
from qwen25vl.processing.video_options import FRAME_MULTIPLE, VideoOptions

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
    pictures: Sequence[Any], options: VideoOptions, factor: int, bounds: tuple[int, int], name: str
) -> Clip:
    """Raises MediaSizeError for pictures of unequal size, none, or more than max_frames."""
    chosen, fps, source_fps = choose_given(len(pictures), options, name)

    def frames() -> Iterator[torch.Tensor]:
        first_size = None
        for number in chosen:
            picture = load_picture(pictures[number], name=f"picture {number + 1} of {name}")
            first_size = first_size or picture.size
            if picture.size != first_size:
                sizes = (
                    f"{picture.width}×{picture.height} pixels, the first one "
                    f"{first_size[0]}×{first_size[1]}"
                )
                where = f"picture {number + 1} of {name}"
                raise MediaSizeError(f"{where} has {sizes}; all must be equal")
            yield torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    size_of = size_chooser(len(chosen), options, factor, bounds, name)
    clip, original_size = resize_all(frames(), len(chosen), size_of, name)
    return Clip(clip, fps, original_size, source_fps, len(pictures), chosen)


def clip_from_array(
    array: np.ndarray | torch.Tensor,
    options: VideoOptions,
    factor: int,
    bounds: tuple[int, int],
    name: str,
) -> Clip:
    """Frames whose size fits already are not copied: what `qwen_vl_utils.process_vision_info`
    returns passes unchanged."""
    if isinstance(array, torch.Tensor):
        check_dense(array, name)
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]) or 0 in array.shape:
        raise MediaFormatError(
            f"{name} is not a video; expected frames as [T, 3, H, W] or [T, H, W, 3]"
        )
    chosen, fps, source_fps = choose_given(array.shape[0], options, name)
    frames = torch.from_numpy(to_uint8(array, name))
    if array.shape[1] != 3 or (array.shape[-1] == 3 and isinstance(array, np.ndarray)):
        frames = frames.permute(0, 3, 1, 2)
    if len(chosen) < len(frames):
        frames = frames[list(chosen)]
    original_size = (frames.shape[-2], frames.shape[-1])
    size_of = size_chooser(len(chosen), options, factor, bounds, name)
    if size_of(*original_size) != original_size:
        frames, _ = resize_all(frames, len(frames), size_of, name)
    return Clip(frames, fps, original_size, source_fps, array.shape[0], chosen)


def size_chooser(
    count: int, options: VideoOptions, factor: int, bounds: tuple[int, int], name: str
) -> Callable[[int, int], tuple[int, int]]:
    return lambda height, width: given_frame_size(
        height, width, count, options, bounds, factor, name
    )


def choose_given(
    count: int, options: VideoOptions, name: str
) -> tuple[Sequence[int], float, float]:
    """The numbers of the frames that are taken, their rate, and that of the video they come from.

    All are taken, or `nframes` of them: an even number, at floor(i · count / nframes) as in the
    reference.
    """
    if options.video_start is not None or options.video_end is not None:
        raise UsageError(
            f"video_start and video_end need a video file, but {name} is given as frames"
        )
    fps = float(options.sample_fps or options.fps or DEFAULT_FPS)
    chosen: Sequence[int] = range(count)
    if options.nframes is not None:
        wanted = round(options.nframes / FRAME_MULTIPLE) * FRAME_MULTIPLE
        if wanted > count:
            raise UsageError(f"nframes {options.nframes} is more than the {count} frames of {name}")
        chosen = torch.arange(0, count, count / wanted, device="cpu").int().tolist()[:wanted]
    most = options.max_frames or MAX_FRAMES
    if not 1 <= len(chosen) <= most:
        raise MediaSizeError(
            f"{name} has {count} frames; between 1 and max_frames={most} can be taken"
        )
    return chosen, fps * len(chosen) / max(count, 1), options.raw_fps or fps

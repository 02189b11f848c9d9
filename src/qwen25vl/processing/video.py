"""Videos: choose frames and their model size as qwen-vl-utils does, and decode only those.

By default 2 frames per second, an even number of them, 4 to 768 and never more than the video has,
at indices round(linspace(first, last, n)). A frame has 128 to 768 visual tokens' worth of pixels,
all frames of a clip together at most 90 % of 128,000 tokens' worth. The rate of the chosen frames,
sampled_fps = n / total · fps, goes with them as a float: from it the model derives the time of each
grid (seconds_per_grid = 2 / sampled_fps).

The reference chooses by number at any rate. Where the rate varies so much that the model would be
told wrong seconds, frames are chosen by their times instead; at a constant rate both are the same.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from qwen25vl.errors import MediaFormatError, UsageError
from qwen25vl.processing.animation import (
    Pictures,
    animation_frames,
    borrow_animation,
    check_end_mark,
    is_moving,
    is_open_animation,
    open_animation,
    open_still,
    picture_format,
    read_animation,
)
from qwen25vl.processing.clip import Clip, frame_size, resize_all
from qwen25vl.processing.damage import Damage
from qwen25vl.processing.frame_lists import (
    DEFAULT_FPS,
    MAX_FRAMES,
    clip_from_array,
    clip_from_pictures,
    split_frames,
)
from qwen25vl.processing.image import MAX_PIXELS, MIN_PIXELS
from qwen25vl.processing.sources import open_source, source_name
from qwen25vl.processing.video_file import decode_frames, read_index
from qwen25vl.processing.video_index import too_many_frames
from qwen25vl.processing.video_options import FRAME_MULTIPLE, VideoOptions

__all__ = ["Clip", "VideoOptions", "choose_frames", "frame_size", "load_clip"]

MIN_FRAMES = 4
RANGE_TOLERANCE_SECONDS = 0.001  # containers round timestamps to milliseconds
MAX_TIME_ERROR = 0.5  # of the time between two chosen frames
DEFAULT_OPTIONS = VideoOptions()


def load_clip(
    source: Any,
    options: VideoOptions = DEFAULT_OPTIONS,
    *,
    factor: int = 28,
    bounds: tuple[int, int] = (MIN_PIXELS, MAX_PIXELS),
    name: str | None = None,
    max_source_frames: int | None = None,
) -> Clip:
    """Any source of a video as a clip: a path, address, data URI, bytes, an open file or "-"; a
    list of pictures, or one picture; a data URI of several JPEGs; an array [T, 3, H, W] or [T, H,
    W, 3], numpy or torch.

    `factor` is the side of a visual token in pixels; `bounds` are the fewest and most pixels of a
    frame where frames are given one by one and the options do not say. Frames are resized as they
    are decoded, so memory stays near the size of the result. Lost and damaged frames are told in
    one warning, see `VideoOptions.strict`. A file of more than `max_source_frames` is refused
    before they are all counted. Raises as `load_picture` does, and DependencyError where
    a file needs PyAV.
    """
    name = name or source_name(source)
    if isinstance(source, np.ndarray | torch.Tensor):
        return clip_from_array(source, options, factor, bounds, name)
    if is_open_animation(source):
        with borrow_animation(source, name) as pictures:
            return clip_from_animation(pictures, Damage(), options, factor, name)
    if isinstance(source, Image.Image):
        source = [source]
    if isinstance(source, str | bytes | bytearray):
        source = split_frames(source) or source
    if isinstance(source, list | tuple):
        return clip_from_pictures(source, options, factor, bounds, name)
    with open_source(source, name=name) as file:
        if file.seek(0, io.SEEK_END) == 0:
            raise MediaFormatError(f"{name} is empty")
        if kind := picture_format(file):
            return clip_from_picture_file(file, kind, options, factor, name, max_source_frames)
        index = read_index(file, name, max_source_frames)
        index.damage.check_end(options.strict, name)
        numbers, sampled_fps = choose_frames(index.times, index.fps, options, name)
        decoded = (
            torch.from_numpy(pixels).permute(2, 0, 1)
            for pixels in decode_frames(file, index, numbers, name)
        )
        size_of = size_chooser(len(numbers), options, factor, name)
        frames, original_size = resize_all(decoded, len(numbers), size_of, name)
    index.damage.report(options.strict, len(index.times), name)
    return Clip(frames, sampled_fps, original_size, index.fps, len(index.times), numbers)


def clip_from_picture_file(
    file: BinaryIO, kind: str, options: VideoOptions, factor: int, name: str, most: int | None
) -> Clip:
    """most: frames of the file, None for any number."""
    open_pictures = open_animation if is_moving(file, kind) else open_still
    file.seek(0)
    data, damage = file.read(), Damage()
    with open_pictures(data, kind, name) as pictures:
        if most is not None and len(pictures.numbers) > most:
            raise too_many_frames(name, most)
        check_end_mark(data, kind, damage)
        return clip_from_animation(pictures, damage, options, factor, name)


def clip_from_animation(
    pictures: Pictures, damage: Damage, options: VideoOptions, factor: int, name: str,
) -> Clip:  # fmt: skip
    animation = read_animation(pictures, damage, name)
    damage.check_end(options.strict, name)
    numbers, sampled_fps = choose_frames(animation.times, animation.fps, options, name)
    chosen = [animation.pictures[number] for number in numbers]
    decoded = animation_frames(pictures, chosen, name)
    size_of = size_chooser(len(chosen), options, factor, name)
    frames, original_size = resize_all(decoded, len(chosen), size_of, name)
    damage.report(options.strict, len(animation.times), name)
    total = len(animation.times)
    return Clip(frames, sampled_fps, original_size, animation.fps, total, numbers)


def size_chooser(
    count: int, options: VideoOptions, factor: int, name: str
) -> Callable[[int, int], tuple[int, int]]:
    return lambda height, width: frame_size(height, width, count, options, factor, name)


def choose_frames(
    times: Sequence[float], fps: float, options: VideoOptions, name: str = "the video"
) -> tuple[list[int], float]:
    """The numbers of the frames to look at, and their rate.

    times: seconds of every frame of the video; fps: their mean rate. Raises UsageError where the
    part of the video that is asked for holds fewer than two frames, or fewer than `nframes`.
    """
    start, end = options.video_start, options.video_end
    first = 0 if start is None else bisect_left(times, start - RANGE_TOLERANCE_SECONDS)
    last = (len(times) if end is None else bisect_right(times, end + RANGE_TOLERANCE_SECONDS)) - 1
    if first >= last and (start, end) != (None, None):
        clip = f"{name}, which lasts {times[-1] + 1 / fps:.2f} seconds"
        raise UsageError(
            f"video_start {start} to video_end {end} holds fewer than two frames of {clip}"
        )
    total = last - first + 1
    chosen = num_frames(total, fps, options, name)
    numbers: list[int] = (
        torch.linspace(first, last, chosen, dtype=torch.float32, device="cpu")
        .round()
        .long()
        .tolist()
    )
    if 1 < chosen <= total / 2:
        numbers = correct_times(times, numbers)
    return numbers, chosen / total * fps


def correct_times(times: Sequence[float], numbers: list[int]) -> list[int]:
    """The same numbers where their frames lie at about equal distances in time,
    else those shown at such times.

    A video of fewer than two frames for each chosen one is left as it is:
    all that it has is worth seeing.
    """
    first, last = numbers[0], numbers[-1]
    step = (times[last] - times[first]) / (len(numbers) - 1)
    seconds = [times[first] + k * step for k in range(len(numbers))]
    if all(
        abs(times[n] - second) <= MAX_TIME_ERROR * step
        for n, second in zip(numbers, seconds, strict=True)
    ):
        return numbers
    shown = (bisect_right(times, second + RANGE_TOLERANCE_SECONDS) - 1 for second in seconds)
    return [min(max(number, first), last) for number in shown]


def num_frames(total: int, fps: float, options: VideoOptions, name: str) -> int:
    """How many of `total` frames at this rate are looked at: an even number, or 1 of 1."""
    if options.nframes is not None:
        wanted = round(options.nframes / FRAME_MULTIPLE) * FRAME_MULTIPLE
        if wanted > total:
            raise UsageError(f"nframes {options.nframes} is more than the {total} frames of {name}")
        return wanted
    fewest = math.ceil((options.min_frames or MIN_FRAMES) / FRAME_MULTIPLE) * FRAME_MULTIPLE
    most = even_below(options.max_frames or min(MAX_FRAMES, total))
    wanted = even_below(min(max(total / fps * (options.fps or DEFAULT_FPS), fewest), most, total))
    return max(wanted, 1)


def even_below(count: float) -> int:
    return math.floor(count / FRAME_MULTIPLE) * FRAME_MULTIPLE

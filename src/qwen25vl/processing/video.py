"""Videos: choose frames and their model size as qwen-vl-utils does, and decode only those.

By default 2 frames per second, an even number of them, 4 to 768 and never more than the video has, at indices
round(linspace(first, last, n)). A frame has 128 to 768 visual tokens' worth of pixels, all frames of a clip
together at most 90 % of 128,000 tokens' worth. The rate of the chosen frames, sampled_fps = n / total · fps, goes
with them as a float: from it the model derives the time of each grid (seconds_per_grid = 2 / sampled_fps).

Frames that are given one by one (a list of pictures, a tensor) are all taken, at the rate that is said to be theirs.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from qwen25vl.errors import MediaFormatError, MediaSizeError, OptionError, UsageError
from qwen25vl.memory import require_bytes
from qwen25vl.processing.image import check_number, resize, smart_resize
from qwen25vl.processing.media import load_picture, to_uint8
from qwen25vl.processing.sources import open_source, source_name
from qwen25vl.processing.video_file import decode_frames, read_index

DEFAULT_FPS = 2.0
MIN_FRAMES = 4
MAX_FRAMES = 768
FRAME_MULTIPLE = 2
FRAME_MIN_PIXELS = 128 * 28 * 28
FRAME_MAX_PIXELS = 768 * 28 * 28
CLIP_MAX_PIXELS = int(128000 * 28 * 28 * 0.9)
RANGE_TOLERANCE_SECONDS = 0.001  # containers round timestamps to milliseconds
BOUNDS = (("min_pixels", "max_pixels"), ("min_frames", "max_frames"), ("video_start", "video_end"))


@dataclass(frozen=True)
class VideoOptions:
    """What may be asked of a video; None takes the default. Rates in frames and times in seconds per second of video.

    fps or nframes: how many frames to choose; min_frames and max_frames bound the former. min_pixels, max_pixels: of
    one frame at model size; total_pixels: of all frames together, counted per temporal patch of two. resized_height
    and resized_width: the model size itself, rounded to whole tokens. video_start, video_end: the part to look at.
    sample_fps: the rate of frames given one by one (default 2.0); raw_fps: of the video they come from.
    """

    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    sample_fps: float | None = None
    raw_fps: float | None = None

    def __post_init__(self) -> None:
        for name, value in tuple(vars(self).items()):
            is_rate, is_count = name.endswith("fps"), name.endswith("frames") or name.startswith("resized")
            bound = 0 if is_rate or name in BOUNDS[-1] else FRAME_MULTIPLE if name in ("nframes", "max_frames") else 1
            if value is not None:
                number = check_number(name, value, bound, above=is_rate, whole=is_count)
                object.__setattr__(self, name, number)  # the object is still being made
        if self.fps is not None and self.nframes is not None:
            raise UsageError(f"fps {self.fps} and nframes {self.nframes} exclude each other; give one of them")
        if (self.resized_height is None) != (self.resized_width is None):
            raise UsageError("resized_height and resized_width must be given together")
        for low, high in BOUNDS:
            if (first := getattr(self, low)) is not None and first > (getattr(self, high) or math.inf):
                raise UsageError(f"{low} {first} is above {high} {getattr(self, high)}")

    def override(self, values: Mapping[str, Any]) -> VideoOptions:
        """These options with some replaced. An old one that a new one excludes falls back to its default: fps and
        nframes exclude each other, and a lower bound any upper bound below it. Unknown names are an OptionError."""
        if unknown := sorted(values.keys() - {f.name for f in fields(self)}):
            raise OptionError(f"unknown video option {', '.join(unknown)}")
        new = {name: value for name, value in values.items() if value is not None}
        excluded = {old for name, old in (("fps", "nframes"), ("nframes", "fps")) if name in new}
        for low, high in BOUNDS:
            old = high if low in new else low
            merged = {**vars(self), **new}
            if None not in (merged[low], merged[high]) and merged[low] > merged[high]:
                excluded.add(old)
        return replace(self, **dict.fromkeys(excluded) | new)


@dataclass(frozen=True)
class Clip:
    """The chosen frames at model size, uint8 [T, 3, h, w].

    original_size: (height, width) as given, upright. source_fps: the rate of the video they were chosen from.
    """

    frames: torch.Tensor
    sampled_fps: float
    original_size: tuple[int, int]
    source_fps: float

    @property
    def model_size(self) -> tuple[int, int]:
        return self.frames.shape[-2], self.frames.shape[-1]

    def seconds_per_grid(self, temporal_patch_size: int = 2) -> float:
        return temporal_patch_size / self.sampled_fps


DEFAULT_OPTIONS = VideoOptions()


def load_clip(
    source: Any, options: VideoOptions = DEFAULT_OPTIONS, *, factor: int = 28, name: str | None = None
) -> Clip:
    """Any source of a video as a clip: a path, address, data URI, bytes or "-"; a list of pictures; an array
    [T, 3, H, W] or [T, H, W, 3], numpy or torch.

    `factor` is the side of a visual token in pixels. Frames are resized as they are decoded, so memory stays near
    the size of the result. Raises as `load_picture` does, and DependencyError where a file needs PyAV.
    """
    name = name or source_name(source)
    if isinstance(source, np.ndarray | torch.Tensor):
        return clip_from_array(source, options, factor, name)
    if isinstance(source, list | tuple):
        return clip_from_pictures(source, options, factor, name)
    with open_source(source, name=name) as file:
        if file.seek(0, io.SEEK_END) == 0:
            raise MediaFormatError(f"{name} is empty")
        index = read_index(file, name)
        numbers, sampled_fps = choose_frames(index.times, index.fps, options, name)
        decoded = (torch.from_numpy(pixels).permute(2, 0, 1) for pixels in decode_frames(file, index, numbers, name))
        frames, original_size = resize_all(decoded, len(numbers), options, factor, name)
    return Clip(frames, sampled_fps, original_size, index.fps)


def choose_frames(
    times: Sequence[float], fps: float, options: VideoOptions, name: str = "the video"
) -> tuple[list[int], float]:
    """The numbers of the frames to look at, and their rate.

    times: seconds of every frame of the video; fps: their mean rate. Raises UsageError where the part of the video
    that is asked for holds fewer than two frames, or fewer than `nframes`.
    """
    start, end = options.video_start, options.video_end
    first = 0 if start is None else bisect_left(times, start - RANGE_TOLERANCE_SECONDS)
    last = (len(times) if end is None else bisect_right(times, end + RANGE_TOLERANCE_SECONDS)) - 1
    if first >= last and (start, end) != (None, None):
        clip = f"{name}, which lasts {times[-1] + 1 / fps:.2f} seconds"
        raise UsageError(f"video_start {start} to video_end {end} holds fewer than two frames of {clip}")
    total = last - first + 1
    chosen = num_frames(total, fps, options, name)
    numbers: list[int] = torch.linspace(first, last, chosen).round().long().tolist()
    return numbers, chosen / total * fps


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


def frame_size(
    height: int, width: int, num_frames: int, options: VideoOptions, factor: int = 28, name: str = "a video"
) -> tuple[int, int]:
    """The model size (height, width) of each of so many frames. Raises MediaSizeError as `smart_resize` does."""
    if options.resized_height is not None and options.resized_width is not None:
        return smart_resize(options.resized_height, options.resized_width, factor=factor, name=name)
    low = options.min_pixels or min(FRAME_MIN_PIXELS, options.max_pixels or FRAME_MIN_PIXELS)
    share = (options.total_pixels or CLIP_MAX_PIXELS) / num_frames * FRAME_MULTIPLE
    limit = max(min(FRAME_MAX_PIXELS, share), int(low * 1.05))
    high = min(options.max_pixels or limit, limit)
    return smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high, name=name)


def resize_all(
    frames: Iterable[torch.Tensor], count: int, options: VideoOptions, factor: int, name: str
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Frames uint8 [3, H, W], one by one, into one uint8 [T, 3, h, w]; also their original size.

    The first frame decides; a file's later frames may change size, as streams do.
    """
    clip, original_size = torch.empty(0), (0, 0)
    for position, frame in enumerate(frames):
        if position == 0:
            original_size = (frame.shape[-2], frame.shape[-1])
            size = frame_size(*original_size, count, options, factor, name)
            needed = count * 3 * size[0] * size[1] * (1 + 4)  # the frames and their patches
            require_bytes(needed, torch.device("cpu"), f"{name} at {size[1]}×{size[0]} pixels × {count} frames")
            clip = torch.empty(count, *size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)  # as pictures lie in memory
        clip[position] = resize(frame[None], clip.shape[-2], clip.shape[-1])[0]
    return clip, original_size


def clip_from_pictures(pictures: Sequence[Any], options: VideoOptions, factor: int, name: str) -> Clip:
    fps = given_rate(len(pictures), options, name)

    def frames() -> Iterator[torch.Tensor]:
        first_size = None
        for number, source in enumerate(pictures, start=1):
            picture = load_picture(source, name=f"picture {number} of {name}")
            first_size = first_size or picture.size
            if picture.size != first_size:
                sizes = f"{picture.width}×{picture.height} pixels, the first one {first_size[0]}×{first_size[1]}"
                raise MediaSizeError(f"picture {number} of {name} has {sizes}; all must be equal")
            yield torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    clip, original_size = resize_all(frames(), len(pictures), options, factor, name)
    return Clip(clip, fps, original_size, options.raw_fps or fps)


def clip_from_array(array: np.ndarray | torch.Tensor, options: VideoOptions, factor: int, name: str) -> Clip:
    """Frames whose sides are whole tokens already come from another resizer and keep their size, unless options
    ask for one: so what `qwen_vl_utils.process_vision_info` returns passes unchanged."""
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]) or 0 in array.shape:
        raise MediaFormatError(f"{name} is no video; expected frames as [T, 3, H, W] or [T, H, W, 3]")
    fps = given_rate(array.shape[0], options, name)
    frames = torch.from_numpy(to_uint8(array, name))
    if array.shape[1] != 3 or (array.shape[-1] == 3 and isinstance(array, np.ndarray)):
        frames = frames.permute(0, 3, 1, 2)
    original_size = (frames.shape[-2], frames.shape[-1])
    if not is_model_size(original_size, options, factor):
        frames, _ = resize_all(frames, len(frames), options, factor, name)
    return Clip(frames, fps, original_size, options.raw_fps or fps)


def is_model_size(size: tuple[int, int], options: VideoOptions, factor: int) -> bool:
    """Whether frames of this size are whole tokens, within the bounds, and no other size is asked for."""
    is_asked = size[0] % factor or size[1] % factor or options.total_pixels or options.resized_height
    return not is_asked and (options.min_pixels or 0) <= math.prod(size) <= (options.max_pixels or math.inf)


def given_rate(count: int, options: VideoOptions, name: str) -> float:
    """The rate of frames that are given one by one; none of them is left out."""
    if options.nframes is not None or options.video_start is not None or options.video_end is not None:
        raise UsageError(f"nframes, video_start, video_end choose from a video file; frames of {name} are given")
    most = options.max_frames or MAX_FRAMES
    if not 1 <= count <= most:
        raise MediaSizeError(f"{name} has {count} frames; between 1 and max_frames={most} can be taken")
    return float(options.sample_fps or options.fps or DEFAULT_FPS)

"""What may be asked of a video: how many frames, of which part, how large,
and what to do with damaged files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qwen25vl.arguments import plain_number
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.processing.image import check_number

FRAME_MULTIPLE = 2
RANGES = (("min_pixels", "max_pixels"), ("min_frames", "max_frames"), ("video_start", "video_end"))
BOOLS = ("strict", "do_resize")
SWITCHES = {"true": True, "false": False}


@dataclass(frozen=True)
class VideoOptions:
    """Options of a video; None takes the default.
    Rates are in frames per second, times in seconds.

    fps or nframes: how many frames to choose; min_frames and max_frames bound the former.
    min_pixels, max_pixels: of one frame at model size; total_pixels: of all frames together,
    counted per temporal patch of two. resized_height and resized_width: the model size itself,
    rounded to whole tokens. video_start, video_end: the part to look at. sample_fps: the rate of
    a list of frames (default 2.0); raw_fps: that of the video they come from. strict: True
    refuses a file in which anything is lost or damaged, False reads whatever can be read; by
    default damage is a warning, and only a file that lacks more than a tenth at its end is refused.
    do_resize: False keeps the frames' size, whose sides must be whole visual tokens.
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
    strict: bool | None = None
    do_resize: bool | None = None

    def __post_init__(self) -> None:
        for name, value in tuple(vars(self).items()):
            if value is not None:
                object.__setattr__(self, name, check_option(name, value))  # still being made
        if self.fps is not None and self.nframes is not None:
            raise UsageError(
                f"fps {self.fps} and nframes {self.nframes} exclude each other; give one of them"
            )
        if (self.resized_height is None) != (self.resized_width is None):
            raise UsageError("resized_height and resized_width must be given together")
        for low, high in RANGES:
            if (first := getattr(self, low)) is not None and first > (
                getattr(self, high) or math.inf
            ):
                raise UsageError(f"{low} {first} is above {high} {getattr(self, high)}")

    def override(self, values: Mapping[str, Any]) -> VideoOptions:
        """These options with some replaced. An old one that a new one excludes falls back to its
        default: fps and nframes exclude each other, and a lower bound any upper bound below it.
        Numbers may be text ("2", " 2.0 "), as in JSON and forms; a value of None is absent. Raises
        OptionError for unknown names, UsageError for impossible values."""
        if unknown := sorted(values.keys() - {f.name for f in fields(self)}):
            raise OptionError(f"unknown video option {', '.join(unknown)}")
        new = {
            name: read_option(name, value) for name, value in values.items() if value is not None
        }
        excluded = {old for name, old in (("fps", "nframes"), ("nframes", "fps")) if name in new}
        for low, high in RANGES:
            old = high if low in new else low
            merged = {**vars(self), **new}
            if None not in (merged[low], merged[high]) and merged[low] > merged[high]:
                excluded.add(old)
        return replace(self, **dict.fromkeys(excluded) | new)


def check_option(name: str, value: Any) -> int | float | bool:
    """The value as Python's own number or bool; UsageError for one that this option cannot have."""
    if name in BOOLS:
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; it must be True or False")
        return value
    is_rate = name.endswith("fps")
    is_count = name.endswith("frames") or name.startswith("resized")
    bound = 1
    if is_rate or name.startswith("video_"):
        bound = 0
    elif name in ("nframes", "max_frames"):
        bound = FRAME_MULTIPLE
    return check_number(name, value, bound, above=is_rate, whole=is_count)


def read_option(name: str, value: Any) -> Any:
    """The number or bool that a text stands for; what stands for none is left to the check."""
    if name in BOOLS:
        return SWITCHES.get(value.strip().lower(), value) if isinstance(value, str) else value
    number = plain_number(value, from_text=True)
    return value if number is None else number


def either_rate(video_fps: float | None, fps: float | None) -> float | None:
    """The frames per second of videos, which have two names."""
    if video_fps is not None:
        check_option("video_fps", read_option("video_fps", video_fps))
    if fps is not None and video_fps is not None and fps != video_fps:
        raise UsageError(f"video_fps {video_fps} and fps {fps} are the same option; give only one")
    return fps if video_fps is None else video_fps

"""What a request asks of its media: read, and held against the server's limits.

A request may ask for less than a limit. What asks for more is refused with the limit named, because
a value that is silently made smaller would give another answer than the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen25vl.arguments import plain_number
from qwen25vl.errors import UsageError
from qwen25vl.processing.messages import OPTIONS
from qwen25vl.processing.prompt_videos import Sampling
from qwen25vl.processing.video_options import VideoOptions
from qwen25vl.serving.errors import ApiError

DETAILS = {"low": 512 * 512, "auto": None, "high": None, "original": None}
"""OpenAI's `detail` and the most pixels that it stands for; None is the server's own limit."""
MAX_FPS = 240.0
MAX_SHOWN = 1e15
PIXELS = ("min_pixels", "max_pixels", "total_pixels")
FRAMES = ("nframes", "min_frames", "max_frames")
RATES = ("fps", "sample_fps", "raw_fps")
SECONDS = ("video_start", "video_end")
SIDES = ("resized_height", "resized_width")
NESTED = {"image": "images_kwargs", "video": "videos_kwargs"}
NOT_GIVEN = (None, -1, "-1")  # -1 is vLLM's word for no limit of one's own


@dataclass(frozen=True)
class MediaBounds:
    """max_pixels: of a picture or frame at model size; max_total_pixels: of a clip; max_frames: of
    a clip."""

    max_pixels: int
    max_total_pixels: int
    max_frames: int


def wrong(param: str, text: str) -> ApiError:
    return ApiError(400, text, param=param, code="invalid_value")


def check_options(options: Mapping[str, Any], bounds: MediaBounds, param: str) -> dict[str, Any]:
    """The options of one medium as numbers. Raises ApiError with the limit that one exceeds."""
    read = {name: read_number(value, name, param) for name, value in options.items()
            if value is not None}  # fmt: skip
    if read.keys() & set(SIDES):
        if not read.keys() >= set(SIDES):
            raise wrong(param, "resized_height and resized_width must be given together")
        area = read[SIDES[0]] * read[SIDES[1]]
        check_limit("resized_height × resized_width", area, bounds.max_pixels, param)
    for name in ("min_pixels", "max_pixels"):
        check_limit(name, read.get(name, 0), bounds.max_pixels, f"{param}.{name}")
    check_limit(
        "total_pixels",
        read.get("total_pixels", 0),
        bounds.max_total_pixels,
        f"{param}.total_pixels",
    )
    for name in FRAMES:
        said = "num_frames" if name == "nframes" and "kwargs" in param else name
        check_limit(said, read.get(name, 0), bounds.max_frames, f"{param}.{said}")
    for name in RATES:
        check_limit(name, read.get(name, 0), MAX_FPS, f"{param}.{name}")
    return read


def check_limit(name: str, value: float, limit: float, param: str) -> None:
    if value > limit:
        got = f"{value:.10g}" if value < MAX_SHOWN else "a number of many digits"
        text = f"{name} is {got}; this server allows at most {limit:.10g}"
        raise ApiError(400, text, param=param, code="limit_exceeded")


def read_number(value: Any, name: str, param: str) -> Any:
    if name == "strict":
        if not isinstance(value, bool):
            raise wrong(f"{param}.{name}", f"{name} must be true or false")
        return value
    number = plain_number(value, from_text=True) if is_short(value) else None
    least = 0 if name in (*RATES, *SECONDS) else 1
    is_whole = name in (*PIXELS, *FRAMES, *SIDES)
    if number is None or number < least or (is_whole and number != int(number)):
        kind = "a whole number" if is_whole else "a number"
        raise wrong(f"{param}.{name}", f"{name} must be {kind} of at least {least}")
    return int(number) if is_whole else number


def is_short(value: Any) -> bool:
    return not isinstance(value, str) or len(value) <= 40


def read_detail(value: Any, param: str) -> int | None:
    """The most pixels that `detail` stands for."""
    if value is None:
        return None
    if not isinstance(value, str) or value.lower() not in DETAILS:
        raise wrong(param, f"detail must be one of {', '.join(DETAILS)}")
    return DETAILS[value.lower()]


def call_options(given: Mapping[str, Any] | None, kind: str, param: str) -> dict[str, Any]:
    """What a request's mm_processor_kwargs ask of all media of a kind. Unknown ones are other
    servers' own."""
    values = check_mapping(given, param)
    nested = check_mapping(values.get(NESTED[kind]), f"{param}.{NESTED[kind]}")
    values = {**values, **nested}
    size = check_mapping(values.get("size"), f"{param}.size")
    found = {
        "min_pixels": values.get("min_pixels", size.get("shortest_edge")),
        "max_pixels": values.get("max_pixels", size.get("longest_edge")),
    }
    if kind == "video":
        found |= {name: values.get(name) for name in ("total_pixels", "min_frames", "max_frames")}
        found |= frame_options(values)
    return {name: value for name, value in found.items() if value not in NOT_GIVEN}


def frame_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """fps and num_frames; where both are given, the number is the most that the rate may give."""
    fps, frames = values.get("fps"), values.get("num_frames")
    if isinstance(fps, list) and len(fps) == 1:  # one for each video
        fps = fps[0]
    if fps in NOT_GIVEN:
        return {"nframes": frames}
    return {"fps": fps} if frames in NOT_GIVEN else {"fps": fps, "max_frames": frames}


def check_mapping(value: Any, param: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(param, "expected an object")
    return value


def frame_rate(
    media_io: Mapping[str, Any] | None, processor: Mapping[str, Any] | None, count: int
) -> dict[str, Any]:
    """The options of a clip that came as frames, from what the client says of the video that they
    were taken from: fps, frames_indices, total_num_frames, duration, do_sample_frames."""
    param = "media_io_kwargs.video"
    note = {**check_mapping(check_mapping(media_io, "media_io_kwargs").get("video"), param)}
    if isinstance(indices := note.get("frames_indices"), list) and len(indices) != count:
        raise wrong(f"{param}.frames_indices", f"{len(indices)} indices for {count} frames")
    if not note.get("total_num_frames") and note.get("duration") and note.get("fps"):
        seconds, fps = (plain_number(note[name], from_text=True) for name in ("duration", "fps"))
        note["total_num_frames"] = round((seconds or 0) * (fps or 0)) or None
    asked = {**call_options(processor, "video", "mm_processor_kwargs")}
    chooses = check_mapping(processor, "mm_processor_kwargs").get("do_sample_frames")
    if chooses is None:
        chooses = note.get("do_sample_frames")
    if note.get("fps") in NOT_GIVEN:
        return {}
    rate = asked.get("fps") if chooses else None
    frames = asked.get("nframes") if chooses and rate is None else None
    sampling = Sampling(num_frames=frames, do_sample_frames=bool(chooses))
    try:
        found = sampling.options_of(False, rate, note)
    except (UsageError, TypeError, ValueError):
        raise wrong(param, "expected numbers fps and total_num_frames of the video") from None
    return {name: value for name, value in found.items() if value is not None}


def known_options(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Those of a part's keys that are options of its kind."""
    names = OPTIONS["image" if kind == "image" else "video"]
    return {name: values[name] for name in names if values.get(name) is not None}


def check_together(options: Mapping[str, Any], param: str) -> None:
    """Options of a clip that exclude each other."""
    try:
        VideoOptions().override(options)
    except UsageError as error:
        raise wrong(param, str(error)) from None

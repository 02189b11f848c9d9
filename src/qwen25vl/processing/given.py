"""Media given beside a rendered prompt, as `processor(text=, images=, videos=)` takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from qwen25vl.arguments import plain_number
from qwen25vl.errors import MediaError, MessageError, UsageError
from qwen25vl.processing.animation import is_still
from qwen25vl.processing.chat import Part
from qwen25vl.processing.clients import plain_text
from qwen25vl.processing.frame_lists import split_frames
from qwen25vl.processing.image import check_number
from qwen25vl.processing.sources import open_source

STILL_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def check_texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    if not texts or not all(isinstance(prompt, str) for prompt in texts):
        raise UsageError(f"text is {type(text).__name__}; expected a rendered prompt or a list of them")
    return [plain_text(prompt) for prompt in texts]


def given_images(images: Any, slots: Sequence[Sequence[str]]) -> list[Part]:
    """One picture, a list of them, or a list with an entry for each text.

    Such an entry is a list of pictures, one picture or None. slots: the kinds of each text's slots.
    Raises MessageError where an entry does not fit its text's slots.
    """
    if images is None:
        return []
    entries = list(images) if isinstance(images, list | tuple) else [images]
    if not any(entry is None or isinstance(entry, list | tuple) for entry in entries):
        return [Part("image", source=picture) for picture in entries]
    if len(entries) != len(slots):
        got = f"images has {len(entries)} entries, some of them lists or None"
        raise MessageError(f"{got}, for {len(slots)} texts")
    parts: list[Part] = []
    for number, (entry, kinds) in enumerate(zip(entries, slots, strict=True), start=1):
        own = [] if entry is None else entry if isinstance(entry, list | tuple) else [entry]
        if len(own) != (wanted := kinds.count("image")):
            got = f"text {number} has {wanted} slots for pictures"
            raise MessageError(f"{got}, but {len(own)} are given")
        parts += [Part("image", source=picture) for picture in own]
    return parts


def given_videos(
    videos: Any,
    fps: float | Sequence[float] | None,
    do_sample_frames: bool | None,
    metadata: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
    slots: Sequence[Sequence[str]],
) -> list[Part]:
    """One video or a list of them, each with its rate: what `fps` says, else what the metadata of its frames say.

    slots: the kinds of each text's slots. In a list with a None there is an entry for each text.
    """
    sources = list_videos(videos_of_texts(videos, slots))
    fps = fps.tolist() if isinstance(fps, torch.Tensor | np.ndarray) else fps
    rates = list(fps) if isinstance(fps, list | tuple) else [fps] * len(sources)
    no_notes: Sequence[Mapping[str, Any] | None] = [None] * len(sources)
    notes = [metadata] if isinstance(metadata, Mapping) else list(metadata or no_notes)
    for name, values in (("fps", rates), ("video_metadata", notes)):
        if len(values) != len(sources):
            raise UsageError(f"{name} has {len(values)} values for {len(sources)} videos")
    parts = []
    for source, rate, note in zip(sources, rates, notes, strict=True):
        if rate is not None:
            check_number("fps", rate, 0, above=True)
        if has_metadata(source):
            source, note = source  # noqa: PLW2901 - its own metadata takes precedence
        is_file = not is_frames(source)
        if do_sample_frames is not None and do_sample_frames != is_file:
            need = ("video files, but frames are given, which are all taken",
                    "frames, but a video file is given, which is always sampled")[is_file]  # fmt: skip
            raise UsageError(f"do_sample_frames={do_sample_frames} needs {need}")
        if is_file and note is not None:
            raise UsageError("video_metadata describes frames that are given, not a video file")
        chosen = rate if rate is not None or note is None else sampled_rate(note)
        parts.append(Part("video", source=source, options={} if chosen is None else {"fps": chosen}))
    return parts


def videos_of_texts(videos: Any, slots: Sequence[Sequence[str]]) -> Any:
    """The videos without the None of texts that have none. Raises MessageError where one has a slot."""
    if not isinstance(videos, list | tuple) or not any(video is None for video in videos):
        return videos
    if len(videos) != len(slots):
        got = f"videos has {len(videos)} entries, some of them None"
        raise MessageError(f"{got}, for {len(slots)} texts")
    for number, (video, kinds) in enumerate(zip(videos, slots, strict=True), start=1):
        given, wanted = int(video is not None), kinds.count("video")
        if given != wanted:
            got = f"text {number} has {wanted} slots for videos"
            raise MessageError(f"{got}, but {given} are given")
    return [video for video in videos if video is not None]


def list_videos(videos: Any) -> list[Any]:
    """One video or several as a list. A flat list of still pictures is one video, its frames; an
    array [videos, T, …] is several."""
    if videos is None:
        return []
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, list | tuple) or has_metadata(videos):
        return [videos]
    return [videos] if videos and all(map(is_picture, videos)) else list(videos)


def has_metadata(video: Any) -> bool:
    """Whether this is a pair as qwen-vl-utils' process_vision_info(return_video_metadata=True)
    returns it."""
    return isinstance(video, list | tuple) and len(video) == 2 and isinstance(video[1], Mapping)


def is_frames(video: Any) -> bool:
    """Whether a video is given frame by frame, not as a file."""
    if isinstance(video, str):
        return split_frames(video) is not None
    return isinstance(video, list | tuple | np.ndarray | torch.Tensor | Image.Image)


def is_picture(value: Any) -> bool:
    """Whether this is a still picture: by its header, or the name of an address."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim < 4
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        return PurePosixPath(urlsplit(value).path).suffix.lower() in STILL_SUFFIXES
    if isinstance(value, list | tuple | Mapping) or value == "-" or is_stream(value):
        return False
    return isinstance(value, Image.Image) or has_still_header(value)


def is_stream(value: Any) -> bool:
    """Whether this is an open file that can be read only once."""
    return callable(getattr(value, "read", None)) and not value.seekable()


def has_still_header(source: Any) -> bool:
    """False also for what cannot be read; the error is raised where the video is read."""
    try:
        with open_source(source) as file:
            return is_still(file)
    except (MediaError, UsageError):
        return False


def sampled_rate(metadata: Mapping[str, Any]) -> float:
    """Frames per second among the chosen frames, from what decoders say: fps, frames_indices, total_num_frames."""
    fps = plain_number(metadata.get("fps"), from_text=True)
    total = plain_number(metadata.get("total_num_frames"), from_text=True)
    indices = metadata.get("frames_indices")
    if not fps:
        raise UsageError(f"video_metadata without fps: {dict(metadata)!r:.80}")
    return float(fps if indices is None or not total else len(indices) / total * fps)


def pair(kinds: Sequence[Sequence[str]], images: list[Part], videos: list[Part]) -> Iterator[list[Part]]:
    """For each prompt the media of its slots. Raises MessageError unless each has one slot and each
    slot one."""
    for kind, given in (("image", images), ("video", videos)):
        num_slots = sum(row.count(kind) for row in kinds)
        if num_slots != len(given):
            noun = "pictures" if kind == "image" else "videos"
            raise MessageError(f"{num_slots} slots for {noun} in the text, but {len(given)} {noun} are given")
    waiting = {"image": iter(images), "video": iter(videos)}
    return ([next(waiting[kind]) for kind in row] for row in kinds)

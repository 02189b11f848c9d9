"""Videos given beside a rendered prompt, each with the rate of its frames."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from qwen25vl.arguments import plain_number
from qwen25vl.errors import MediaError, MessageError, UsageError
from qwen25vl.processing.animation import is_moving, is_open_animation, picture_format
from qwen25vl.processing.clients import file_kind, present
from qwen25vl.processing.content import AS_VIDEO, HEAD_BYTES, identify
from qwen25vl.processing.frame_lists import MAX_FRAMES, split_frames
from qwen25vl.processing.image import check_number
from qwen25vl.processing.messages import Part
from qwen25vl.processing.sources import is_pair, open_source
from qwen25vl.processing.video import MIN_FRAMES, even_below

STILL_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Sampling:
    """Which frames of videos given beside a prompt are taken.

    fps: for all videos, or one for each; of frames it is the rate at which they were taken, or with
    do_sample_frames the one that is wanted. num_frames: how many, of a file or of frames with
    do_sample_frames. metadata: the origin of frames, see `sampled_rate`, for one video or each.
    """

    fps: float | Sequence[float] | None = None
    num_frames: int | None = None
    do_sample_frames: bool | None = None
    metadata: Any = None
    min_frames: int | None = None
    max_frames: int | None = None

    def options_of(
        self, is_file: bool, rate: Any, note: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The options of one video: of its `rate` in `fps`, and the metadata that describe it."""
        if is_file:
            if self.do_sample_frames is False:
                raise UsageError(
                    "do_sample_frames=False needs frames, but a video file is given, which is "
                    "always sampled; fps= or num_frames= say how"
                )
            if note is not None:
                raise UsageError("video_metadata describes frames that are given, not a video file")
            if rate is not None and self.num_frames is not None:
                raise UsageError("fps and num_frames exclude each other; give one of them")
            return {"fps": rate, "nframes": self.num_frames}
        taken = rate if note is None else sampled_rate(note)
        if not self.do_sample_frames:
            return {"sample_fps": taken if rate is None else rate}
        if rate is not None and self.num_frames is not None:
            raise UsageError("fps and num_frames exclude each other; give one of them")
        if self.num_frames is not None or rate is None:
            return {"sample_fps": taken, "nframes": self.num_frames}
        if note is None:
            raise UsageError(
                "sampling frames by fps needs to know their own rate; give video_metadata=, or "
                "num_frames="
            )
        return {"sample_fps": taken, "nframes": self.frames_at(rate, note)}

    def frames_at(self, rate: float, note: Mapping[str, Any]) -> int | None:
        """How many frames `rate` frames per second are, as in the reference: an even number."""
        total = plain_number(note.get("total_num_frames"), from_text=True)
        fps = plain_number(note.get("fps"), from_text=True)
        if not total or not fps:
            raise UsageError(f"video_metadata without fps or total_num_frames: {dict(note)!r:.80}")
        most = even_below(min(self.max_frames or MAX_FRAMES, total))
        wanted = even_below(min(max(total / fps * rate, self.min_frames or MIN_FRAMES), most))
        return wanted or None


def given_videos(
    videos: Any, sampling: Sampling, slots: Sequence[Sequence[str]] | None
) -> list[Part]:
    """One video or a list of them, each with its options.

    slots: the kinds of each text's slots, None where there are no texts. A list may have an entry
    for each text, see `videos_of_texts`.
    """
    sources = list_videos(videos_of_texts(videos, slots))
    fps = sampling.fps
    fps = fps.tolist() if isinstance(fps, torch.Tensor | np.ndarray) else fps
    rates = list(fps) if isinstance(fps, list | tuple) else [fps] * len(sources)
    notes = list_metadata(sampling.metadata, len(sources))
    for name, values in (("fps", rates), ("video_metadata", notes)):
        if len(values) != len(sources):
            raise UsageError(f"{name} has {len(values)} values for {len(sources)} videos")
    parts = []
    for source, rate, note in zip(sources, rates, notes, strict=True):
        if rate is not None:
            check_number("fps", rate, 0, above=True)
        if has_metadata(source):
            source, note = source  # noqa: PLW2901 - its own metadata takes precedence
        options = sampling.options_of(not is_frames(source), rate, note)
        parts.append(
            Part(
                "video", source=source, options={k: v for k, v in options.items() if v is not None}
            )
        )
    return parts


def list_metadata(metadata: Any, count: int) -> list[Mapping[str, Any] | None]:
    """One description for each of `count` videos: objects or mappings, also in lists of one."""
    if metadata is None:
        return [None] * count
    entries = metadata if isinstance(metadata, list | tuple) else [metadata]
    notes: list[Mapping[str, Any] | None] = []
    for entry in entries:
        inner = entry[0] if isinstance(entry, list | tuple) and len(entry) == 1 else entry
        note = present(inner)
        if note is None and inner is not None:
            raise UsageError(f"video_metadata holds {inner!r:.60}; expected objects with fps")
        notes.append(note)
    return notes


def videos_of_texts(videos: Any, slots: Sequence[Sequence[str]] | None) -> Any:
    """The videos of a list with an entry for each text, one after another;
    any other value as it is.

    Such an entry is one video, a list of videos or None. A list of pictures is one video. Raises
    MessageError where an entry does not fit its text's slots.
    """
    if not isinstance(videos, list | tuple) or has_metadata(videos):
        return videos
    own_lists = [videos_of_entry(entry) for entry in videos]
    if all(own is None for own in own_lists):
        return videos
    if slots is None:
        return [
            video
            for entry, own in zip(videos, own_lists, strict=True)
            for video in ([entry] if own is None else own)
        ]
    if len(videos) != len(slots):
        got = f"videos has {len(videos)} entries, some of them lists of videos or None"
        raise MessageError(f"{got}, for {len(slots)} texts")
    flat: list[Any] = []
    for number, (entry, own, kinds) in enumerate(
        zip(videos, own_lists, slots, strict=True), start=1
    ):
        given = [entry] if own is None else own
        if len(given) != (wanted := kinds.count("video")):
            got = f"text {number} has {wanted} slots for videos"
            raise MessageError(f"{got}, but {len(given)} are given")
        flat += given
    return flat


def videos_of_entry(entry: Any) -> list[Any] | None:
    """A text's own videos where an entry is None or a list of them; None where it is one video."""
    if entry is None:
        return []
    if not isinstance(entry, list | tuple) or has_metadata(entry):
        return None
    kinds = [is_picture(item) for item in entry]
    is_list = not kinds or kinds == [None] or False in kinds
    return list(entry) if is_list else None


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
    """Whether this is a pair as qwen-vl-utils'
    process_vision_info(return_video_metadata=True) returns it."""
    if not isinstance(video, list | tuple) or len(video) != 2:
        return False
    return isinstance(video[1], Mapping) and not is_pair(video[1])


def is_frames(video: Any) -> bool:
    """Whether a video is given frame by frame, not as a file."""
    if isinstance(video, str | bytes | bytearray):
        return split_frames(video) is not None
    if isinstance(video, Image.Image):
        return not is_open_animation(video)
    return isinstance(video, list | tuple | np.ndarray | torch.Tensor)


def is_picture(value: Any) -> bool | None:
    """Whether this is a still picture: by its header, or the end of its name.

    False is a video or an animation, None is not known.
    """
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim < 4
    if isinstance(value, Image.Image):
        return not is_open_animation(value)
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        return kind_of_name(urlsplit(value).path)
    if isinstance(value, list | tuple):
        return False
    if value == "-" or is_read_once(value):
        return None
    return has_still_header(value)


def kind_of_name(path: str) -> bool | None:
    """What `is_picture` says, by the end of a name alone."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in STILL_SUFFIXES:
        return True
    return False if file_kind(None, path) else None


def is_read_once(value: Any) -> bool:
    """Whether this is an open file that can be read only once."""
    return callable(getattr(value, "read", None)) and not value.seekable()


def has_still_header(source: Any) -> bool | None:
    """What `is_picture` says of a file. Where it cannot be read, its name decides; the error is
    raised where it is read as a picture or video."""
    if isinstance(source, str | bytes | bytearray) and split_frames(source) is not None:
        return False
    try:
        with open_source(source) as file:
            if kind := picture_format(file):
                return not is_moving(file, kind)
            file.seek(0)
            content = identify(file.read(HEAD_BYTES))
    except (MediaError, UsageError):
        return kind_of_name(os.fspath(source)) if isinstance(source, str | PurePath) else None
    return False if content and content.remedy == AS_VIDEO else None


def sampled_rate(metadata: Mapping[str, Any]) -> float:
    """Frames per second among the chosen frames, from what decoders say:
    fps, frames_indices, total_num_frames."""
    fps = plain_number(metadata.get("fps"), from_text=True)
    total = plain_number(metadata.get("total_num_frames"), from_text=True)
    indices = metadata.get("frames_indices")
    if not fps:
        raise UsageError(f"video_metadata without fps: {dict(metadata)!r:.80}")
    return float(fps if indices is None or not total else len(indices) / total * fps)

"""Media given beside a rendered prompt, as `processor(text=, images=, videos=)` takes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from qwen25vl.arguments import plain_number
from qwen25vl.errors import MediaError, MessageError, UsageError
from qwen25vl.processing.animation import is_moving, is_open_animation, picture_format
from qwen25vl.processing.clients import file_kind, plain_text
from qwen25vl.processing.content import AS_VIDEO, HEAD_BYTES, identify
from qwen25vl.processing.frame_lists import split_frames
from qwen25vl.processing.image import check_number
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT, Part
from qwen25vl.processing.sources import is_pair, open_source

STILL_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def check_texts(text: Any) -> list[str]:
    """The rendered prompts of a call, also where there is one."""
    texts = [text] if isinstance(text, str) else text
    if (
        not isinstance(texts, list | tuple)
        or not texts
        or not all(isinstance(prompt, str) for prompt in texts)
    ):
        raise UsageError(
            f"text is {type(text).__name__}; expected a rendered prompt or a list of them"
        )
    return [plain_text(prompt) for prompt in texts]


def find_slots(parts: Iterable[str]) -> list[str]:
    """The kinds of the slots in a prompt that is split at its control tokens."""
    kinds = {IMAGE_SLOT: "image", VIDEO_SLOT: "video"}
    return [kinds[part] for part in parts if part in kinds]


def media_of_slots(
    slots: Sequence[Sequence[str]],
    images: Any,
    videos: Any,
    fps: float | Sequence[float] | None,
    do_sample_frames: bool | None,
    video_metadata: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> list[list[Part]]:
    """The media of each text, in the order of its slots; options as in the processor's call."""
    clips = given_videos(videos, fps, do_sample_frames, video_metadata, slots)
    return fill_slots(slots, given_images(images, slots), clips)


def given_images(images: Any, slots: Sequence[Sequence[str]]) -> list[Part]:
    """One picture, a list of them, or a list with an entry for each text.

    Such an entry is a list of pictures, one picture or None. slots: the kinds of each text's slots.
    Raises MessageError where an entry does not fit its text's slots.
    """
    if images is None:
        return []
    entries = list(images) if isinstance(images, list | tuple) else [images]
    if not any(entry is None or isinstance(entry, list | tuple) for entry in entries):
        return [image_part(picture) for picture in entries]
    if len(entries) != len(slots):
        got = f"images has {len(entries)} entries, some of them lists or None"
        raise MessageError(f"{got}, for {len(slots)} texts")
    parts: list[Part] = []
    for number, (entry, kinds) in enumerate(zip(entries, slots, strict=True), start=1):
        own = pictures_of_entry(entry)
        if len(own) != (wanted := kinds.count("image")):
            got = f"text {number} has {wanted} slots for pictures"
            raise MessageError(f"{got}, but {len(own)} are given")
        parts += [image_part(picture) for picture in own]
    return parts


def pictures_of_entry(entry: Any) -> Sequence[Any]:
    """A text's own pictures: none, one, or a list of them."""
    if entry is None:
        return []
    return entry if isinstance(entry, list | tuple) else [entry]


def image_part(picture: Any) -> Part:
    """A mapping of a path alone is what data sets keep of a file outside of them."""
    if isinstance(picture, Mapping) and picture.keys() == {"path"}:
        picture = {"bytes": None, **picture}
    return Part("image", source=picture)


def given_videos(
    videos: Any,
    fps: float | Sequence[float] | None,
    do_sample_frames: bool | None,
    metadata: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
    slots: Sequence[Sequence[str]],
) -> list[Part]:
    """One video or a list of them, each with its rate: `fps`, else the one of its frames' metadata.

    slots: the kinds of each text's slots. A list may have an entry for each text, see
    `videos_of_texts`.
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
        check_sampling(do_sample_frames, is_file)
        if is_file and note is not None:
            raise UsageError("video_metadata describes frames that are given, not a video file")
        if rate is None and note is not None:
            rate = sampled_rate(note)  # noqa: PLW2901
        options = {} if rate is None else {"fps": rate}
        parts.append(Part("video", source=source, options=options))
    return parts


def check_sampling(do_sample_frames: bool | None, is_file: bool) -> None:
    """Raise UsageError where files are not to be sampled, or frames are."""
    if do_sample_frames is True and not is_file:
        raise UsageError(
            "do_sample_frames=True needs video files, but frames are given, which are all taken"
        )
    if do_sample_frames is False and is_file:
        raise UsageError(
            "do_sample_frames=False needs frames, but a video file is given, which is always "
            "sampled"
        )


def videos_of_texts(videos: Any, slots: Sequence[Sequence[str]]) -> Any:
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


def fill_slots(
    kinds: Sequence[Sequence[str]], images: list[Part], videos: list[Part]
) -> list[list[Part]]:
    """For each prompt the media of its slots.
    Raises MessageError unless each has one slot and each slot one."""
    for kind, given in (("image", images), ("video", videos)):
        num_slots = sum(row.count(kind) for row in kinds)
        if num_slots != len(given):
            noun = "pictures" if kind == "image" else "videos"
            raise MessageError(
                f"{num_slots} slots for {noun} in the text, but {len(given)} {noun} are given"
            )
    waiting = {"image": iter(images), "video": iter(videos)}
    return [[next(waiting[kind]) for kind in row] for row in kinds]

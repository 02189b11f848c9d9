"""Media given beside a rendered prompt, as `processor(text=, images=, videos=)` takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from qwen25vl.errors import MessageError, UsageError
from qwen25vl.processing.clients import plain_text
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT, Part
from qwen25vl.processing.prompt_videos import Sampling, given_videos


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


def slot_kinds(parts: Iterable[str]) -> list[str]:
    """The kinds of the slots in a prompt that is split at its control tokens."""
    kinds = {IMAGE_SLOT: "image", VIDEO_SLOT: "video"}
    return [kinds[part] for part in parts if part in kinds]


def media_of_slots(
    slots: Sequence[Sequence[str]], images: Any, videos: Any, sampling: Sampling
) -> list[list[Part]]:
    """The media of each text, in the order of its slots; options as in the processor's call."""
    return assign_media(slots, given_images(images, slots), given_videos(videos, sampling, slots))


def given_images(images: Any, slots: Sequence[Sequence[str]]) -> list[Part]:
    """One picture, a list of them, or a list with an entry for each text.

    Such an entry is a list of pictures, one picture or None. An array of four dimensions is several
    pictures. slots: the kinds of each text's slots.
    Raises MessageError where an entry does not fit its text's slots.
    """
    if images is None:
        return []
    entries = list(pictures_of_entry(images))
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
    pictures = entry if isinstance(entry, list | tuple) else [entry]
    return [picture for each in pictures for picture in split_batch(each)]


def split_batch(picture: Any) -> Sequence[Any]:
    """The pictures of an array [N, H, W, C] or [N, C, H, W]; any other picture alone."""
    is_batch = isinstance(picture, np.ndarray | torch.Tensor) and picture.ndim == 4
    return list(picture) if is_batch else [picture]


def image_part(picture: Any) -> Part:
    """A mapping of a path alone is what data sets keep of a file outside of them."""
    if isinstance(picture, Mapping) and picture.keys() == {"path"}:
        picture = {"bytes": None, **picture}
    return Part("image", source=picture)


def assign_media(
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

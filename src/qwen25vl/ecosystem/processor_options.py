"""The options of a processor's call, sorted by what they are for.

An option may be given as it is, or in text_kwargs, images_kwargs and videos_kwargs. One that
pictures and videos have in common counts for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from qwen25vl.arguments import name_hint
from qwen25vl.ecosystem.encodings import TextOptions
from qwen25vl.ecosystem.media_processor import NEUTRAL_MEDIA, MediaOptions, check_neutral
from qwen25vl.ecosystem.video_processor import VideoCallOptions
from qwen25vl.errors import OptionError, UsageError

TEXT, PICTURES = TextOptions.__annotations__, MediaOptions.__annotations__
VIDEOS = VideoCallOptions.__annotations__
GROUPS = {"text_kwargs": TEXT, "images_kwargs": PICTURES, "videos_kwargs": VIDEOS}


class ProcessorOptions(TextOptions, VideoCallOptions, total=False):
    """What a call may say by name; see `TextOptions`, `MediaOptions` and `VideoCallOptions`."""

    text_kwargs: Mapping[str, Any] | None
    images_kwargs: Mapping[str, Any] | None
    videos_kwargs: Mapping[str, Any] | None
    common_kwargs: Mapping[str, Any] | None
    processor_kwargs: Mapping[str, Any] | None
    video_load_backend: str | None
    load_audio_from_video: bool | None
    patch_dtype: torch.dtype | None
    known_media: Set[bytes] | None


NESTED = {*GROUPS, "common_kwargs", "processor_kwargs"}
OWN = ("return_tensors", "patch_dtype", "known_media")


@dataclass(frozen=True)
class SortedOptions:
    """text, images, videos: the options of each; own: those of the call itself."""

    text: dict[str, Any]
    images: dict[str, Any]
    videos: dict[str, Any]
    own: dict[str, Any]


def sort_options(options: Mapping[str, Any], function: Callable[..., Any]) -> SortedOptions:
    """function: whose options these are, for hints.

    Raises OptionError for an unknown name, UsageError for an option that is given twice.
    """
    flat = {**nested(options, "common_kwargs"), **nested(options, "processor_kwargs")}
    flat |= {key: value for key, value in options.items() if key not in NESTED}
    groups = {key: nested(options, key) or nested(flat, key) for key in GROUPS}
    flat = {key: value for key, value in flat.items() if key not in GROUPS}
    for name, value in flat.items():
        if name in NEUTRAL_MEDIA and name not in PICTURES:
            check_neutral(name, value)
        elif not any(name in names for names in (TEXT, VIDEOS, OWN)):
            known = [*parameters_of(function), *ProcessorOptions.__annotations__]
            hint = name_hint(name, known)
            raise OptionError(f"there is no option {name!r}; {hint}")
    for group, names in GROUPS.items():
        for name in groups[group]:
            if name not in names and name not in OWN:
                hint = name_hint(name, names)
                raise OptionError(f"{group} has no option {name!r}; {hint}")
            if name in options:
                raise UsageError(f"{name} is given twice: in {group} and as an argument")
    own = {name: flat[name] for name in OWN if name in flat}
    for values in groups.values():
        own |= {name: values.pop(name) for name in OWN if name in values}
    check_own(own)
    text, images, videos = (
        {**{name: flat[name] for name in names if name in flat}, **groups[group]}
        for group, names in GROUPS.items()
    )
    return SortedOptions(text, images, videos, own)


def nested(options: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The options of a group, a copy."""
    given = options.get(group)
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"{group} is {given!r}; it must be a mapping of options")
    return dict(given or {})


def check_own(own: Mapping[str, Any]) -> None:
    dtype, known = own.get("patch_dtype"), own.get("known_media")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"patch_dtype is {dtype!r}; it must be a dtype of floats")
    if known is not None and not isinstance(known, Set):
        raise UsageError(f"known_media is {known!r}; it must be a set of digests")


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """The names that a function takes beside its options, for hints."""
    return [name for name in signature(function).parameters if name not in ("self", "options")]

"""A checkpoint's files as the parts of a processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.ecosystem.encodings import CALL_DEFAULTS, set_options
from qwen25vl.ecosystem.image_processor import Qwen2VLImageProcessor
from qwen25vl.ecosystem.processor_files import read_preparations
from qwen25vl.ecosystem.processor_options import PICTURES, VIDEOS
from qwen25vl.ecosystem.tokenizer import Qwen2Tokenizer
from qwen25vl.ecosystem.video_processor import Qwen2VLVideoProcessor
from qwen25vl.errors import CheckpointError, ConfigError, UsageError
from qwen25vl.hub import resolve_folder
from qwen25vl.load_options import check_options
from qwen25vl.loading.adapter_base import choose_processor, find_base

if TYPE_CHECKING:
    from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor

T = TypeVar("T")
Parts = tuple[Qwen2VLImageProcessor, Qwen2Tokenizer, Qwen2VLVideoProcessor]
WRONG_KIND = (AttributeError, TypeError, ValueError, OverflowError)  # of values of another kind
OF_TOKENIZER = ("padding_side", "model_max_length", *CALL_DEFAULTS)


def load_parts(
    name_or_folder: str | Path,
    hub: Mapping[str, Any],
    options: Mapping[str, Any],
    function: Callable[..., Any],
) -> tuple[Path, Parts]:
    """A checkpoint's local folder, and its parts with options as their attributes.

    hub: options of `resolve_folder`. function: whose options these are, for errors. Raises
    OptionError for an unknown one, CheckpointError for files that are missing or damaged.
    """
    if options.get("use_fast") not in (None, True, False):
        raise UsageError(f"use_fast is {options['use_fast']!r}; it must be True or False")
    names = {"use_fast", *PICTURES, *VIDEOS, *OF_TOKENIZER}
    check_options({k: v for k, v in options.items() if k not in names}, function)
    pictures = {key: value for key, value in options.items() if key in PICTURES}
    videos = {key: value for key, value in options.items() if key in VIDEOS}
    Qwen2VLImageProcessor().change(pictures)  # refuses wrong values before anything is downloaded
    given = resolve_folder(name_or_folder, files="processor", **hub)
    folder = choose_processor(*find_base(given, **hub, files="processor"))
    try:
        prepared = read_preparations(folder)
        image = Qwen2VLImageProcessor.from_dict(prepared[0])
        video = Qwen2VLVideoProcessor.from_files(*prepared)
        for part in (image, video):
            _ = part.settings
    except WRONG_KIND as error:
        raise ConfigError(
            f"{folder}: the settings for pictures and videos are damaged: {error!s:.300}"
        ) from error
    image.change(pictures)
    video.change(videos)
    if "shortest_edge" in (video.unstated or {}):  # for pictures it bounds no frames of files
        video.unstated = {**(video.unstated or {}), "shortest_edge": video.size["shortest_edge"]}
    tokenizer = Qwen2Tokenizer.from_folder(folder)
    set_options(tokenizer, options)
    return folder, (image, tokenizer, video)


def check_part(name: str, part: Any, kind: type[T]) -> T:
    """The part. Raises UsageError where it is of another kind."""
    if not isinstance(part, kind):
        raise UsageError(f"{name} is {type(part).__name__}; expected a {kind.__name__}")
    return part


def slot_id(tokenizer: Qwen2Tokenizer, slot: str) -> int:
    """The id of a slot for media. Raises CheckpointError where there is none."""
    if slot not in tokenizer.control_ids:
        raise CheckpointError(
            f"the tokenizer has no token {slot}; this is not a Qwen2.5-VL checkpoint"
        )
    return tokenizer.control_ids[slot]


def check_fit(processor: Qwen2_5_VLProcessor, config: Qwen2_5_VLConfig) -> None:
    """Raise CheckpointError where a processor cuts pictures into other patches than a model reads,
    or marks their places by other tokens."""
    vision = config.vision_config
    sizes = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    found = {
        f"{name} of {part.file_name}": (getattr(part, name), size)
        for part in (processor.image_processor, processor.video_processor)
        for name, size in sizes.items()
    }
    found["the number of <|image_pad|>"] = (processor.image_token_id, config.image_token_id)
    found["the number of <|video_pad|>"] = (processor.video_token_id, config.video_token_id)
    for name, (own, wanted) in found.items():
        if own != wanted:
            raise CheckpointError(
                f"{processor.folder}: {name} is {own}, but the model's config.json has {wanted}"
            )

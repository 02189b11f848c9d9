"""The processor's part of a checkpoint folder:
how pictures and videos are prepared, and the chat template.

Official folders have preprocessor_config.json and chat_template.json, and say nothing of videos.
Newer saves may have processor_config.json with both preparations, video_preprocessor_config.json
and chat_template.jinja instead.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen25vl.config_values import read_json
from qwen25vl.errors import CheckpointError, ConfigError
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.video import VideoOptions

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                   "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip
VIDEO_KEYS = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels")


def read_settings(folder: Path) -> tuple[ImageSettings, VideoOptions]:
    """Raises CheckpointError where no file says how pictures are prepared, or one is damaged."""
    both = (
        read_json(folder / "processor_config.json")
        if (folder / "processor_config.json").exists()
        else {}
    )
    image = both.get("image_processor") or read_json(folder / "preprocessor_config.json")
    video = both.get("video_processor")
    if not video and (folder / "video_preprocessor_config.json").exists():
        video = read_json(folder / "video_preprocessor_config.json")
    try:
        return ImageSettings.from_dict(image), read_video_options(video or {})
    except (AttributeError, TypeError, ValueError) as error:  # of values of another kind
        raise ConfigError(
            f"{folder}: the settings for pictures and videos are damaged: {error}"
        ) from error


def read_video_options(values: Mapping[str, Any]) -> VideoOptions:
    """What a newer save's video processor says; `size` holds the bounds of a frame."""
    size = values.get("size") or {}
    found = {key: values[key] for key in VIDEO_KEYS if values.get(key) is not None}
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if key not in found and size.get(edge) is not None:
            found[key] = size[edge]
    return VideoOptions(**found)


def read_template(folder: Path) -> str:
    """The chat template of pictures and videos;
    tokenizer_config.json's, which has tools instead, comes last."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).exists() and isinstance(
            template := read_json(folder / name).get("chat_template"), str
        ):
            return template
    raise CheckpointError(
        f"{folder} has no chat template: neither chat_template.json nor chat_template.jinja"
    )


def write_files(
    source: Path, target: Path, settings: ImageSettings, video: VideoOptions, template: str
) -> None:
    """The files in the official layout; the tokenizer's are copied as they are from `source`."""
    target.mkdir(parents=True, exist_ok=True)
    if target.resolve() != source.resolve():
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copy2(source / name, target / name)
    for name in ("chat_template.jinja", "processor_config.json", "video_preprocessor_config.json"):
        (target / name).unlink(missing_ok=True)  # they would go before what is written now
    write_json(target / "preprocessor_config.json", settings.to_dict())
    write_json(target / "chat_template.json", {"chat_template": template})
    stated = {
        key: value
        for key, value in asdict(video).items()
        if key in VIDEO_KEYS and value is not None
    }
    if stated:
        kind = {
            "video_processor_type": "Qwen2VLVideoProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        }
        write_json(target / "video_preprocessor_config.json", stated | kind)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

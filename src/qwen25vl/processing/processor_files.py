"""The processor's files in a checkpoint folder: which there may be, and what older and newer saves call things."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen25vl.errors import CheckpointError
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.tokenizer import read_json
from qwen25vl.processing.video import VideoOptions

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.json",
         "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "video_preprocessor_config.json",
         "processor_config.json")  # fmt: skip
VIDEO_KEYS = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels")


def read_settings(folder: Path) -> tuple[ImageSettings, VideoOptions]:
    """How pictures and videos are prepared. The official files say nothing of videos, newer saves do.

    Raises CheckpointError where the files are missing or impossible.
    """
    newer = read_json(folder / "processor_config.json") if (folder / "processor_config.json").exists() else {}
    image = newer.get("image_processor") or read_json(folder / "preprocessor_config.json")
    video = newer.get("video_processor") or {}
    if (folder / "video_preprocessor_config.json").exists():
        video = read_json(folder / "video_preprocessor_config.json")
    return ImageSettings.from_dict(image), read_video_options(video)


def read_template(folder: Path) -> str:
    """The chat template of pictures and videos; tokenizer_config.json's, which has tools instead, comes last."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).exists() and isinstance(template := read_json(folder / name).get("chat_template"), str):
            return template
    raise CheckpointError(f"{folder} has no chat template: neither chat_template.json nor chat_template.jinja")


def read_video_options(values: Mapping[str, Any]) -> VideoOptions:
    """What a newer save's video processor says; `size` holds the bounds of a frame."""
    size = values.get("size") or {}
    found = {key: values[key] for key in VIDEO_KEYS if values.get(key) is not None}
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if key not in found and size.get(edge) is not None:
            found[key] = size[edge]
    return VideoOptions(**found)


def copy_files(source: Path, target: Path) -> None:
    """Copy what is copied unchanged when a processor is saved."""
    if target.resolve() != source.resolve():
        for name in FILES:
            if (source / name).exists():
                shutil.copy2(source / name, target / name)

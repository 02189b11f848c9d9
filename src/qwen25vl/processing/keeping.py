"""Sources that may not be there a second time, as their bytes.

An open file is closed, a stream is read to its end, a file is deleted: whoever asks again later
gets what was read the first time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from qwen25vl.processing.base64_text import is_data_uri
from qwen25vl.processing.media import MAX_PICTURE_BYTES
from qwen25vl.processing.sources import (
    MAX_BYTES,
    is_pair,
    load_bytes,
    source_name,
)


def keep_open_files(value: Any) -> Any:
    """A source, a list of them or messages, in which bytes stand for open files and standard input.

    The bytes keep the name of their file, as {"bytes": …, "path": name}. Everything else stays as
    it is. Raises what reading a source does.
    """
    if callable(getattr(value, "read", None)) and not isinstance(value, os.PathLike):
        return read_named(value)
    if type(value) in (list, tuple):
        return type(value)(map(keep_open_files, value))
    if isinstance(value, Mapping):
        return {key: keep_open_files(each) for key, each in value.items()}
    return value


def keep_source(source: Any) -> Any:
    """As `keep_open_files`, of one source of a question, where "-" is standard input."""
    is_standard_input = isinstance(source, str) and source == "-"
    return read_named(source) if is_standard_input else keep_open_files(source)


def keep_picture(source: Any) -> Any:
    """The bytes of a picture, with its name, where the source only names it."""
    if is_pair(source) and source["bytes"] is None:
        return keep_picture(source.get("path"))
    is_name = isinstance(source, str) and not is_data_uri(source)
    if is_name or isinstance(source, os.PathLike):
        return read_named(source, MAX_PICTURE_BYTES)
    return source


def keep_media(content: list[dict[str, Any]]) -> None:
    """Have the pictures of a question, and videos that are lists of them, hold their bytes.

    A video file may be larger than memory; its path stays a path.
    """
    for part in content:
        if part["type"] == "image":
            part["image"] = keep_picture(part["image"])
        elif part["type"] == "video" and isinstance(part["video"], list):
            part["video"] = [keep_picture(frame) for frame in part["video"]]


def read_named(source: Any, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    return {"bytes": load_bytes(source, max_bytes=max_bytes), "path": source_name(source)}

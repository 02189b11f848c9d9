"""What a media process says it has prepared, checked and taken into this one's memory.

The process has read a hostile file. Every number of its answer is checked, the patches are copied
out of the file that they came in, and the digest, by which visual tokens are found again, is
computed here: a process that was taken over could otherwise name its picture as another's.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch

from qwen25vl.inputs import Grid, MediaItem
from qwen25vl.processing.prepare import Prepared
from qwen25vl.serving.media.medium import Medium
from qwen25vl.serving.media.parcel import read_into

MAX_COUNT = 1 << 31


def open_prepared(
    header: dict[str, Any],
    descriptor: int,
    offset: int,
    length: int,
    *,
    medium: Medium,
    dtype: torch.dtype,
    width: int,
    merge_size: int,
) -> Prepared:
    """Raises ValueError, TypeError or KeyError for an answer that makes no sense."""
    t, h, w = (count(value) for value in header["grid"])
    grid: Grid = t, h, w
    rows = t * h * w
    if [rows, width] != header["shape"] or length != rows * width * dtype.itemsize:
        raise ValueError("patches of another size than their grid")
    patches = torch.empty(rows, width, dtype=dtype, device="cpu")
    content: memoryview = patches.view(torch.uint8).numpy().data.cast("B")
    read_into(descriptor, content, offset)
    digest = hashlib.sha256(repr((grid, dtype, width, header["seconds_per_grid"])).encode())
    digest.update(content)
    page_size = header["page_size"]
    item = MediaItem(
        "image" if medium.form in ("picture", "page") else "video",
        medium.name,
        0,
        size(header["original_size"]),
        size(header["model_size"]),
        rows // merge_size**2,
        count(header["num_frames"]),
        number(header["seconds_per_grid"]),
        digest.digest(),
        source_fps=number(header["source_fps"]),
        num_source_frames=count(header["num_source_frames"]),
        frame_numbers=tuple(count(value, 0) for value in header["frame_numbers"]),
        page=medium.page,
        page_size=None if page_size is None else points(page_size),
    )
    return Prepared(patches, grid, item)


def count(value: Any, least: int = 1) -> int:
    if type(value) is not int or not least <= value < MAX_COUNT:
        raise ValueError("no count")
    return value


def number(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("no number")
    return float(value)


def size(values: Any) -> tuple[int, int]:
    height, width = values
    return count(height), count(width)


def points(values: Any) -> tuple[float, float]:
    height, width = values
    read = number(height), number(width)
    if read[0] is None or read[1] is None:
        raise ValueError("no size")
    return read[0], read[1]

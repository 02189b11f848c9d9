"""Which values the attributes of a processor of pictures or videos may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen25vl.arguments import check_switch, is_among, plain_number, whole_number
from qwen25vl.config_values import shown
from qwen25vl.errors import UsageError
from qwen25vl.processing.image import BICUBIC

MEDIA_SWITCHES = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_sample_frames",
            "return_metadata", "cap_pixels_per_frame")  # fmt: skip
LOWEST = {"patch_size": 1, "temporal_patch_size": 1, "merge_size": 1, "num_frames": 2,
          "min_frames": 1, "max_frames": 2, "max_video_tokens": 1}  # fmt: skip
LARGEST = 1e30  # of a mean or deviation: more than any picture has, and finite in float32
CHANNELS = ("image_mean", "image_std")
NEVER_NONE = ("patch_size", "temporal_patch_size", "merge_size", "max_video_tokens",
              "rescale_factor", *CHANNELS)  # fmt: skip
"""Attributes without which nothing can be computed."""


def check_value(name: str, value: Any) -> Any:
    """The value in Python's own type. Raises UsageError for one that is impossible."""
    if value is None and name not in NEVER_NONE:
        return None
    if name == "resample" and not is_among(value, (BICUBIC,)):
        raise UsageError(f"resample is {shown(value)}; only {BICUBIC} (bicubic) is supported")
    if name in MEDIA_SWITCHES:
        return check_switch(name, value)
    if name in LOWEST:
        number = whole_number(value)
        if number is None or number < LOWEST[name]:
            wanted = f"a whole number of at least {LOWEST[name]}"
            raise UsageError(f"{name} is {shown(value)}; it must be {wanted}")
        return number
    if name in CHANNELS:
        return check_channels(name, value)
    if name in ("rescale_factor", "fps"):
        factor = plain_number(value)
        if factor is None or factor == 0 or (name == "fps" and factor < 0):
            wanted = "above 0" if name == "fps" else "other than 0"
            raise UsageError(f"{name} is {shown(value)}; it must be a number {wanted}")
        return factor
    return value


def check_channels(name: str, value: Any) -> list[float]:
    """Three numbers; a float stands for three, as in transformers."""
    values = value.tolist() if hasattr(value, "tolist") else value
    values = [values] * 3 if isinstance(values, float) else values
    listed = list(values) if isinstance(values, list | tuple) else []
    numbers = [plain_number(each) for each in listed]
    known = [float(each) for each in numbers if each is not None and abs(each) < LARGEST]
    if len(numbers) != 3 or len(known) != 3 or (name == "image_std" and min(known) <= 0):
        wanted = "three numbers above 0" if name == "image_std" else "three numbers"
        raise UsageError(f"{name} is {shown(value)}; it must be {wanted}")
    return known


def read_edges(size: Any) -> dict[str, Any]:
    """The edges in a size: a mapping, or an object with these attributes, as transformers has."""
    if isinstance(size, Mapping):
        return dict(size)
    edges = {name: getattr(size, name, None) for name in ("shortest_edge", "longest_edge")}
    if None in edges.values():
        raise UsageError(
            f"size is {shown(size)}; it must be a mapping with shortest_edge and longest_edge, the "
            "fewest and most pixels"
        )
    return edges

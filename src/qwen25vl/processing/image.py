"""Pictures as tensors: choose the model size, resize, normalise and cut into patches.

Shapes: T frames, h × w pixels at model size, p = patch_size, m = merge_size, N = patches = grid t ·
h/p · w/p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from qwen25vl.arguments import plain_number
from qwen25vl.errors import ConfigError, MediaSizeError, OptionError, UsageError
from qwen25vl.kernels.pictures import cut, resize

__all__ = ["ImageSettings", "check_number", "patchify", "resize", "smart_resize"]

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 16384 * 28 * 28
MAX_SIDE_RATIO = 200
BICUBIC = 3  # Pillow's number, as preprocessor_config.json spells it


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: float = MIN_PIXELS,
    max_pixels: float = MAX_PIXELS, *, name: str = "a picture",
) -> tuple[int, int]:  # fmt: skip
    """The model size (height, width) of a picture:
    both sides multiples of `factor`, the shape kept.

    Sides are rounded to the factor (half to even); outside the budget the area is scaled by 1/β² to
    the budget and the sides rounded inwards: down at `max_pixels`, up at `min_pixels`. As in the
    reference a budget narrower than one row or column of visual tokens is missed by that rounding.
    Raises MediaSizeError for sides more unequal than 200 : 1, for an empty picture, and where one
    token of thickness already exceeds `max_pixels`; UsageError for an impossible budget. `name` is
    what errors call the picture.
    """
    min_pixels, max_pixels = check_budget(min_pixels, max_pixels, factor)
    named = f"{name} of {width}×{height} pixels"
    if min(height, width) < 1:
        raise MediaSizeError(f"{named} is empty")
    if max(height, width) > MAX_SIDE_RATIO * min(height, width):
        raise MediaSizeError(
            f"{named} is too long and thin: the aspect ratio may be at most {MAX_SIDE_RATIO}"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        beta = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < min_pixels or not new_height * new_width:
        beta = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    if new_height * new_width > max_pixels and min(new_height, new_width) == factor:
        smallest = f"the smallest size is {new_width}×{new_height}"
        raise MediaSizeError(
            f"{named} cannot keep its aspect ratio within max_pixels={max_pixels}: {smallest}"
        )
    return new_height, new_width


def check_number(
    name: str, value: Any, bound: float = 1, *, above: bool = False, whole: bool = False
) -> int | float:  # fmt: skip
    """The number as Python's own; refuse what is no finite number of at least or `above` the bound.

    A bool is no number, a scalar of numpy is one.
    """
    number = plain_number(value)
    if number is None or number < bound or (above and number == bound) or (whole and number % 1):
        kind = "whole number" if whole else "number"
        raise UsageError(
            f"{name} is {value!r}; it must be a {kind} {'above' if above else 'of at least'} "
            f"{bound}"
        )
    return int(number) if whole else number


def check_budget(min_pixels: Any, max_pixels: Any, factor: int) -> tuple[int | float, int | float]:
    lowest, highest = check_number("min_pixels", min_pixels), check_number("max_pixels", max_pixels)
    if highest < factor * factor:
        least = factor * factor
        raise UsageError(
            f"max_pixels is {highest}; one visual token alone takes {least}, the square of "
            "patch_size · merge_size"
        )
    if lowest > highest:
        raise UsageError(f"min_pixels {lowest} is above max_pixels {highest}")
    return lowest, highest


@dataclass(frozen=True)
class ImageSettings:
    """How pictures are prepared, under preprocessor_config.json's names;
    the defaults are the official files'.

    do_resize: False keeps a size, whose sides must be whole visual tokens. do_rescale and
    do_normalize: whether levels are multiplied by rescale_factor, and then normalised.
    """

    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number above 0")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ConfigError(
                "image_mean and image_std must have three values, and the latter above 0"
            )
        if not isinstance(self.rescale_factor, int | float) or not self.rescale_factor:
            raise ConfigError(f"rescale_factor is {self.rescale_factor!r}; it must not be 0")
        budget = check_budget(self.min_pixels, self.max_pixels, self.factor)
        for name, value in zip(("min_pixels", "max_pixels"), budget, strict=True):
            object.__setattr__(self, name, int(value))  # the object is still being made

    @property
    def factor(self) -> int:
        """Pixels along one side of a visual token."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSettings:
        """Read preprocessor_config.json; newer files say `size` {shortest_edge, longest_edge} for
        the two budgets."""
        if values.get("resample", BICUBIC) not in (BICUBIC, None):
            raise ConfigError(
                f"resample is {values['resample']!r}; only {BICUBIC} (bicubic) is supported"
            )
        size = values.get("size") or {}
        read = {
            name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None
        }
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            stated = size.get(name) if size.get(edge) is None else size[edge]
            if name not in read and stated is not None:
                read[name] = stated
        for name in ("image_mean", "image_std"):
            if name in read:
                read[name] = tuple(map(float, read[name]))
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """preprocessor_config.json as the hub has it; `from_dict` of it gives an equal object."""
        values = asdict(self) | {
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }
        return values | {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        }

    def in_levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted from levels, and by what the rest is divided: float32 [3] each."""
        per_level = 1 / self.rescale_factor if self.do_rescale else 1.0
        if not self.do_normalize:
            nothing = torch.zeros(3, dtype=torch.float32, device="cpu")
            return nothing, nothing + 1
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32, device="cpu") * per_level
            for values in (self.image_mean, self.image_std)
        )
        return mean, deviation

    def with_budget(
        self, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> ImageSettings:
        """These settings under another budget;
        a lower max_pixels alone takes min_pixels down with it."""
        max_pixels = self.max_pixels if max_pixels is None else max_pixels
        at_least = 1 if min_pixels is None else min_pixels
        lowest, highest = check_budget(at_least, max_pixels, self.factor)
        if min_pixels is None:
            lowest = min(self.min_pixels, highest)
        return replace(self, min_pixels=int(lowest), max_pixels=int(highest))

    def model_size(
        self,
        height: int,
        width: int,
        *,
        resized_height: int | None = None,
        resized_width: int | None = None,
        name: str = "a picture",
    ) -> tuple[int, int]:
        """The model size of a picture of this original size, or of the size asked for,
        both (height, width)."""
        if (resized_height is None) != (resized_width is None):
            raise UsageError("resized_height and resized_width must be given together")
        if not self.do_resize and resized_height is None:
            return height, width
        if resized_height is not None and resized_width is not None:
            height = int(check_number("resized_height", resized_height, whole=True))
            width = int(check_number("resized_width", resized_width, whole=True))
        budget = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return smart_resize(height, width, factor=self.factor, name=name, **budget)


def patchify(
    frames: torch.Tensor,
    settings: ImageSettings,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Resize frames to the model size `size`, which without it they have,
    normalise and cut them into patches.

    frames: uint8 [T, 3, H, W]; the last one is repeated to fill the temporal patch, so a still
    picture is one frame. Returns patches [N, 3 · temporal · p · p] in `dtype`, computed in float32
    and rounded once, in merge-block order (grid t, h/pm, w/pm, m, m; one patch is channel, time,
    row, column) and the grid (t, h, w) in patches.
    """
    height, width = size or frames.shape[-2:]
    patch, merge, temporal = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    if height % settings.factor or width % settings.factor:
        raise UsageError(
            f"frames of {width}×{height} pixels must be multiples of {settings.factor}"
        )
    mean, deviation = settings.in_levels()
    shape = {"patch": patch, "merge": merge, "temporal": temporal}
    is_scaled_only = settings.do_rescale and not settings.do_normalize
    patches = cut(
        frames, (height, width), mean, deviation, **shape,
        dtype=torch.float32 if is_scaled_only else dtype,
    )  # fmt: skip
    if is_scaled_only:
        patches = patches.mul_(settings.rescale_factor).to(dtype)
    return patches, (-(-len(frames) // temporal), height // patch, width // patch)


def read_bounds(
    size: Mapping[str, int] | None, min_pixels: int | None, max_pixels: int | None
) -> tuple[int | None, int | None]:
    """min_pixels and max_pixels; where they are not given, from their newer names in `size`."""
    if size is None:
        return min_pixels, max_pixels
    if unknown := sorted(size.keys() - {"shortest_edge", "longest_edge"}):
        raise OptionError(
            f"size has {', '.join(unknown)}; known are shortest_edge and longest_edge"
        )
    return (
        size.get("shortest_edge") if min_pixels is None else min_pixels,
        size.get("longest_edge") if max_pixels is None else max_pixels,
    )

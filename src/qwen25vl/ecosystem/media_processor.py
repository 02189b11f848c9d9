"""What the classes for pictures and for videos have in common: the attributes of transformers'
classes, which may be changed at any time, and their files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict

from qwen25vl.arguments import is_among, name_hint
from qwen25vl.config_values import from_text, read_json
from qwen25vl.ecosystem.media_values import NEVER_NONE, check_value, read_edges
from qwen25vl.errors import ConfigError, OptionError, UsageError
from qwen25vl.processing.image import BICUBIC, ImageSettings, check_budget, read_bounds

EDGES = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
UNUSED = {
    "processor_class", "image_processor_type", "video_processor_type", "feature_extractor_type",
    "auto_map", "default_to_square", "_valid_processor_keys",
}  # fmt: skip
"""Keys of configurations that change nothing here."""
NEUTRAL_MEDIA: dict[str, tuple[Any, ...]] = {
    "device": (None, "cpu"),
    "data_format": (None, "channels_first"),
    "input_data_format": (None, "none", "channels_first", "channels_last"),
    "disable_grouping": (None, True, False),
    "do_center_crop": (None, False),
    "crop_size": (None,),
    "do_pad": (None, False),
    "pad_size": (None,),
    "use_fast": (None, True, False),
    "video_load_backend": (None, "pyav", "opencv", "decord", "torchvision", "torchcodec"),
    "load_audio_from_video": (None, False),
}
"""Options with the values that change nothing; None of them means the default."""


class MediaOptions(TypedDict, total=False):
    """What a call for pictures or videos may change, under the names of the attributes."""

    do_convert_rgb: bool | None
    do_resize: bool | None
    size: Mapping[str, int] | None
    min_pixels: int | None
    max_pixels: int | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: Any
    image_std: Any
    patch_size: int | None
    temporal_patch_size: int | None
    merge_size: int | None
    device: Any
    data_format: Any
    input_data_format: Any
    disable_grouping: bool | None
    do_center_crop: bool | None
    crop_size: Any
    do_pad: bool | None
    pad_size: Any


class Size(dict[str, int]):
    """{"shortest_edge": fewest pixels, "longest_edge": most pixels}, also as attributes."""

    @property
    def shortest_edge(self) -> int:
        return self["shortest_edge"]

    @shortest_edge.setter
    def shortest_edge(self, value: int) -> None:
        self["shortest_edge"] = value

    @property
    def longest_edge(self) -> int:
        return self["longest_edge"]

    @longest_edge.setter
    def longest_edge(self, value: int) -> None:
        self["longest_edge"] = value


class MediaProcessor:
    """size: fewest and most pixels of a picture or frame at model size, which min_pixels and
    max_pixels read and write. The rest is as in preprocessor_config.json."""

    default_size: ClassVar[Mapping[str, int]]
    type_key: ClassVar[str]
    file_name: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = (
        "do_convert_rgb", "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize",
        "image_mean", "image_std", "patch_size", "temporal_patch_size", "merge_size",
    )  # fmt: skip
    """The attributes beside the size."""

    do_convert_rgb: bool | None = True
    do_resize: bool | None = True
    resample: int | None = BICUBIC
    do_rescale: bool | None = True
    rescale_factor: float = 1 / 255
    do_normalize: bool | None = True
    image_mean: Any
    image_std: Any
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    def __init__(self, **values: Any) -> None:
        """values: attributes, min_pixels and max_pixels; other keys of a configuration file are
        accepted. Raises OptionError for an unknown one."""
        self._size = Size(self.default_size)
        self.image_mean, self.image_std = list(IMAGE_MEAN), list(IMAGE_STD)
        self.change(values)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.to_dict() == self.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def change(self, values: Mapping[str, Any]) -> None:
        """Set attributes by name. A lower upper bound takes the lower bound down with it. Raises
        UsageError for an impossible value; None leaves what must have one."""
        size = values.get("size")
        if size is not None:
            edges = {key: edge for key, edge in read_edges(size).items() if edge is not None}
            size = {EDGE_OF.get(key, key): edge for key, edge in edges.items()}
        bounds = read_bounds(size, values.get("min_pixels"), values.get("max_pixels"))
        for name, value in values.items():
            if name in self.names:
                if value is not None or name not in NEVER_NONE:
                    setattr(self, name, check_value(name, value))
            elif name in NEUTRAL_MEDIA:
                check_neutral(name, value)
            elif name not in UNUSED and name not in ("size", "min_pixels", "max_pixels"):
                hint = name_hint(name, [*self.names, "size", "min_pixels", "max_pixels"])
                raise OptionError(f"there is no option {name!r}; {hint}")
        if any(bound is not None for bound in bounds):
            self.bound(*bounds)

    def bound(self, min_pixels: int | None = None, max_pixels: int | None = None) -> None:
        """Other bounds; a lower `max_pixels` alone takes `min_pixels` down with it."""
        highest = self.size["longest_edge"] if max_pixels is None else max_pixels
        factor = self.patch_size * self.merge_size
        low, high = check_budget(1 if min_pixels is None else min_pixels, highest, factor)
        if min_pixels is None:
            low = min(self.size["shortest_edge"], high)
        self._size = Size(shortest_edge=int(low), longest_edge=int(high))

    @property
    def size(self) -> Size:
        """The fewest and most pixels, which may be changed in place."""
        return self._size

    @size.setter
    def size(self, value: Any) -> None:
        self.change({"size": value})

    @property
    def min_pixels(self) -> int:
        return self.size["shortest_edge"]

    @min_pixels.setter
    def min_pixels(self, value: int) -> None:
        self.bound(min_pixels=value)

    @property
    def max_pixels(self) -> int:
        return self.size["longest_edge"]

    @max_pixels.setter
    def max_pixels(self, value: int) -> None:
        self.bound(max_pixels=value)

    @property
    def settings(self) -> ImageSettings:
        """The same for the code that computes. Raises ConfigError for impossible values."""
        try:
            values = {name: check_value(name, getattr(self, name)) for name in self.names}
        except UsageError as error:  # an attribute was set to it
            raise ConfigError(
                f"the settings of {type(self).__name__} are wrong: {error}"
            ) from error
        return ImageSettings(
            self.min_pixels,
            self.max_pixels,
            values["patch_size"],
            values["temporal_patch_size"],
            values["merge_size"],
            tuple(values["image_mean"]),
            tuple(values["image_std"]),
            values["rescale_factor"],
            bool(values["do_resize"]),
            bool(values["do_rescale"]),
            bool(values["do_normalize"]),
        )

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values for one call; those that are None stay."""
        new = copy.copy(self)
        new._size = Size(self.size)
        new.change({name: value for name, value in values.items() if value is not None})
        return new

    def to_dict(self) -> dict[str, Any]:
        """As the hub has it in preprocessor_config.json; `from_dict` of it gives an equal object.
        min_pixels and max_pixels are the older names of `size`."""
        own = {name: getattr(self, name) for name in self.names}
        own |= {name: list(own[name]) for name in ("image_mean", "image_std")}
        size: dict[str, Any] = {"size": dict(self.size)}
        size |= {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return own | size | {self.type_key: type(self).__name__}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json_string(), encoding="utf-8")

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """From a configuration, whose unknown keys are ignored, with changes."""
        known = (*cls.names, "size", "min_pixels", "max_pixels")
        made = cls(**{key: as_written(key, values[key]) for key in values if key in known})
        made.change(changes)
        return made

    def save_pretrained(self, folder: str | Path) -> list[str]:
        """Write the file into a folder, and return its path in a list."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.to_json_file(target / self.file_name)
        return [str(target / self.file_name)]


IMAGE_MEAN, IMAGE_STD = ImageSettings.image_mean, ImageSettings.image_std
EDGE_OF = dict(EDGES)


def as_written(key: str, value: Any) -> Any:
    """A value of a file: numbers that are spelt as texts, and the name of the only way to resize,
    as "bicubic" or with the name of its class before it."""
    if key == "resample" and isinstance(value, str) and not value.strip().isdecimal():
        return BICUBIC if value.rpartition(".")[2].lower() == "bicubic" else value
    if isinstance(value, Mapping):
        return {name: as_written(name, each) for name, each in value.items()}
    return from_text(value, "float") if isinstance(value, str) else value


def check_neutral(name: str, value: Any) -> None:
    """Raise OptionError for a value that would change something."""
    shown = str(value) if name == "device" and value is not None else value
    shown = getattr(shown, "value", shown)
    if not is_among(shown, NEUTRAL_MEDIA[name]):
        allowed = ", ".join(map(repr, NEUTRAL_MEDIA[name]))
        raise OptionError(f"{name} is {value!r}; supported: {allowed}")

"""How weights are quantised. `ecosystem/torchao_config.py` is the public way to choose it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qwen25vl.errors import OptionError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)  # inputs per scale that the kernels for int4 read
DEFAULT_GROUP_SIZE = 128
TEXT_LAYERS, VISION_BLOCKS = "model.language_model.layers.", "model.visual.blocks."


@dataclass(frozen=True)
class Scheme:
    """bits: 8 (one scale for each output) or 4 (one scale for each output and `group_size` inputs;
    None is the default). vision: quantise the vision encoder's blocks too, to 8 bits. has_zeros:
    the scales of 4 bits have zero points beside them, as only others write them. left_alone: names
    of modules whose layers are not quantised; see `is_named`."""

    bits: int
    group_size: int | None = None
    vision: bool = False
    has_zeros: bool = False
    left_alone: tuple[str, ...] = ()

    def describe(self) -> str:
        """For people: "4 bits in groups of 128 with zero points"."""
        groups = f" in groups of {self.group_size or DEFAULT_GROUP_SIZE}" if self.bits == 4 else ""
        return f"{self.bits} bits{groups}{' with zero points' if self.has_zeros else ''}"

    def inputs_per_scale(self, num_inputs: int) -> int:
        """g: the group size of 4 bits; of 8 bits the whole row, in whole words of 4 bytes."""
        if self.bits == 4:
            return self.group_size or DEFAULT_GROUP_SIZE
        return num_inputs + -num_inputs % 4

    def covers(self, path: str) -> bool:
        """Whether a linear layer is quantised."""
        parts = (TEXT_LAYERS, VISION_BLOCKS) if self.vision else (TEXT_LAYERS,)
        return path.startswith(parts) and not any(is_named(path, name) for name in self.left_alone)

    def for_layer(self, path: str) -> Scheme:
        """How one layer is quantised."""
        if self.vision and path.startswith(VISION_BLOCKS):
            return Scheme(8)
        return Scheme(self.bits, self.group_size, has_zeros=self.has_zeros)


def is_named(path: str, name: str) -> bool:
    """Whether a name that is not to be quantised means this layer. As in transformers: the layer's
    path begins with the name, a regular expression, up to a dot, or ends with it as it is. The name
    may also be any modules in the middle of the path ("visual", "layers.0"), as it could be in
    transformers 4."""
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    begins = re.match(rf"(?:{name}){boundary}", path) is not None
    return begins or path.endswith(name) or f".{name}." in f".{path}."


def read_names(option: str, names: Any) -> tuple[str, ...]:
    """Names of modules that are left alone; the head, which is never quantised, is dropped. Raises
    OptionError for what is no list of names."""
    listed = [] if names is None else names
    is_list = isinstance(listed, Iterable) and not isinstance(listed, str | bytes)
    listed = list(listed) if is_list else [listed]
    if not is_list or not all(isinstance(name, str) and name for name in listed):
        raise OptionError(f"{option} is {names!r}; it must be a list of names of modules")
    for name in listed:
        try:
            re.compile(name)
        except re.error as error:
            raise OptionError(f"{option} has {name!r}, which is no pattern: {error}") from None
    return tuple(name for name in listed if name != "lm_head")

"""How weights are quantised. `ecosystem/torchao_config.py` is the public way to choose it."""

from __future__ import annotations

from dataclasses import dataclass, replace

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)  # inputs per scale that the kernels for int4 read
DEFAULT_GROUP_SIZE = 128
TEXT_LAYERS, VISION_BLOCKS = "model.language_model.layers.", "model.visual.blocks."


@dataclass(frozen=True)
class Scheme:
    """bits: 8 (one scale for each output) or 4 (one scale for each output and `group_size` inputs;
    None is the default). vision: quantise the vision encoder's blocks too, to 8 bits. has_zeros:
    the scales of 4 bits have zero points beside them, as only others write them."""

    bits: int
    group_size: int | None = None
    vision: bool = False
    has_zeros: bool = False

    def describe(self) -> str:
        """For people: "4 bits in groups of 128 with zero points"."""
        groups = f" in groups of {self.group_size or DEFAULT_GROUP_SIZE}" if self.bits == 4 else ""
        return f"{self.bits} bits{groups}{' with zero points' if self.has_zeros else ''}"

    def inputs_per_scale(self, num_inputs: int) -> int:
        """g: the group size of 4 bits; of 8 bits the whole row, in whole words of 4 bytes."""
        if self.bits == 4:
            return self.group_size or DEFAULT_GROUP_SIZE
        return num_inputs + -num_inputs % 4

    def for_layer(self, path: str) -> Scheme:
        """How one layer is quantised."""
        if self.vision and path.startswith(VISION_BLOCKS):
            return Scheme(8)
        return replace(self, vision=False)

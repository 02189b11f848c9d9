"""How a caller asks for quantised weights: under the names of transformers, or in one word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen25vl.ecosystem.quantisation_configs import BitsAndBytesConfig, QuantoConfig
from qwen25vl.errors import OptionError
from qwen25vl.loading.scheme import GROUP_SIZES, Scheme, read_names

BITS_OF_TYPE = {"int8_weight_only": 8, "int4_weight_only": 4}
SHORT_NAMES = {"int8": "int8_weight_only", "int4": "int4_weight_only"}
WITH_VISION = "+vision"  # after a name
QUANTISATIONS = [name + vision for vision in ("", WITH_VISION) for name in SHORT_NAMES]


@dataclass(frozen=True)
class TorchAoConfig:
    """How to quantise while loading, under the names of transformers.

    quant_type: "int8_weight_only" (one scale for each output) or "int4_weight_only" (one scale for
    each output and `group_size` inputs: 32, 64 or 128, the default). vision: quantise the vision
    encoder's blocks too, to 8 bits. modules_to_not_convert: names of modules whose layers are not
    quantised ("down_proj", "layers.0", patterns). Raises OptionError for other values.
    """

    quant_type: str
    group_size: int | None = None
    vision: bool = False
    modules_to_not_convert: Sequence[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        names = read_names("modules_to_not_convert", self.modules_to_not_convert)
        object.__setattr__(self, "modules_to_not_convert", names)  # still being made
        if self.quant_type not in BITS_OF_TYPE:
            known = ", ".join(BITS_OF_TYPE)
            raise OptionError(f"quant_type is {self.quant_type!r}; known are {known}")
        if self.bits == 8 and self.group_size is not None:
            raise OptionError(
                "group_size is for int4_weight_only; int8_weight_only has one scale for each output"
            )
        if self.group_size not in (None, *GROUP_SIZES):
            known = ", ".join(map(str, GROUP_SIZES))
            raise OptionError(
                f"group_size is {self.group_size!r}; the kernels for int4 read groups of {known}"
            )

    @property
    def bits(self) -> int:
        return BITS_OF_TYPE[self.quant_type]

    @property
    def scheme(self) -> Scheme:
        left_alone = tuple(self.modules_to_not_convert or ())
        return Scheme(self.bits, self.group_size, self.vision, left_alone=left_alone)


Quantisation = TorchAoConfig | BitsAndBytesConfig | QuantoConfig | str | None


def read_scheme(value: Quantisation) -> Scheme | None:
    """What a caller asks for: a TorchAoConfig or another config of this package, "int8", "int4",
    "int4+vision", the long names, or None. Raises OptionError for anything else."""
    if value is None:
        return None
    if isinstance(value, TorchAoConfig | BitsAndBytesConfig | QuantoConfig):
        return value.scheme
    name = value.removesuffix(WITH_VISION) if isinstance(value, str) else ""
    quant_type = SHORT_NAMES.get(name, name)
    if quant_type not in BITS_OF_TYPE:
        raise OptionError(
            f"quantization is {value!r}; give 'int8', 'int4', 'int4+vision' or a TorchAoConfig"
        )
    return Scheme(BITS_OF_TYPE[quant_type], vision=name != value)

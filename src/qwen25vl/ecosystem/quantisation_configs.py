"""Other packages' ways to ask for quantised weights, mapped to the nearest of this package's.

The numbers are not those of bitsandbytes or quanto: a scale for each output (8 bits) or group of
inputs (4 bits) is searched as `TorchAoConfig` does. A warning says so, once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from qwen25vl.errors import OptionError
from qwen25vl.loading.scheme import Scheme, read_names

warned: set[str] = set()


def warn_once(asked: str, bits: int) -> None:
    if asked not in warned:
        warned.add(asked)
        warnings.warn(
            f"{asked} is quantised by this package's own int{bits}_weight_only instead; "
            f"TorchAoConfig('int{bits}_weight_only') asks for it without this warning",
            stacklevel=4,
        )


@dataclass
class BitsAndBytesConfig:
    """transformers' config for bitsandbytes: load_in_8bit or load_in_4bit.

    llm_int8_skip_modules: names of modules that are not quantised, in 4 bits too. The other options
    tune kernels that are not used here; they are taken and change nothing. Raises OptionError
    unless at most one of the two is set, and for names that are none.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: list[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: Any = None

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise OptionError("load_in_8bit and load_in_4bit exclude each other")
        read_names("llm_int8_skip_modules", self.llm_int8_skip_modules)

    @property
    def scheme(self) -> Scheme | None:
        if not (self.load_in_8bit or self.load_in_4bit):
            return None
        bits = 8 if self.load_in_8bit else 4
        warn_once(f"BitsAndBytesConfig(load_in_{bits}bit=True)", bits)
        left_alone = read_names("llm_int8_skip_modules", self.llm_int8_skip_modules)
        return Scheme(bits, left_alone=left_alone)


@dataclass
class QuantoConfig:
    """transformers' config for quanto. weights: "int8" or "int4". modules_to_not_convert: names of
    modules that are not quantised. Raises OptionError for other widths, for quantised activations,
    and for names that are none."""

    weights: str = "int8"
    activations: str | None = None
    modules_to_not_convert: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.weights not in ("int8", "int4"):
            raise OptionError(f"weights is {self.weights!r}; known are 'int8' and 'int4'")
        if self.activations is not None:
            raise OptionError(f"activations is {self.activations!r}; activations are not quantised")
        read_names("modules_to_not_convert", self.modules_to_not_convert)

    @property
    def scheme(self) -> Scheme:
        bits = int(self.weights.removeprefix("int"))
        warn_once(f"QuantoConfig(weights={self.weights!r})", bits)
        left_alone = read_names("modules_to_not_convert", self.modules_to_not_convert)
        return Scheme(bits, left_alone=left_alone)

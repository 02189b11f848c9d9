"""Weights in 8 or 4 bits, activations as they are.

What is quantised: the seven linear layers of every decoder layer, nine tenths of the weights. What stays: the vision
tower, whose errors would reach every visual token at once; norms and biases; and the embeddings with the head, tied
or not, as torchao and AWQ leave them.

    K inputs, the columns of a weight · O outputs, its rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl.errors import OptionError, UsageError
from qwen25vl.kernels.ops import dequantise_int4, linear_int4, linear_int8, pack_int4

BITS = {"int8_weight_only": 8, "int4_weight_only": 4}
SHORT_NAMES = {"int8": "int8_weight_only", "int4": "int4_weight_only"}
DEFAULT_GROUP_SIZE = 128
QUANTISED_PART = "model.language_model.layers."
ELEMENTS_AT_A_TIME = 2**20
Levels = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
SMALLEST_SCALE = torch.finfo(torch.float16).tiny


@dataclass(frozen=True)
class TorchAoConfig:
    """How to quantise while loading, spelled as the ecosystem spells it.

    quant_type: "int8_weight_only" (one scale for each output) or "int4_weight_only" (one scale for each output and
    `group_size` inputs, 128 if not given). Raises OptionError for other types.
    """

    quant_type: str
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.quant_type not in BITS:
            raise OptionError(f"quant_type is {self.quant_type!r}; known are {', '.join(BITS)}")
        if self.group_size is None:
            return
        if self.bits == 8:
            raise OptionError("group_size is for int4_weight_only; int8_weight_only has one scale for each output")
        if not isinstance(self.group_size, int) or self.group_size < 8 or self.group_size % 8:
            raise OptionError(f"group_size is {self.group_size!r}; it must be a multiple of 8")

    @property
    def bits(self) -> int:
        return BITS[self.quant_type]

    @property
    def inputs_per_scale(self) -> int:
        """The group size of int4_weight_only."""
        return self.group_size or DEFAULT_GROUP_SIZE

    @classmethod
    def read(cls, value: TorchAoConfig | str | None) -> TorchAoConfig | None:
        """From what a caller may give: a TorchAoConfig, "int8", "int4", the long names, or None."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, str) or SHORT_NAMES.get(value, value) not in BITS:
            raise OptionError(f"quantization is {value!r}; give 'int8', 'int4' or a TorchAoConfig")
        return cls(SHORT_NAMES.get(value, value))


class Int8Linear(nn.Module):
    """y = scale ∘ (x·weightᵀ) + bias; weight [O, K] int8, scale [O] float32."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        weight, scale = quantise_rows(linear, int8_levels)
        return cls(weight, scale, linear.bias)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.weight.float() * self.scale[:, None]).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_int8(x, self.weight, self.scale, self.bias)


class Int4Linear(nn.Module):
    """y = x·weightᵀ + bias; weight from packed [O, K' / 2] uint8 and scale [O, K' / group_size] float16.

    K' is K rounded up to whole groups; the columns added are zero and never leave this class.
    """

    packed: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, packed: torch.Tensor, scale: torch.Tensor, bias: nn.Parameter | None, in_features: int
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.bias = bias

    @classmethod
    def of(cls, linear: nn.Linear, group_size: int) -> Int4Linear:
        packed, scale = quantise_rows(linear, partial(int4_levels, group_size=group_size))
        return cls(packed, scale, linear.bias, linear.in_features)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        return dequantise_int4(self.packed, self.scale, self.in_features, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_int4(x, self.packed, self.scale, self.bias)


def int8_levels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = max |w| / 127 of each row, level = round(w / scale): [O, K] float32 -> levels [O, K], scales [O].

    w differs from scale · level by at most half a scale.
    """
    scale = (weight.abs().amax(1) / 127).clamp(min=SMALLEST_SCALE)
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def int4_levels(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = max |w| / 7.5 of each group, level = round(w / scale) within −8 … 7: [O, K] float32 -> packed, scales.

    With 7.5 instead of 7 or 8 both ends err by half a scale, like everything between; what rounding the scale to
    float16 adds is at most 1/256 of a scale.
    """
    padded = F.pad(weight, (0, -weight.shape[1] % group_size))
    groups = padded.unflatten(1, (-1, group_size))
    scale = (groups.abs().amax(2) / 7.5).clamp(min=SMALLEST_SCALE).half()
    levels = (groups / scale.float()[..., None]).round_().clamp_(-8, 7)
    return pack_int4(levels.to(torch.int8).flatten(1)), scale


def quantise_rows(linear: nn.Linear, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply `levels` to as many rows at a time as stay in a processor's cache, which is several times faster."""
    num_rows = max(1, ELEMENTS_AT_A_TIME // linear.in_features)
    parts = [levels(rows.float()) for rows in linear.weight.detach().split(num_rows)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def is_quantised(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear | Int4Linear) for module in model.modules())


def covered_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that are quantised, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.startswith(QUANTISED_PART)
    }


def check_widths(scheme: TorchAoConfig, linears: dict[str, nn.Linear]) -> None:
    """Raise UsageError, by name, for a layer narrower than one group."""
    for path, linear in linears.items():
        if scheme.bits == 4 and linear.in_features < scheme.inputs_per_scale:
            raise UsageError(
                f"group_size {scheme.inputs_per_scale} is larger than the {linear.in_features} inputs of {path}; "
                f"give TorchAoConfig('int4_weight_only', group_size=…) a smaller one"
            )


def quantise(linear: nn.Linear, scheme: TorchAoConfig) -> Int8Linear | Int4Linear:
    """The same layer in fewer bits, its bias kept."""
    return Int8Linear.of(linear) if scheme.bits == 8 else Int4Linear.of(linear, scheme.inputs_per_scale)


def quantised_bytes(linear: nn.Linear, scheme: TorchAoConfig) -> int:
    """Bytes of the weight of `quantise(linear, scheme)`, its bias apart."""
    if scheme.bits == 8:
        return linear.out_features * (linear.in_features + 4)
    return (
        linear.out_features * ceil(linear.in_features / scheme.inputs_per_scale) * (scheme.inputs_per_scale // 2 + 2)
    )

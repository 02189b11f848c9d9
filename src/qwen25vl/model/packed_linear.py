"""Linear layers whose weights have 8 or 4 bits: w = scale · (code − zero).

They hold their weights as files in the compressed-tensors format do, under the same names, so that
a file is mapped and read in place. Activations come in and go out as they are.

    K inputs, the columns of a weight · O outputs, its rows · g columns with one scale · K' = K in
    whole groups
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from qwen25vl.errors import UsageError
from qwen25vl.kernels import fallback, library, ops, reference
from qwen25vl.model.derived import Derived


class PackedLinear(nn.Module):
    """What both widths share.

    weight_packed [O, K' · bits / 32] int32: codes, the lowest column in the lowest bits;
    weight_scale [O, K' / g], of either sign: float16 in int4, float32 in int8. The zero is
    2**(bits − 1), unless a layer of 4 bits has a weight_zero_point [⌈O / 8⌉, K' / g] int32: one of
    4 bits for each output and group, the lowest output in the lowest bits. The columns that fill up
    K' never leave this class. A change of the model's type leaves these as they are, like
    `model.half()`: the kernels read them in these types.
    """

    bits: int
    scale_dtype: torch.dtype
    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor | None

    def __init__(self, linear: nn.Linear, group_size: int) -> None:
        """The same layer in fewer bits without its numbers: on "meta", but for the bias."""
        super().__init__()
        self.in_features, self.out_features, self.group_size = (
            linear.in_features,
            linear.out_features,
            group_size,
        )
        num_groups = -(-linear.in_features // group_size)
        packed = self.out_features, num_groups * group_size * self.bits // 32
        scale = self.out_features, num_groups
        self.register_buffer("weight_packed", torch.empty(packed, dtype=torch.int32, device="meta"))
        self.register_buffer(
            "weight_scale", torch.empty(scale, dtype=self.scale_dtype, device="meta")
        )
        self.register_buffer("weight_zero_point", None)
        self.bias = linear.bias

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        scale = self.weight_scale
        if fn(torch.empty(0, dtype=torch.int32, device="cpu")).dtype != torch.int32:
            raise UsageError(
                "packed weights must stay int32; use model.to(dtype), not model.type(dtype)"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, K] as numbers."""
        raise NotImplementedError

    @property
    def codes(self) -> torch.Tensor:
        """[O, K' · bits / 8] uint8, a view: a code each, or two of 4 bits, low half first"""
        return self.weight_packed.view(torch.uint8)

    @property
    def product(self) -> ops.Product:
        """This layer as the compiled decoder reads it."""
        sizes, codes = (self.in_features, self.out_features), self.codes
        if self.bits == 8:
            rows = codes[:, : self.in_features]
            return ops.Product(
                rows, self.weight_scale.flatten(), None, self.bias, 8, *sizes, codes.shape[1]
            )
        return ops.Product(
            codes,
            self.weight_scale,
            self.weight_zero_point,
            self.bias,
            4,
            *sizes,
            self.group_size,
        )

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        zeros = "" if self.weight_zero_point is None else ", zero points"
        return f"{sizes}, group_size={self.group_size}{zeros}, bias={self.bias is not None}"


class Int8Linear(PackedLinear):
    """y = scale ∘ (x·levelsᵀ) + bias, one scale for each output"""

    bits, scale_dtype = 8, torch.float32

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        return reference.dequantise_int8(self.codes, self.weight_scale, self.in_features).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.linear_int8(
            x, self.codes[:, : self.in_features], self.weight_scale.flatten(), self.bias
        )


class Int4Linear(PackedLinear):
    """y = x·(scale ∘ (codes − zeros))ᵀ + bias, one scale for each output and group of inputs, and
    one zero or 8 for all

    Without a compiled kernel, few rows are multiplied by torch's own operation, from a second copy
    of the codes in the order which that wants.
    """

    bits, scale_dtype = 4, torch.float16

    def __init__(self, linear: nn.Linear, group_size: int, has_zeros: bool = False) -> None:
        super().__init__(linear, group_size)
        if has_zeros:
            shape = -(-self.out_features // 8), self.weight_scale.shape[1]
            self.weight_zero_point = torch.empty(shape, dtype=torch.int32, device="meta")
        self.reordered = Derived()

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        return reference.dequantise_int4(
            self.codes, self.weight_scale, self.in_features, dtype, self.weight_zero_point
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1:] != (self.in_features,):  # torch would not tell from the padded codes
            raise UsageError(
                f"a linear layer has inputs of shape {list(x.shape)}; expected [..., "
                f"{self.in_features}]"
            )
        if fallback.serves_packed(x) and library.function("linear_int4") is None:
            sources = (self.codes, self.weight_scale, self.weight_zero_point)
            stored = (tensor for tensor in sources if tensor is not None)
            operands = self.reordered.get(fallback.pack_for_torch, *stored)
            if operands is not None:
                codes, scale_and_offset = operands
                return fallback.linear_packed_int4(
                    x, codes, scale_and_offset, self.out_features, self.bias
                )
        return ops.linear_int4(x, self.codes, self.weight_scale, self.bias, self.weight_zero_point)

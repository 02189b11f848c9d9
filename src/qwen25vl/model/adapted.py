"""A model under an adapter: another tree of modules over the same weights.

`with_modules` makes it. What no adapter touches is shared, module by module; what it changes stands
in the new tree only. So the base stays as it is, any number of adapters stand beside it, and a
sequence chooses by the tree that computes it. A changed linear layer keeps its base, in whatever
form its weights are, and adds the low-rank product to its result.

    N rows · I inputs, O outputs of a layer · r rank · D hidden_size · V vocab_size
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, TypeVar

import torch
from torch import nn

from qwen25vl.kernels import ops
from qwen25vl.model.decoding import Decoder
from qwen25vl.model.layers import Linear
from qwen25vl.model.low_rank import LayerChange, dora_factor, merged_bias, merged_weight
from qwen25vl.model.packed_linear import PackedLinear
from qwen25vl.model.text import LanguageModel

ROWS_AT_A_TIME = 512  # whose low-rank products exist at the same time

Module = TypeVar("Module", bound=nn.Module)


class AdaptedLinear(nn.Module):
    """y = base(x) + up·down·x, or with DoRA (base(x) − bias + up·down·x) ∘ factor + bias

    down [r, I], up [O, r], factor [O] float32.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        down: torch.Tensor,
        up: torch.Tensor,
        factor: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = down.shape[1], up.shape[0]
        self.down = frozen(down)
        self.up = frozen(up)
        self.register_buffer("factor", factor)

    factor: torch.Tensor | None

    @property
    def bias(self) -> torch.Tensor | None:
        return getattr(self.base_layer, "bias", None)

    @property
    def weight(self) -> torch.Tensor:
        """The base's; there is no tensor with the changed numbers."""
        return self.base_layer.weight  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base_layer(x)
        if torch.is_grad_enabled() or x.numel() <= ROWS_AT_A_TIME * self.in_features:
            return self.change(x, y)
        rows, results = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for part, result in zip(
            rows.split(ROWS_AT_A_TIME), results.split(ROWS_AT_A_TIME), strict=True
        ):
            result.copy_(self.change(part, result))
        return y

    def change(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        low_rank = ops.linear(ops.linear(x, self.down), self.up)
        if self.factor is None:
            return ops.add(y, low_rank)
        bias = 0.0 if self.bias is None else self.bias.float()
        return ((y.float() - bias + low_rank) * self.factor + bias).to(y.dtype)


class AdaptedEmbedding(nn.Module):
    """An embedding with new rows for some tokens, or with a low-rank part.

    down [V, r], up [D, r], factor [D] float32; tokens [n] in ascending order, rows [n, D].
    """

    down: nn.Parameter | None
    up: nn.Parameter | None
    rows: nn.Parameter | None
    factor: torch.Tensor | None
    tokens: torch.Tensor

    def __init__(self, base_layer: nn.Module, change: LayerChange) -> None:
        super().__init__()
        self.base_layer = base_layer
        down, up, rows, factor = change.down, change.up, change.rows, None
        if change.magnitude is not None:
            whole = LayerChange(tokens=change.tokens, rows=rows)
            factor = dora_factor(merged_weight(self.weight, whole), change)
        self.down = None if down is None else frozen(down.T.to(self.weight))
        self.up = None if up is None else frozen(up.to(self.weight))
        self.rows = None if rows is None else frozen(rows.to(self.weight))
        self.register_buffer("factor", factor)
        tokens = torch.tensor(change.tokens, dtype=torch.int64, device=self.weight.device)
        self.register_buffer("tokens", tokens)

    @property
    def weight(self) -> torch.Tensor:
        """The base's; there is no tensor with the changed numbers."""
        return self.base_layer.weight  # type: ignore[return-value]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.base_layer(ids)
        if self.rows is not None:
            places = torch.searchsorted(self.tokens, ids).clamp_(max=len(self.tokens) - 1)
            is_new = self.tokens[places] == ids
            rows = torch.where(is_new[..., None], self.rows[places], rows)
        if self.down is not None and self.up is not None:
            rows = rows + ops.linear(self.down[ids], self.up)
        if self.factor is not None:
            rows = (rows.float() * self.factor).to(rows.dtype)
        return rows


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def dense_weight(module: nn.Module) -> torch.Tensor:
    """A layer's weight as numbers, in float32 where it is packed."""
    if isinstance(module, PackedLinear):
        return module.dequantise(torch.float32)
    return module.weight  # type: ignore[return-value]


def adapt(module: nn.Module, change: LayerChange, dtype: torch.dtype) -> nn.Module:
    """A layer as an adapter changes it; the module itself stays as it is. dtype: of the model."""
    if isinstance(module, nn.Embedding):
        base: nn.Module = with_tensors(module, change.weight, None, dtype)
        has_more = change.has_low_rank or change.rows is not None
        return AdaptedEmbedding(base, change) if has_more else base
    if not isinstance(module, nn.Linear | PackedLinear):  # a norm, or the patch embedding
        merged = merged_weight(module.weight, change)  # type: ignore[arg-type]
        bias = merged_bias(getattr(module, "bias", None), change)
        made: nn.Module = with_tensors(module, merged, bias, dtype)
        return made
    bias = merged_bias(module.bias, change)
    base = with_tensors(module, change.weight, None if bias is module.bias else bias, dtype)
    if change.down is None or change.up is None:
        return base
    device = own_tensor(module).device
    factor = None if change.magnitude is None else dora_factor(dense_weight(base), change)
    return AdaptedLinear(base, change.down.to(device, dtype), change.up.to(device, dtype), factor)


def own_tensor(module: nn.Module) -> torch.Tensor:
    """A layer's weight as it holds it."""
    return module.weight_packed if isinstance(module, PackedLinear) else module.weight  # type: ignore[return-value]


def with_tensors(
    module: Module, weight: torch.Tensor | None, bias: torch.Tensor | None, dtype: torch.dtype
) -> Any:
    """The layer with another weight or bias; where its own is packed, the weight makes it a plain
    one."""
    if weight is None and bias is None:
        return module
    made: Any = twin(module)
    if weight is not None and isinstance(module, PackedLinear):
        with torch.device("meta"):
            made = Linear(module.in_features, module.out_features, bias=module.bias is not None)
        if module.bias is not None:
            made.bias = module.bias
        made.weight = frozen(weight.to(own_tensor(module).device, dtype))
    elif weight is not None:
        made.weight = frozen(weight.to(own_tensor(module).device, dtype))
    if bias is not None:
        made.bias = frozen(bias.to(own_tensor(module).device, dtype))
    return made


def twin(module: Module) -> Module:
    """A module of the same parts, which can get others: parameters and hooks stay common until one
    is replaced in the twin."""
    made = copy(module)
    vars(made)["_modules"] = dict(module._modules)
    vars(made)["_parameters"] = dict(module._parameters)
    return made


def with_modules(model: Module, replaced: Mapping[str, nn.Module]) -> Module:
    """A model that has other modules at some paths and shares all others."""
    root = twin(model)
    copies: dict[str, nn.Module] = {"": root}
    for path, module in replaced.items():
        *parents, name = path.split(".")
        place, holder = "", copies[""]
        for part in parents:
            place = f"{place}.{part}" if place else part
            if place not in copies:
                copies[place] = twin(holder.get_submodule(part))
                setattr(holder, part, copies[place])
            holder = copies[place]
        setattr(holder, name, module)
    for module in copies.values():
        if isinstance(module, LanguageModel):
            module.decoder = Decoder(module.layers, module.config)
    return root

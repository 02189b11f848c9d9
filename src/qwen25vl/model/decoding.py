"""All decoder layers in one compiled call, for the few rows of a decoding step.

The call runs the kernels that the layers run one by one, in the same order, so it gives the same
bits; what it saves is the Python between some five hundred kernels, a sixth of a token's time. It
knows the layers by their addresses, so it is used only while these are unchanged and no hooks are
registered.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from qwen25vl.config import Qwen2_5_VLTextConfig
from qwen25vl.kernels import operands, ops, readable
from qwen25vl.model.cache import KVCache
from qwen25vl.model.layers import Linear
from qwen25vl.model.packed_linear import PackedLinear
from qwen25vl.model.rope import Rotation

MAX_ROWS = 64  # with more rows the time between kernels is negligible


class Decoder:
    """All layers in one call. The layer modules remain the definition of what is computed."""

    def __init__(self, layers: nn.ModuleList, config: Qwen2_5_VLTextConfig) -> None:
        self.layers, self.config = layers, config
        self.table: LayerTable | None = None

    def run(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        lengths: Sequence[int],
        caches: Sequence[KVCache] | None,
    ) -> torch.Tensor | None:
        """The layers' output for the rows x [N, D], or None where they have to be called one by
        one."""
        if (
            not caches
            or len(x) > MAX_ROWS
            or torch.is_grad_enabled()
            or x.dtype != torch.bfloat16
            or not x.is_cpu
        ):
            return None
        if self.table is None or not self.table.is_current():
            self.table = LayerTable(self.layers, self.config)
        if not self.table.numbers or self.table.has_hooks():
            return None
        x = x.clone(memory_format=torch.contiguous_format)
        sequences = [
            (cache.storage, cache.length, length)
            for cache, length in zip(caches, lengths, strict=True)
        ]
        sizes = self.config.rms_norm_eps, rotation, sequences, self.config.num_attention_heads
        return x if ops.decode(x, self.table.numbers, *sizes) else None


class LayerTable:
    """The numbers that `ops.decode` reads of all layers; empty if a layer is not as this package
    builds it."""

    def __init__(self, layers: Any, config: Qwen2_5_VLTextConfig) -> None:
        self.modules = list(layers.modules())
        held = [
            held for m in self.modules for held in (m._modules, m._parameters, m._buffers) if held
        ]
        self.held = [(parts, list(parts.values())) for parts in held]
        self.tensors = [
            part for _, parts in self.held for part in parts if isinstance(part, torch.Tensor)
        ]
        self.addresses = self.find()
        self.numbers = array("q")
        is_known = all(map(is_own, self.modules[1:])) and all(
            fits(layer, config) for layer in layers
        )
        if is_known and all(
            layer.self_attn.layer == place for place, layer in enumerate(layers)
        ):  # none was moved
            self.numbers.extend(chain.from_iterable(map(numbers_of, layers)))

    def is_current(self) -> bool:
        """Whether the layers still hold the same parts at the same addresses."""
        same = all(
            len(parts) == len(known) and all(map(is_, parts.values(), known))
            for parts, known in self.held
        )
        return same and self.addresses == self.find()

    def find(self) -> list[int]:
        return list(map(torch.Tensor.data_ptr, self.tensors))

    def has_hooks(self) -> bool:
        return has_any_global_hook() or any(
            m._forward_hooks or m._forward_pre_hooks for m in self.modules
        )


def is_own(module: nn.Module) -> bool:
    """Whether a submodule is this package's own and computes attention as the kernel does."""
    is_known = type(module).__module__.startswith("qwen25vl.") and "forward" not in vars(module)
    return is_known and getattr(module, "implementation", "sdpa") == "sdpa"


def linear_layers(layer: Any) -> list[Any]:
    """The seven linear layers of a decoder layer, in the order of the kernel's table."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    ]


def fits(layer: Any, config: Qwen2_5_VLTextConfig) -> bool:
    """Whether the kernel can read a layer's weights, and they have the sizes that the config
    tells."""
    width, wide = config.hidden_size, config.intermediate_size
    kv_width = config.num_key_value_heads * config.head_dim
    sizes = [
        (width, width),
        (width, kv_width),
        (width, kv_width),
        (width, width),
        (width, wide),
        (width, wide),
        (wide, width),
    ]
    norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
    linears = zip(linear_layers(layer), sizes, strict=True)
    return all(readable.is_dense(norm, torch.bfloat16, width) for norm in norms) and all(
        isinstance(linear, Linear | PackedLinear) and operands.fit_product(linear.product, *size)
        for linear, size in linears
    )


def numbers_of(layer: Any) -> list[int]:
    numbers = [
        layer.input_layernorm.weight.data_ptr(),
        layer.post_attention_layernorm.weight.data_ptr(),
    ]
    for linear in linear_layers(layer):
        *tensors, bits, inputs, outputs, step = linear.product
        numbers += [*(ops.address(tensor) or 0 for tensor in tensors), bits, inputs, outputs, step]
    return numbers

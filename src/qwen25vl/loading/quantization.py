"""Weights in 8 or 4 bits, activations as they are.

What is quantised: the seven linear layers of every decoder layer, nine tenths of the weights; where
it is asked for, also the vision encoder's blocks, in 8 bits, since an error there reaches every
visual token. What stays: norms and biases; and the embeddings with the head, tied or not, as
torchao and AWQ leave them. For its logits a model with quantised layers keeps a copy of the head in
8 bits in memory (model/int8_head.py), which no file holds.

    K inputs, the columns of a weight · O outputs,
    its rows · g columns with one scale · K' = K in whole groups
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl.errors import NumericsError, UsageError
from qwen25vl.kernels import fallback, library, scales
from qwen25vl.loading.scheme import Scheme
from qwen25vl.loading.threads import map_in_threads
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.int8_head import Int8Head
from qwen25vl.model.packed_linear import Int4Linear, Int8Linear, PackedLinear

ELEMENTS_AT_A_TIME = 2**19
FEW_SCALES, MANY_SCALES = 8, 24  # tried for each group while loading, and where the result is kept
# by bits: where a group's largest weight is tried, in lowest levels
LARGEST_LEVEL = {4: (0.875, 1.5), 8: (1.0, 1.25)}


def make_packed_layer(linear: nn.Linear, scheme: Scheme) -> PackedLinear:
    """The layer in fewer bits without its numbers: on "meta", but for the bias."""
    group_size = scheme.inputs_per_scale(linear.in_features)
    if scheme.bits == 8:
        return Int8Linear(linear, group_size)
    return Int4Linear(linear, group_size, scheme.has_zeros)


def quantise(linear: nn.Linear, scheme: Scheme, num_scales: int = FEW_SCALES) -> PackedLinear:
    """The same layer in fewer bits, its bias kept; as many rows at a time as stay in a cache.

    Raises NumericsError for weights that are not finite.
    """
    layer = make_packed_layer(linear, scheme)
    num_inputs = linear.in_features
    group_size = scheme.inputs_per_scale(num_inputs)
    lowest, highest = LARGEST_LEVEL[scheme.bits]
    parts = torch.linspace(lowest, highest, num_scales, dtype=torch.float32, device="cpu")

    def quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        padded = F.pad(rows.float(), (0, -num_inputs % group_size))
        groups = padded.unflatten(1, (-1, group_size))
        scale = scales.search(groups, scheme.bits, parts).to(layer.weight_scale.dtype)
        codes = scales.pack(groups, scale.float(), scheme.bits)
        return codes.flatten(1).view(torch.int32), scale

    rows_at_a_time = max(1, ELEMENTS_AT_A_TIME // num_inputs)
    blocks = linear.weight.detach().split(rows_at_a_time)
    if linear.weight.is_cpu:
        made = map_in_threads(quantise_rows, blocks)
    else:
        made = list(map(quantise_rows, blocks))
    layer.weight_packed = torch.cat([packed for packed, _ in made])
    layer.weight_scale = torch.cat([scale for _, scale in made])
    if not layer.weight_scale.isfinite().all():
        raise NumericsError("the weights are not finite numbers, or too large for float16 scales")
    return layer


def add_int8_head(model: Qwen2_5_VLCausalModel) -> None:
    """Give a model with quantised layers a head in 8 bits for its logits;
    where no kernel reads it, warn."""
    if not is_quantised(model):
        return
    if not serves_int8(model.device, model.dtype):
        fallback.warn_slow(model.device.type, model.dtype)
    elif not isinstance(model.head, PackedLinear):
        model.int8_head = Int8Head()
        model.int8_head.prepare(model.head.weight)


def serves_int8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels for quantised weights take activations of this type."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and library.function("linear_int8") is not None
    )


def bytes_beside(
    model: Qwen2_5_VLCausalModel,
    packed: Iterable[PackedLinear],
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Bytes that inference takes beside the weights:
    the head in 8 bits, or int4 codes in torch's order."""
    if serves_int8(device, dtype):
        text = model.config.text_config
        return text.vocab_size * text.hidden_size
    if device.type != "cpu" or dtype != torch.bfloat16 or not fallback.has_fast_int4():
        return 0
    int4 = [layer for layer in packed if layer.bits == 4]
    return sum(layer.weight_packed.nbytes + 2 * layer.weight_scale.nbytes for layer in int4)


def is_quantised(model: nn.Module) -> bool:
    return any(isinstance(module, PackedLinear) for module in model.modules())


def covered_linears(model: nn.Module, scheme: Scheme) -> dict[str, nn.Linear]:
    """The layers that are quantised, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and scheme.covers(path)
    }


def check_widths(scheme: Scheme, linears: dict[str, nn.Linear]) -> None:
    """Raise UsageError, by name, for a layer narrower than one group."""
    for path, linear in linears.items():
        layer = scheme.for_layer(path)
        group_size = layer.inputs_per_scale(linear.in_features)
        if layer.bits == 4 and linear.in_features < group_size:
            raise UsageError(
                f"group_size {group_size} is larger than the {linear.in_features} inputs of "
                f"{path}; give TorchAoConfig('int4_weight_only', group_size=…) a smaller one"
            )


def quantised_bytes(linear: nn.Linear, scheme: Scheme) -> int:
    """Bytes of the weight of `quantise(linear, scheme)`, its bias apart."""
    return sum(buffer.nbytes for buffer in make_packed_layer(linear, scheme).buffers())

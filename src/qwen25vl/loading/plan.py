"""What becomes of each of a checkpoint's tensors, decided before any is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.quantization import (
    bytes_beside,
    check_widths,
    covered_linears,
    make_packed_layer,
)
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.packed_linear import PackedLinear


@dataclass(frozen=True)
class LoadPlan:
    """dtypes: what each of the model's tensors becomes; None: it is read as it is stored, and then
    quantised. mapped: the tensors that stay in the mapped file. layers: the layers to quantise, by
    path. num_bytes: the memory that loading takes beside the mapped file."""

    dtypes: dict[str, torch.dtype | None]
    mapped: frozenset[str]
    layers: dict[str, Scheme]
    num_bytes: int


def plan_loading(
    model: Qwen2_5_VLCausalModel,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    scheme: Scheme | None,
) -> LoadPlan:
    """Plan how a model on "meta" gets its tensors. What is quantised starts from the checkpoint's
    own numbers, whatever `dtype` the rest is converted to.

    Raises UsageError for a layer that the scheme does not fit.
    """
    linears = {}
    if scheme is not None:
        linears = covered_linears(model, scheme)
        check_widths(scheme, linears)
    layers = {path: scheme.for_layer(path) for path in linears} if scheme is not None else {}
    buffers = {key: t for key, t in model.named_buffers() if key in checkpoint.stored}
    dtypes: dict[str, torch.dtype | None] = dict.fromkeys(dict(model.named_parameters()), dtype)
    dtypes |= {key: buffer.dtype for key, buffer in buffers.items()}
    dtypes |= {f"{path}.weight": None for path in layers}

    tensors = {**dict(model.named_parameters()), **buffers}
    mapped: set[str] = set()
    num_bytes = 0
    for key, target in dtypes.items():
        if target is None:
            continue  # its packed form is counted below
        if device.type == "cpu" and checkpoint.stored[key].holds(target):
            mapped.add(key)
        else:
            num_bytes += tensors[key].numel() * target.itemsize

    made = [make_packed_layer(linear, layers[path]) for path, linear in linears.items()]
    num_bytes += sum(buffer.nbytes for layer in made for buffer in layer.buffers())
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)] + made
    if packed:
        num_bytes += bytes_beside(model, packed, device, dtype)
    return LoadPlan(dtypes, frozenset(mapped), layers, num_bytes)

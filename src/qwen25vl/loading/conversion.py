"""The tensors of a folder that is written, made one layer at a time from those of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.quantization import MANY_SCALES, quantise
from qwen25vl.loading.rounding import RoundingError
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import Int4Linear, Int8Linear
from qwen25vl.progress import Progress


def unpack_layers(
    model: nn.Module, kept: Mapping[str, nn.Linear]
) -> dict[str, Int4Linear | Int8Linear]:
    """Put linear layers on "meta" in the place of packed ones, except those of `kept`; the packed
    layers by path."""
    packed = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Int4Linear | Int8Linear) and path not in kept
    }
    for path, layer in packed.items():
        with torch.device("meta"):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
        linear.bias = layer.bias
        model.set_submodule(path, linear)
    return packed


class Conversion:
    """covered: the layers that are quantised, by path; unpacked: the packed layers that are worked
    out. error: how far weights that are quantised twice are from those stored."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        covered: Mapping[str, nn.Linear],
        unpacked: Mapping[str, Int4Linear | Int8Linear],
        scheme: Scheme | None,
    ) -> None:
        self.checkpoint, self.covered, self.unpacked = checkpoint, covered, unpacked
        self.scheme, self.error = scheme, RoundingError()

    def tensors(
        self, plan: Mapping[str, torch.Tensor], progress: Progress, stage: str
    ) -> Iterator[torch.Tensor]:
        """The tensors of the plan, in its order; a layer is quantised when its packed weight is
        asked for."""
        made: dict[str, torch.Tensor] = {}
        done, total = 0, sum(tensor.nbytes for tensor in plan.values())
        for key, planned in plan.items():
            path, _, name = key.rpartition(".")
            if name == "weight_packed" and path in self.covered:
                made |= self.quantise(path)
            if name == "weight" and path in self.unpacked:
                made[key] = self.unpack(path, planned.dtype)
            if key in self.checkpoint.stored:
                tensor = self.checkpoint.read_once(key, planned.dtype)
            else:
                tensor = made.pop(key, planned)
            yield tensor.to(planned.dtype)
            done += planned.nbytes
            progress(stage, done, total)

    def quantise(self, path: str) -> dict[str, torch.Tensor]:
        """The tensors of a layer in fewer bits, by key."""
        assert self.scheme is not None
        linear, key = self.covered[path], f"{path}.weight"
        linear.weight = nn.Parameter(self.checkpoint.read_once(key))
        layer = quantise(linear, self.scheme.for_layer(path), MANY_SCALES)
        if self.checkpoint.stored[key].form:
            self.error.add(linear, layer)
        del linear.weight
        return dict(layer.named_buffers(prefix=path))

    def unpack(self, path: str, dtype: torch.dtype) -> torch.Tensor:
        """The weight of a packed layer as numbers."""
        layer = self.unpacked[path]
        for name, buffer in list(layer.named_buffers()):
            setattr(layer, name, self.checkpoint.read_once(f"{path}.{name}").to(buffer.dtype))
        weight: torch.Tensor = layer.dequantise(torch.float32).to(dtype)
        for name, buffer in list(layer.named_buffers()):
            setattr(layer, name, buffer.to("meta"))
        return weight

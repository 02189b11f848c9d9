"""What loading makes of numbers that no kernel reads as they are stored, in a line for people."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from qwen25vl.kernels import reference
from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.plan import LoadPlan
from qwen25vl.memory import gigabytes
from qwen25vl.model.packed_linear import PackedLinear

SAMPLE_ROWS = 256  # of a layer, whose difference is measured


def warn_dequantised(checkpoint: Checkpoint, plan: LoadPlan) -> None:
    """Say which forms become larger numbers, and how much memory these take."""
    forms: set[str] = set()
    num_bytes = count = 0
    for key, dtype in plan.dtypes.items():
        tensor = checkpoint.stored[key]
        if tensor.form and dtype is not None:
            forms.add(tensor.form)
            num_bytes += tensor.num_bytes // tensor.dtype.itemsize * dtype.itemsize
            count += len(tensor.shape) > 1
            name = str(dtype).removeprefix("torch.")
    if not forms:
        return
    file_bytes = sum(path.stat().st_size for path in checkpoint.open_files)
    again = "" if plan.layers else "; quantize='int8' or 'int4' makes them smaller and rounds again"
    warnings.warn(
        f"{checkpoint.folder}: {count} matrices stored as {', '.join(sorted(forms))} are worked "
        f"out to {name}, which takes {gigabytes(num_bytes)} of memory (the files have "
        f"{gigabytes(file_bytes)}){again}",
        stacklevel=4,
    )


class RoundingError:
    """How far weights that are quantised again are from those that the file means."""

    def __init__(self) -> None:
        self.squares = self.differences = 0.0
        self.bits: set[int] = set()

    def add(self, linear: nn.Linear, layer: PackedLinear) -> None:
        """Compare some rows of a layer."""
        rows = slice(None, None, max(1, layer.out_features // SAMPLE_ROWS))
        sizes = layer.codes[rows], layer.weight_scale[rows], layer.in_features
        made = (
            reference.dequantise_int8(*sizes)
            if layer.bits == 8
            else reference.dequantise_int4(*sizes, torch.float32)
        )
        meant = linear.weight.detach()[rows].float()
        self.squares += float(meant.square().sum())
        self.differences += float((made - meant).square().sum())
        self.bits.add(layer.bits)

    def warn(self, folder: Path) -> None:
        """Say it, if anything was compared."""
        if self.squares:
            part = (self.differences / self.squares) ** 0.5
            bits = " and ".join(map(str, sorted(self.bits)))
            warnings.warn(
                f"{folder}: quantised again, to {bits} bits; the weights differ from "
                f"those stored by about {100 * part:.2g} % (root mean square)",
                stacklevel=5,
            )

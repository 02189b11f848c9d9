"""torchao in safetensors files: int8 or 8-bit floating point, with one scale for each output.

    P._weight_qdata [O, I] I8 or F8_E4M3    P._weight_scale F32 [O, 1]    P._weight_zero_point I8
    w = (qdata − zero) · scale

P is a layer's path with a dot. What else torchao stores (4 bits in a tile layout, pickles) is
refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import torch
from torch import nn

from qwen25vl.errors import TensorError
from qwen25vl.loading.checkpoint import Checkpoint, StoredTensor
from qwen25vl.loading.dequantised import require_finite
from qwen25vl.loading.formats import fp8
from qwen25vl.loading.formats.compressed import pack_signed_rows
from qwen25vl.loading.quantization import make_packed_layer
from qwen25vl.loading.scheme import Scheme

METHOD = "torchao"
DATA, SCALE, ZERO = "._weight_qdata", "._weight_scale", "._weight_zero_point"


def expect_layers(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Have quantised weights read as the model holds them.

    Raises TensorError for other kinds of weights, or tensors that do not fit each other.
    """
    stored = checkpoint.stored
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    for key in [key for key in stored if key.endswith(DATA)]:
        path = key.removesuffix(DATA)
        data, scale, zero = (stored.pop(path + part, None) for part in (DATA, SCALE, ZERO))
        assert data is not None
        if scale is None or path not in linears or data.type_name not in ("I8", *fp8.FLOATS):
            raise TensorError(
                f"{checkpoint.folder}: {data.name} is {data.type_name} {list(data.shape)}; of "
                "torchao int8 and float8 with a scale for each output are read"
            )
        if data.type_name == "I8":
            keep_eight_bits(model, path, linears[path], checkpoint, data, scale, zero)
        else:
            stored[f"{path}.weight"], stored[f"{path}.weight_scale"] = data, scale
            fp8.work_out(checkpoint, path)


def keep_eight_bits(
    model: nn.Module,
    path: str,
    linear: nn.Linear,
    checkpoint: Checkpoint,
    data: StoredTensor,
    scale: StoredTensor,
    zero: StoredTensor | None,
) -> None:
    shape = (linear.out_features, linear.in_features)
    has_zeros = zero is not None and bool(zero.get(checkpoint.open_files).any())
    if (
        data.shape != shape
        or prod(scale.shape) != shape[0]
        or scale.type_name != "F32"
        or has_zeros
    ):
        raise TensorError(
            f"{checkpoint.folder}: {data.name} {list(data.shape)} with {scale.name} "
            f"{list(scale.shape)}{' and zero points' if has_zeros else ''}: expected "
            f"{list(shape)} with one scale for each output, and no zero points"
        )
    layer = make_packed_layer(linear, Scheme(8))
    model.set_submodule(path, layer)
    checkpoint.stored[f"{path}.weight_packed"] = replace(
        data,
        shape=tuple(layer.weight_packed.shape),
        type_name="I32",
        convert=pack_signed_rows,
    )
    checkpoint.stored[f"{path}.weight_scale"] = replace(
        scale, shape=(shape[0], 1), convert=partial(read_scale, name=scale.name)
    )


def read_scale(scale: torch.Tensor, name: str) -> torch.Tensor:
    return require_finite(scale.view(-1, 1), name)

"""Weights in 8-bit floating point with scales: w = weight · scale.

    weight [O, I] float8
    scale  [], [1] (all), [O, 1] (each output) or [⌈O / b⌉, ⌈I / c⌉] (each block of b × c)

Under different names of the scale this is what compressed-tensors ("float-quantized"), transformers
("fp8", block by block), ModelOpt, FBGEMM and ComfyUI write. Scales of activations say how an engine
would round these; here they are not rounded. No kernel reads such weights, so they are worked out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen25vl.config_values import parse_json, shown
from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.checkpoint import Checkpoint, hub_name
from qwen25vl.loading.dequantised import Rows, dequantise, require_finite
from qwen25vl.loading.formats.config_reader import ROOT, ConfigReader, Supported

METHOD, MODELOPT, FBGEMM = "fp8", "modelopt", "fbgemm_fp8"
FLOATS = ("F8_E4M3", "F8_E5M2")
SCALES = ("weight_scale_inv", "weight_scale", "scale_weight")
OF_ACTIVATIONS = (
    "input_scale", "activation_scale", "scale_input", "output_scale", "k_scale", "v_scale",
    "input_scale_ub",
)  # fmt: skip
COMFY_MARKERS = ("scaled_fp8", "comfy_quant")
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2")
DEFAULT_BLOCK = (128, 128)
KEYS: Supported = {
    "quant_method": (METHOD,),
    "activation_scheme": None,
    "weight_block_size": None,
    "fmt": (None, "e4m3", "float8_e4m3fn"),
    "scale_fmt": (None, "float", "ue8m0"),
    **dict.fromkeys(("modules_to_not_convert", "ignored_layers", "dequantize")),
}


def read_block(config: Mapping[str, Any], folder: Path) -> tuple[int, int] | None:
    """The block size that transformers' configuration names.

    Raises CheckpointError that names the first key whose value is not supported.
    """
    reader = ConfigReader(folder)
    block = reader.check(config, KEYS, ROOT).get("weight_block_size")
    if block is None:
        return None
    if (
        not isinstance(block, list)
        or len(block) != 2
        or any(type(size) is not int or size < 1 for size in block)
    ):
        raise reader.refuse(f"{ROOT}.weight_block_size", block, "expected two sizes")
    return block[0], block[1]


def check_modelopt(config: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError unless ModelOpt's configuration is of 8-bit floating point."""
    nested = config.get("quantization")
    values = {**(nested if isinstance(nested, Mapping) else {}), **config}
    if (algorithm := values.get("quant_algo")) != "FP8":
        wanted = "of ModelOpt only 'FP8' is read; take a version in FP8, AWQ or bfloat16"
        raise ConfigReader(folder).refuse(f"{ROOT}.quant_algo", algorithm, wanted)


def expect_layers(
    model: nn.Module, checkpoint: Checkpoint, block: tuple[int, int] | None = None
) -> None:
    """Have 8-bit weights read as the numbers that they stand for. block: outputs and inputs that
    share a scale.

    Raises TensorError for weights without a scale, or with one of another shape.
    """
    stored = checkpoint.stored
    for key in [key for key in stored if key.rpartition(".")[2] in OF_ACTIVATIONS]:
        del stored[key]
    scaled = {key.rpartition(".")[0] for key in stored if key.rpartition(".")[2] in SCALES}
    plain = {
        key.removesuffix(".weight")
        for key, tensor in stored.items()
        if tensor.type_name in FLOATS and tensor.decode is None
    }
    for path in sorted(scaled | plain):
        work_out(checkpoint, path, block)


def expect_comfyui(model: nn.Module, checkpoint: Checkpoint) -> None:
    """ComfyUI's files: markers say how a layer is stored, and weights without a scale are meant as
    they are."""
    stored = checkpoint.stored
    for key in [key for key in stored if key.rpartition(".")[2] in COMFY_MARKERS]:
        if key.endswith("comfy_quant"):
            check_marker(checkpoint, key)
        del stored[key]
    for key, tensor in list(stored.items()):
        path = key.removesuffix(".weight")
        if tensor.type_name in FLOATS and not any(f"{path}.{name}" in stored for name in SCALES):
            name = tensor.type_name
            dequantise(checkpoint, key, [tensor], tensor.shape, plain_rows, f"{name} (plain)")
    expect_layers(model, checkpoint)


def check_marker(checkpoint: Checkpoint, key: str) -> None:
    """Raise CheckpointError for a layer that ComfyUI stores in another form."""
    try:
        text = bytes(checkpoint.read(key).view(torch.uint8).flatten().tolist())
        form = parse_json(text, key).get("format")
    except (CheckpointError, RuntimeError):
        form = "damaged"
    if form not in COMFY_FORMATS:
        raise CheckpointError(
            f"{checkpoint.folder}: {hub_name(key)} says that the layer is stored as {shown(form)}; "
            f"only {' and '.join(COMFY_FORMATS)} are read; take the fp8_scaled or the bf16 file"
        )


def numbers_of(rows: torch.Tensor) -> torch.Tensor:
    """8-bit numbers in float32, by a look into a table: torch's own conversion takes seven times as
    long."""
    if rows.dtype == torch.int8:
        return rows.float()
    table = torch.arange(256, dtype=torch.uint8, device="cpu").view(rows.dtype).float()
    return table.index_select(0, rows.view(torch.uint8).flatten().int()).view(rows.shape)


def plain_rows(tensors: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
    return numbers_of(tensors[0][start:stop])


def work_out(checkpoint: Checkpoint, path: str, block: tuple[int, int] | None = None) -> None:
    """Have one layer's weight read as numbers."""
    key, stored = f"{path}.weight", checkpoint.stored
    weight = stored.get(key)
    if weight is None or weight.type_name not in (*FLOATS, "I8"):
        found = "missing" if weight is None else f"of type {weight.type_name}"
        raise TensorError(f"{checkpoint.folder}: {hub_name(key)} is {found}, but has a scale")
    names = [f"{path}.{name}" for name in SCALES if f"{path}.{name}" in stored]
    if len(names) != 1:
        raise TensorError(
            f"{checkpoint.folder}: {weight.name} is in {weight.type_name} with {len(names)} scales "
            "of weights beside it; expected one"
        )
    if len(weight.shape) != 2:
        raise TensorError(f"{checkpoint.folder}: {weight.name} is no matrix")
    scale = stored.pop(names[0])
    rows = choose_rows(weight.shape, scale.shape, block)
    if rows is None:
        raise TensorError(
            f"{checkpoint.folder}: {scale.name} is {list(scale.shape)}, which scales neither all "
            f"of {list(weight.shape)}, nor each output, nor each block of {block or DEFAULT_BLOCK}"
        )
    read = replace(scale, convert=partial(read_scale, name=scale.name))
    form = {"F8_E4M3": "FP8 (E4M3)", "F8_E5M2": "FP8 (E5M2)", "I8": "int8"}[weight.type_name]
    dequantise(checkpoint, key, [weight, read], weight.shape, rows, form)


def read_scale(scale: torch.Tensor, name: str) -> torch.Tensor:
    return require_finite(scale.float(), name)


def choose_rows(
    shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> Rows | None:
    """How rows are made for a scale of this shape; None where it fits none."""
    if block is None and scale in ((), (1,), (1, 1)):
        return rows_of_one_scale
    if block is None and scale in ((shape[0],), (shape[0], 1)):
        return rows_of_outputs
    high, wide = block or DEFAULT_BLOCK
    if scale == (-(-shape[0] // high), -(-shape[1] // wide)):
        return partial(rows_of_blocks, high=high, wide=wide)
    return None


def rows_of_one_scale(tensors: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
    weight, scale = tensors
    return numbers_of(weight[start:stop]).mul_(scale.view(()))


def rows_of_outputs(tensors: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
    weight, scale = tensors
    return numbers_of(weight[start:stop]).mul_(scale.view(-1, 1)[start:stop])


def rows_of_blocks(
    tensors: Sequence[torch.Tensor], start: int, stop: int, high: int, wide: int
) -> torch.Tensor:
    weight, scale = tensors
    of_rows = scale[torch.arange(start, stop, device="cpu") // high]
    whole = of_rows.repeat_interleave(wide, 1)[:, : weight.shape[1]]
    return numbers_of(weight[start:stop]).mul_(whole)

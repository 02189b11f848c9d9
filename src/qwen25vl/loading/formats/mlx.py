"""MLX: affine codes of 2 to 8 bits, and the names and axes of mlx-vlm.

    weight  U32 [O, I · bits / 32]    one row's codes are one string of bits, the lowest first
    scales, biases [O, I / g]    w = scale · code + bias; a layer's own bias is called "bias"

Embeddings are quantised too. Offsets are no whole multiples of the scales, so all of this is worked
out. The patch embedding has its channels last. Bits and groups are told by the tensors, as single
layers may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.dequantised import dequantise

METHOD = "mlx"  # a name of ours: its configuration has none
WIDTHS = (2, 3, 4, 5, 6, 8)
PATCH = "model.visual.patch_embed.proj.weight"


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Whether a quantization_config without a method is MLX's."""
    return "quant_method" not in config and {"bits", "group_size"} <= config.keys()


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError for modes without an offset, by name."""
    modes = [config.get("mode", "affine")]
    modes += [own["mode"] for own in config.values() if isinstance(own, Mapping) and "mode" in own]
    if others := sorted({str(mode)[:40] for mode in modes if mode != "affine"}):
        raise CheckpointError(
            f"{folder} is quantised by MLX in the mode {', '.join(others)}; only 'affine' is read: "
            "take an affine or a bfloat16 version"
        )


def expect_layers(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Have quantised matrices read as numbers, and the patch embedding in the other order.

    Raises TensorError where tensors do not fit each other.
    """
    stored = checkpoint.stored
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for key in [key for key in stored if key.endswith(".scales")]:
        path = key.removesuffix(".scales")
        if shape := shapes.get(f"{path}.weight"):
            work_out(checkpoint, path, shape)
    turn_patches(model, checkpoint)


def turn_patches(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Have the patch embedding read as [O, channels, frames, rows, columns] where its channels come
    last, as in all checkpoints of mlx-vlm, quantised or not."""
    tensor, wanted = checkpoint.stored.get(PATCH), model.state_dict().get(PATCH)
    if tensor is None or wanted is None or len(tensor.shape) != 5 or tensor.shape == wanted.shape:
        return
    order = (0, 4, 1, 2, 3)
    turned = tuple(tensor.shape[axis] for axis in order)
    convert = partial(torch.permute, dims=order)
    checkpoint.stored[PATCH] = replace(tensor, shape=turned, convert=convert)


def work_out(checkpoint: Checkpoint, path: str, shape: tuple[int, ...]) -> None:
    """Have one matrix read as numbers."""
    stored = checkpoint.stored
    parts = [stored.get(f"{path}.{name}") for name in ("weight", "scales", "biases")]
    weight, scales, biases = parts
    if weight is None or scales is None or biases is None:
        names = f"{path}.weight, .scales and .biases"
        raise TensorError(f"{checkpoint.folder}: {names} belong together, one is missing")
    num_words = weight.shape[1] if len(weight.shape) == 2 else 0
    bits = num_words * 32 // shape[1]
    num_groups = scales.shape[1] if len(scales.shape) == 2 else 0
    if (
        bits not in WIDTHS
        or bits * shape[1] != 32 * num_words
        or weight.type_name not in ("U32", "I32")
        or num_groups < 1
        or shape[1] % num_groups
        or not weight.shape[0] == scales.shape[0] == shape[0]
        or scales.shape != biases.shape
    ):
        found = [list(tensor.shape) for tensor in (weight, scales, biases)]
        raise TensorError(
            f"{checkpoint.folder}: {weight.name} with its scales and biases is {found}, which is "
            f"no matrix of {list(shape)}"
        )
    for name in ("scales", "biases"):
        del stored[f"{path}.{name}"]
    rows = partial(rows_of, bits=bits)
    form = f"MLX ({bits} bits)"
    dequantise(checkpoint, f"{path}.weight", [weight, scales, biases], shape, rows, form)


def rows_of(tensors: Sequence[torch.Tensor], start: int, stop: int, bits: int) -> torch.Tensor:
    words, scales, biases = (tensor[start:stop] for tensor in tensors)
    numbers = unpack_string(words, bits).float()
    groups = numbers.view(*scales.shape, -1)
    groups.mul_(scales.float()[..., None]).add_(biases.float()[..., None])
    return numbers


def unpack_string(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Words [n, w] to codes [n, 32 w / bits] uint8: eight codes, or fewer, in whole bytes."""
    num_bytes = {3: 3, 5: 5, 6: 3}.get(bits, 1)  # as few as hold whole codes
    num_codes = 8 * num_bytes // bits
    pieces = words.contiguous().view(torch.uint8).unflatten(1, (-1, num_bytes))
    if num_bytes == 1:
        whole = pieces.squeeze(-1)
    else:
        whole = sum(pieces[..., n].long() << 8 * n for n in range(num_bytes))
    mask = (1 << bits) - 1
    codes = [(whole >> bits * n & mask).to(torch.uint8) for n in range(num_codes)]
    return torch.stack(codes, -1).flatten(1)

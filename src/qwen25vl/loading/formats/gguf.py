"""GGUF: the language model and the vision encoder (mmproj) of llama.cpp, or both in Ollama's file.

Q4_0 is w = d · (code − 8) with a scale for 32 inputs, which the kernel for 4 bits reads: its codes
are put into the other order, once, and no number changes. Q4_1 goes the same way where all of its
offsets are whole multiples of the scales. Every other block type is worked out while loading.
F32, F16 and BF16 are mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from qwen25vl.errors import TensorError
from qwen25vl.kernels.reference import pack_zeros
from qwen25vl.loading.checkpoint import FLOAT_TYPES, Checkpoint, StoredTensor
from qwen25vl.loading.dequantised import dequantise, require_finite
from qwen25vl.loading.formats.gguf_blocks import DECODERS, decode_rows, halves
from qwen25vl.loading.quantization import make_packed_layer
from qwen25vl.loading.scheme import Scheme
from qwen25vl.loading.threads import map_in_threads
from qwen25vl.loading.weight_files import listed

METHOD = "gguf"
GROUP_SIZE = 32  # of Q4_0 and Q4_1
HIGHEST_CODE = 15
ROWS_AT_A_TIME = 64
SAMPLE_ROWS = 4  # whose offsets are looked at before all are
QKV, PATCH = ".attn.qkv.", "model.visual.patch_embed.proj.weight"
REMEDY = "take a file in Q4_K_M, Q5_K_M, Q6_K or Q8_0, or the safetensors folder"


def expect_layers(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Have the tensors of GGUF files read as the model holds them.

    Raises TensorError for block types that are not read, by name.
    """
    stored = checkpoint.stored
    if unread := sorted({f"{tensor.name} ({tensor.type_name})" for tensor in stored.values()
                         if tensor.type_name not in (*FLOAT_TYPES, *DECODERS)}):  # fmt: skip
        raise TensorError(
            f"{checkpoint.folder}: {len(unread)} tensors are of types that are not read: "
            f"{listed(unread)}; {REMEDY}"
        )
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    for path, linear in linears.items():
        keep_four_bits(model, path, linear, checkpoint)
    for key in [key for key in stored if stored[key].type_name in DECODERS]:
        work_out(checkpoint, key, [stored[key]])
    for kind in ("weight", "bias"):
        for path in [path for path in linears if path.endswith(QKV.strip("."))]:
            join_parts(checkpoint, f"{path}.{kind}", [f"{path}.{part}.{kind}" for part in "qkv"])
    join_patches(checkpoint)


def keep_four_bits(model: nn.Module, path: str, linear: nn.Linear, checkpoint: Checkpoint) -> None:
    """Give the model a layer of 4 bits for a weight that such a layer holds exactly."""
    tensor = checkpoint.stored.get(f"{path}.weight")
    shape = (linear.out_features, linear.in_features)
    if tensor is None or tensor.shape != shape or tensor.type_name not in ("Q4_0", "Q4_1"):
        return
    has_zeros = tensor.type_name == "Q4_1"
    if has_zeros and not has_whole_zeros(checkpoint.read_once(f"{path}.weight")):
        return
    layer = make_packed_layer(linear, Scheme(4, GROUP_SIZE, has_zeros=has_zeros))
    model.set_submodule(path, layer)
    parts = {"weight_packed": (reorder_codes, "I32"), "weight_scale": (read_scales, "F16")}
    if has_zeros:
        parts["weight_zero_point"] = (read_zeros, "I32")
    for name, (convert, type_name) in parts.items():
        checkpoint.stored[f"{path}.{name}"] = replace(
            tensor,
            shape=tuple(layer.get_buffer(name).shape),
            type_name=type_name,
            convert=partial(convert, size=DECODERS[tensor.type_name][1], name=tensor.name),
        )
    del checkpoint.stored[f"{path}.weight"]


def reorder_codes(raw: torch.Tensor, size: int, name: str) -> torch.Tensor:
    """The codes of rows [O, bytes], in blocks of `size` bytes, as [O, I / 8] int32 in the order of
    the inputs: a byte holds two neighbours."""
    words = torch.empty(len(raw), raw.shape[1] // size, 16, dtype=torch.uint8, device="cpu")

    def reorder(start: int) -> None:
        rows = slice(start, start + ROWS_AT_A_TIME)
        stored = raw[rows].unflatten(1, (-1, size))[..., -16:]
        low, high = (half[..., 0::2] | half[..., 1::2] << 4 for half in (stored & 15, stored >> 4))
        words[rows, :, :8], words[rows, :, 8:] = low, high

    map_in_threads(reorder, range(0, len(raw), ROWS_AT_A_TIME))
    return words.flatten(1).view(torch.int32)


def read_scales(raw: torch.Tensor, size: int, name: str) -> torch.Tensor:
    """[O, I / 32] float16"""
    scales = raw.unflatten(1, (-1, size))[..., :2].contiguous().view(torch.float16)
    return require_finite(scales.squeeze(-1), name)


def scales_and_zeros(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of Q4_1: scales, the nearest zero points, and offsets [O, I / 32] float32."""
    scales, offsets = halves(raw.unflatten(1, (-1, DECODERS["Q4_1"][1]))[..., :4]).unbind(-1)
    zeros = (-offsets / scales).nan_to_num(0, 0, 0).round().clamp(0, HIGHEST_CODE)
    return scales, zeros, offsets


def has_whole_zeros(raw: torch.Tensor) -> bool:
    """Whether d · code + m is d · (code − zero) with a whole zero, for every block."""
    for rows in (raw[:SAMPLE_ROWS], raw):
        scales, zeros, offsets = scales_and_zeros(rows)
        if not torch.equal(scales * zeros, -offsets):
            return False
    return True


def read_zeros(raw: torch.Tensor, size: int, name: str) -> torch.Tensor:
    return pack_zeros(scales_and_zeros(raw)[1])


def work_out(checkpoint: Checkpoint, key: str, parts: list[StoredTensor]) -> None:
    tensor = parts[0]

    def rows(tensors: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        return decode_rows(tensors[0][start:stop], tensor.type_name)

    dequantise(checkpoint, key, parts, tensor.shape, rows, tensor.type_name)


def join_parts(checkpoint: Checkpoint, key: str, names: list[str], dim: int = 0) -> None:
    """Have one tensor read of several that follow each other."""
    stored = checkpoint.stored
    if any(name not in stored for name in names):
        return  # Checkpoint.match tells what is missing
    parts = [stored.pop(name) for name in names]
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)

    def decode(tensors: Sequence[torch.Tensor], dtype: torch.dtype | None) -> torch.Tensor:
        numbers = [
            tensor.view(part.shape) if part.decode is None else part.decode([tensor], dtype)
            for part, tensor in zip(parts, tensors, strict=True)
        ]
        return torch.cat([tensor.to(dtype or torch.float32) for tensor in numbers], dim)

    raw = tuple(replace(part, decode=None) for part in parts)
    checkpoint.stored[key] = replace(
        raw[0], shape=tuple(shape), type_name="F32", others=raw[1:], decode=decode,
        form=parts[0].form,
    )  # fmt: skip


def join_patches(checkpoint: Checkpoint) -> None:
    """The patch embedding [O, 3, 2, h, w], of a tensor [O, 3, h, w] for each of two frames."""
    names = [f"{PATCH}.{frame}" for frame in range(2)]
    for name in names:
        if name in checkpoint.stored:
            part = checkpoint.stored[name]
            shape = (*part.shape[:2], 1, *part.shape[2:])
            checkpoint.stored[name] = replace(part, shape=shape)
    join_parts(checkpoint, PATCH, names, dim=2)

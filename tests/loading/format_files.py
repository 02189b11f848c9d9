"""Folders in the formats of other programs, written for the tests as these are described, and
without a line of the package's readers: each function quantises one matrix [O, I] and returns the
tensors that take its place, by what is appended to the layer's path, and what they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]
Made = tuple[Weights, torch.Tensor]
Quantise = Callable[[torch.Tensor], Made]
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)  # fmt: skip


def pack(codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Codes to words of 32 bits along a dimension, the first in the lowest bits."""
    moved = codes.long().movedim(dim, -1)
    rest = -moved.shape[-1] % (32 // bits)
    groups = torch.nn.functional.pad(moved, (0, rest)).unflatten(-1, (-1, 32 // bits))
    words = (groups << torch.arange(0, 32, bits)).sum(-1)
    return (words - (words >> 31 << 32)).to(torch.int32).movedim(-1, dim).contiguous()


def affine(
    weight: torch.Tensor, bits: int, groups: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [O, I], zeros [O, G] and scales [O, G], float16 numbers; groups [I]: of each input."""
    num_groups = int(groups.max()) + 1
    highest = 2**bits - 1
    scale, zero = torch.empty(2, len(weight), num_groups)
    for group in range(num_groups):
        part = weight[:, groups == group]
        low, high = part.amin(1), part.amax(1)
        if symmetric:
            scale[:, group] = part.abs().amax(1) / (highest // 2)
            zero[:, group] = (highest + 1) // 2
        else:
            low = low.clamp(max=0)
            scale[:, group] = (high.clamp(min=0) - low) / highest
            zero[:, group] = (-low / scale[:, group]).round().clamp(0, highest)
    scale = scale.half().float()
    codes = (weight / scale[:, groups] + zero[:, groups]).round().clamp(0, highest)
    return codes, zero, scale


def gptq(
    bits: int, group_size: int, *, version: int = 1, symmetric: bool = True, sort: bool = False
) -> Quantise:
    def quantise(weight: torch.Tensor) -> Made:
        num_inputs = weight.shape[1]
        size = num_inputs if group_size < 0 else group_size
        groups = torch.arange(num_inputs) // size
        if sort:
            groups = groups[torch.randperm(num_inputs, generator=torch.Generator().manual_seed(1))]
        codes, zero, scale = affine(weight, bits, groups, symmetric)
        stored = (zero - 1) % 2**bits if version == 1 else zero
        made = {
            ".qweight": pack(codes.T, bits, 0),
            ".qzeros": pack(stored.T, bits, 1),
            ".scales": scale.T.half().contiguous(),
            ".g_idx": groups.to(torch.int32),
        }
        return made, (codes - zero[:, groups]) * scale[:, groups]

    return quantise


def compressed(
    bits: int, group_size: int, *, symmetric: bool = True, sort: bool = False
) -> Quantise:
    def quantise(weight: torch.Tensor) -> Made:
        num_inputs = weight.shape[1]
        size = num_inputs if group_size < 0 else group_size
        groups = torch.arange(num_inputs) // size
        if sort:
            groups = groups[torch.randperm(num_inputs, generator=torch.Generator().manual_seed(1))]
        codes, zero, scale = affine(weight, bits, groups, symmetric)
        made = {
            ".weight_packed": pack(codes, bits, 1),
            ".weight_scale": scale.half(),
            ".weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            made[".weight_zero_point"] = pack(zero, bits, 0)
        if sort:
            made[".weight_g_idx"] = groups.to(torch.int32)
        return made, (codes - zero[:, groups]) * scale[:, groups]

    return quantise


def fp8(scale_name: str, kind: str, extra: Weights | None = None) -> Quantise:
    """kind: what shares a scale: "tensor", "channel" or "block" (128 × 128)."""

    def quantise(weight: torch.Tensor) -> Made:
        if kind == "block":
            shape = [-(-size // 128) for size in weight.shape]
            scale = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(2))
            whole = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            whole = whole[: len(weight), : weight.shape[1]]
        else:
            scale = weight.abs().amax(1, keepdim=True) / 448
            scale = scale.bfloat16() if kind == "channel" else scale.max()
            whole = scale.float()
        rows = (weight / whole).to(torch.float8_e4m3fn)
        tensors = {".weight": rows, f".{scale_name}": scale, **(extra or {})}
        return tensors, rows.float() * whole

    return quantise


def nf4(double: bool) -> Quantise:
    def quantise(weight: torch.Tensor) -> Made:
        flat = weight.flatten()
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % 64)).view(-1, 64)
        absmax = blocks.abs().amax(1)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16",
                                 "shape": list(weight.shape)}  # fmt: skip
        made: Weights = {}
        if double:
            offset = float(absmax.mean())
            nested_map = torch.linspace(-1, 1, 256) ** 3
            parts = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
            nested = parts.abs().amax(1)
            near = (parts / nested[:, None])[..., None] - nested_map
            codes = near.abs().argmin(-1).flatten()[: len(absmax)]
            places = torch.arange(len(absmax)) // 256
            absmax = nested_map[codes] * nested[places] + torch.tensor(offset)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            made = {".weight.absmax": codes.to(torch.uint8), ".weight.nested_absmax": nested,
                    ".weight.nested_quant_map": nested_map}  # fmt: skip
        else:
            made = {".weight.absmax": absmax}
        codes = ((blocks / absmax[:, None])[..., None] - NF4).abs().argmin(-1)
        meant = (NF4[codes] * absmax[:, None]).flatten()[: len(flat)].view(weight.shape)
        codes = torch.nn.functional.pad(codes.flatten()[: len(flat)], (0, len(flat) % 2))
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        made |= {
            ".weight": (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None].contiguous(),
            ".weight.quant_map": NF4,
            ".weight.quant_state.bitsandbytes__nf4": text,
        }
        return made, meant

    return quantise


def llm_int8(weight: torch.Tensor) -> Made:
    largest = weight.abs().amax(1)
    rows = (weight * (127 / largest[:, None])).round().to(torch.int8)
    made = {".weight": rows, ".SCB": largest, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return made, rows.float() * (largest / 127)[:, None]


def torchao(weight: torch.Tensor) -> Made:
    scale = weight.abs().amax(1, keepdim=True) / 127
    rows = (weight / scale).round().to(torch.int8)
    made = {"._weight_qdata": rows, "._weight_scale": scale,
            "._weight_zero_point": torch.zeros(len(rows), 1, dtype=torch.int8)}  # fmt: skip
    return made, rows.float() * scale


def mlx(bits: int, group_size: int) -> Quantise:
    def quantise(weight: torch.Tensor) -> Made:
        groups = weight.unflatten(1, (-1, group_size))
        low, high = groups.amin(2), groups.amax(2)
        scale = ((high - low) / (2**bits - 1)).bfloat16()
        bias = low.bfloat16()
        codes = (groups - bias.float()[..., None]) / scale.float()[..., None]
        codes = codes.round().clamp(0, 2**bits - 1).long()
        meant = codes * scale.float()[..., None] + bias.float()[..., None]
        places = torch.arange(bits)
        stream = (codes.flatten(1)[..., None] >> places & 1).flatten(1).unflatten(1, (-1, 32))
        words = (stream << torch.arange(32)).sum(-1)
        words = (words - (words >> 31 << 32)).to(torch.int32)
        made = {".weight": words.view(torch.uint32), ".scales": scale, ".biases": bias}
        return made, meant.flatten(1)

    return quantise


def mlx_name(hub: str) -> str:
    if hub.startswith("visual."):
        return hub.replace("visual.", "vision_tower.", 1)
    return f"language_model.{hub}"


def write_quantised(
    source: Path,
    target: Path,
    config: dict[str, Any] | None,
    quantise: Quantise,
    *,
    covers: Callable[[str, torch.Tensor], bool] | None = None,
    rename: Callable[[str], str] = str,
    others: Weights | None = None,
) -> Weights:
    """Write an unquantised folder in another format; all weights as they are meant, under the hub's
    names. covers: which tensors are quantised, by name; by default the language model's layers."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".json":
            (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((target / "config.json").read_text())
    if config is not None:
        values["quantization_config"] = config
    (target / "config.json").write_text(json.dumps(values))
    stored: Weights = dict(others or {})
    meant: Weights = {}
    covers = covers or is_text_layer
    for name, tensor in load_file(source / "model.safetensors").items():
        if covers(name, tensor):
            made, meant[name] = quantise(tensor.float())
            path = rename(name.removesuffix(".weight"))
            stored |= {path + part: value.clone().contiguous() for part, value in made.items()}
        else:
            stored[rename(name)] = meant[name] = tensor
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    return meant


def is_text_layer(name: str, tensor: torch.Tensor) -> bool:
    return name.startswith("model.layers.") and name.endswith("proj.weight")


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Of both towers, as bitsandbytes does without a list."""
    return (
        name.endswith(".weight") and tensor.ndim == 2 and "embed" not in name and "lm_" not in name
    )

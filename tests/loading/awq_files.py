"""AWQ folders for the tests, written as the format is described: number by number, and without a
line of the package's reader."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # outputs of a word, the one in the lowest bits first
CONFIG: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": ["visual"],
}
Weights = dict[str, torch.Tensor]


def pack_eights(numbers: torch.Tensor) -> torch.Tensor:
    """[rows, O] of 0 … 15 -> [rows, O / 8] int32"""
    words = []
    for row in numbers.tolist():
        for first in range(0, len(row), 8):
            word = sum(row[first + output] << 4 * place for place, output in enumerate(ORDER))
            words.append(word - (word >> 31 << 32))  # as a signed number
    return torch.tensor(words, dtype=torch.int32).view(len(numbers), -1)


def quantise_layer(weight: torch.Tensor, group_size: int) -> tuple[Weights, torch.Tensor]:
    """The tensors of one layer, and the weight [O, I] that they stand for, in float32."""
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    made = {
        "qweight": pack_eights(codes.flatten(1).T.int()),
        "qzeros": pack_eights(zero.T.int()),
        "scales": scale.T.half().contiguous(),
    }
    return made, ((codes - zero[..., None]) * scale[..., None]).flatten(1)


def write_awq(
    source: Path, target: Path, dtype: torch.dtype = torch.float16, **config: Any
) -> Weights:
    """Write an unquantised folder as AWQ, all else in `dtype`; what its quantised layers stand for,
    under the hub's names."""
    shutil.copytree(source, target)
    values = json.loads((target / "config.json").read_text())
    values["quantization_config"] = CONFIG | config
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(values))
    tensors: Weights = {}
    meant: Weights = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.startswith("model.layers.") and name.endswith("proj.weight"):
            made, meant[name] = quantise_layer(tensor, values["quantization_config"]["group_size"])
            path = name.removesuffix("weight")
            tensors |= {path + part: value for part, value in made.items()}
        else:
            tensors[name] = tensor.to(dtype)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return meant


def change(folder: Path, target: Path, tensors: Weights, without: tuple[str, ...] = ()) -> Path:
    """A copy with other tensors, and without some."""
    shutil.copytree(folder, target)
    stored = load_file(target / "model.safetensors") | tensors
    stored = {name: tensor for name, tensor in stored.items() if name not in without}
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    return target

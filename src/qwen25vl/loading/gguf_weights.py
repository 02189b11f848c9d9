"""The tensors of a GGUF file under the hub's names, mapped, behind the calls of a safetensors file.

A tensor of a block type comes as its bytes [rows, bytes of a row]; formats/gguf.py knows what they
mean. The vision encoder's q, k and v, and the two halves of its patch embedding, stay apart under
names of their own.
"""

from __future__ import annotations

import mmap
import re
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from qwen25vl.errors import CheckpointError
from qwen25vl.single_file.gguf_header import GgufTensor, read_header

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "v.patch_embd.weight": "visual.patch_embed.proj.weight.0",
    "v.patch_embd.weight.1": "visual.patch_embed.proj.weight.1",
    "v.patch_embd_0.weight": "visual.patch_embed.proj.weight.0",  # Ollama's names
    "v.patch_embd_1.weight": "visual.patch_embed.proj.weight.1",
    "v.post_ln.weight": "visual.merger.ln_q.weight",
    "v.merger.ln_q.weight": "visual.merger.ln_q.weight",
}
TEXT_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
VISION_PARTS = {
    "attn_q": "attn.qkv.q", "attn_k": "attn.qkv.k", "attn_v": "attn.qkv.v", "attn_out": "attn.proj",
    "attn_qkv": "attn.qkv", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ln1": "norm1", "ln2": "norm2",
}  # fmt: skip
BLOCK = re.compile(r"(v\.)?blk\.(\d+)\.(\w+)\.(weight|bias)")
MERGER = re.compile(r"(?:mm|v\.merger\.mlp)\.([02])\.(weight|bias)")
PATCHES = "visual.patch_embed.proj.weight"
HUB_BLOCK = re.compile(r"(model\.layers|visual\.blocks)\.(\d+)\.(.+)\.(weight|bias)")
HUB_MERGER = re.compile(r"visual\.merger\.mlp\.([02])\.(weight|bias)")
# tables that a program computes, and no weights of this model
UNUSED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def hub_name_of(name: str) -> str:
    """The hub's name of a GGUF tensor; an unknown one stays as it is."""
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    if match := MERGER.fullmatch(name):
        return f"visual.merger.mlp.{match[1]}.{match[2]}"
    if match := BLOCK.fullmatch(name):
        vision, number, part, kind = match.groups()
        parts = VISION_PARTS if vision else TEXT_PARTS
        if part in parts:
            tower = "visual.blocks" if vision else "model.layers"
            return f"{tower}.{number}.{parts[part]}.{kind}"
    return name


def gguf_names_of(hub: str) -> list[str]:
    """The inverse, as llama.cpp names tensors: of the vision encoder's qkv three names, of its
    patch embedding two. Raises KeyError for a tensor that no file has."""
    patch, _, part = hub.partition(".attn.qkv.")
    if hub == PATCHES:
        return [name for frame in range(2) for name in gguf_names_of(f"{PATCHES}.{frame}")]
    if part in ("weight", "bias"):
        return [
            name for third in "qkv" for name in gguf_names_of(f"{patch}.attn.qkv.{third}.{part}")
        ]
    if match := HUB_MERGER.fullmatch(hub):
        return [f"mm.{match[1]}.{match[2]}"]
    if match := HUB_BLOCK.fullmatch(hub):
        tower, number, part, kind = match.groups()
        is_vision = tower == "visual.blocks"
        parts = VISION_PARTS if is_vision else TEXT_PARTS
        own = next((own for own, name in parts.items() if name == part), None)
        if own is not None:
            return [f"{'v.' * is_vision}blk.{number}.{own}.{kind}"]
    for name, whole in WHOLE_NAMES.items():  # the first of two names is llama.cpp's
        if whole == hub:
            return [name]
    raise KeyError(hub)


@dataclass(frozen=True)
class Slice:
    """What `get_slice` gives of a tensor: its shape and type."""

    tensor: GgufTensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return self.tensor.type_name


class GgufWeights:
    """An open file; what is written into its tensors never reaches it."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a file that is damaged, or that has a tensor under two
        names."""
        header = read_header(path)
        self.tensors: dict[str, GgufTensor] = {}
        for name, tensor in header.tensors.items():
            if name in UNUSED:
                continue
            if (hub := hub_name_of(name)) in self.tensors:
                first = self.tensors[hub].name
                raise CheckpointError(f"{path}: {first} and {name} are the same tensor")
            self.tensors[hub] = tensor
        self.path = path
        self.rename_swapped_mlp()
        self.map()

    def map(self) -> None:
        with self.path.open("rb") as file:
            # copied where it is written: an optimiser may do so
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def mapped_again(self) -> Self:
        """The same file through a mapping of its own."""
        other = copy(self)
        other.map()
        return other

    def rename_swapped_mlp(self) -> None:
        """Old converters wrote the vision encoder's up_proj as ffn_down and the other way round:
        then "down" has as many inputs as the gate."""
        first = "visual.blocks.0.mlp."
        gate, down = (self.tensors.get(f"{first}{part}_proj.weight") for part in ("gate", "down"))
        if gate is None or down is None or gate.shape != down.shape or is_square(gate.shape):
            return
        other = {"up_proj": "down_proj", "down_proj": "up_proj"}
        pattern = re.compile(r"(visual\.blocks\.\d+\.mlp\.)(up_proj|down_proj)(\..*)")
        self.tensors = {
            pattern.sub(lambda found: found[1] + other[found[2]] + found[3], name): tensor
            for name, tensor in self.tensors.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """The mapping goes with the last tensor that lies in it."""

    def keys(self) -> list[str]:
        return list(self.tensors)

    def get_slice(self, name: str) -> Slice:
        return Slice(self.tensors[name])

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor, or the bytes of a block type's rows [rows, bytes]."""
        tensor = self.tensors[name]
        dtype = PLAIN.get(tensor.type_name, torch.uint8)
        raw = torch.frombuffer(
            self.data, dtype=dtype, count=tensor.num_bytes // dtype.itemsize, offset=tensor.start
        )
        shape = tensor.shape if dtype != torch.uint8 else (-1, tensor.row_bytes)
        return raw.view(shape)


def is_square(shape: tuple[int, ...]) -> bool:
    return len(set(shape)) == 1

"""Whole small models as GGUF files, and as the folders of plain numbers that they stand for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import TEXT, VISION, tensors, write_json
from gguf_files import (
    LAYOUT,
    Tensors,
    numbers_of,
    ollama_metadata,
    plain_bytes,
    random_blocks,
    text_metadata,
    text_name,
    vision_metadata,
    vision_tensors,
    write_gguf,
)
from safetensors.torch import save_file

import qwen25vl.demo

DEMO = Path(qwen25vl.demo.__file__).parent
TOKENIZER = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
SIZES = {
    "vocab_size": 1056, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1024, "eos_token_id": 1026,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}  # fmt: skip
VISION_SIZES = {"out_hidden_size": 256, "hidden_size": 64, "intermediate_size": 96}
TOKEN_IDS = {"image_token_id": 1036, "video_token_id": 1037, "vision_start_token_id": 1033,
             "vision_end_token_id": 1034}  # fmt: skip
Meant = dict[str, torch.Tensor]


def make_tensors(
    kinds: tuple[str, ...], vision_kind: str, *, tied: bool, ollama: bool, seed: int
) -> tuple[Tensors, Tensors, Meant]:
    """Tensors of both parts, and what they stand for under the hub's names. kinds: of the language
    model's matrices in turn; F32 for all that is no matrix."""
    rng = np.random.default_rng(seed)
    text: Tensors = {}
    vision: Tensors = {}
    meant: Meant = {}
    count = 0
    for hub, tensor in tensors(TEXT | SIZES, VISION | VISION_SIZES, tied, seed):
        if hub.startswith("visual."):
            parts = vision_tensors(hub, tensor, ollama)
            made = {name: pack(part, vision_kind, rng) for name, part in parts.items()}
            vision |= {name: entry for name, (entry, _) in made.items()}
            numbers = [number for _, number in made.values()]
            is_patch = hub.endswith("patch_embed.proj.weight")
            meant[hub] = torch.stack(numbers, 2) if is_patch else torch.cat(numbers)
        else:
            kind = "F32"
            if tensor.ndim == 2:
                kind = kinds[count % len(kinds)]
                count += 1
            text[text_name(hub)], meant[hub] = pack(tensor, kind, rng)
    return text, vision, meant


def pack(tensor: torch.Tensor, kind: str, rng: np.random.Generator) -> tuple[Any, torch.Tensor]:
    """One tensor of a file, and its numbers: random ones where the type has blocks."""
    shape = tuple(tensor.shape)
    if kind in LAYOUT and (tensor.ndim != 2 or shape[-1] % LAYOUT[kind][0]):
        kind = "F16" if tensor.ndim == 2 else "F32"
    if tensor.ndim == 1:
        kind = "F32"
    if kind in LAYOUT:
        blocks = random_blocks(shape, kind, rng)
        return (shape, kind, blocks.reshape(-1)), numbers_of(blocks, shape, kind)
    raw = plain_bytes(tensor, kind)
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return (shape, kind, raw), tensor.to(types[kind]).float()


def write_model(
    folder: Path,
    kinds: tuple[str, ...],
    vision_kind: str = "F16",
    *,
    tied: bool = True,
    ollama: bool = False,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    vision_changes: dict[str, Any] | None = None,
) -> tuple[Path, Meant]:
    """The language model's file (Ollama's: both parts in one), and what it stands for."""
    text, vision, meant = make_tensors(kinds, vision_kind, tied=tied, ollama=ollama, seed=seed)
    about = text_metadata(TEXT | SIZES, TOKENIZER) | (metadata or {})
    sizes = VISION | VISION_SIZES
    if ollama:
        path = folder / "sha256-abc"
        return write_gguf(path, ollama_metadata(about, sizes), text | vision), meant
    write_gguf(folder / "mmproj.gguf", vision_metadata(sizes) | (vision_changes or {}), vision)
    return write_gguf(folder / "model.gguf", about, text), meant


def write_plain(folder: Path, meant: Meant, *, tied: bool = True, vision: Any = None) -> Path:
    """A folder in the hub's form with these numbers, in float32."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "qwen2_5_vl", "torch_dtype": "float32", "tie_word_embeddings": tied,
        **TEXT, **SIZES, **TOKEN_IDS, "vision_config": VISION | VISION_SIZES | (vision or {}),
    }  # fmt: skip
    write_json(folder / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
                 "chat_template.json", "generation_config.json"):  # fmt: skip
        shutil.copyfile(DEMO / name, folder / name)
    contiguous = {name: tensor.contiguous() for name, tensor in meant.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return folder

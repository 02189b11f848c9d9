"""One safetensors file without a folder around it, as ComfyUI keeps the text encoder of image
models: its sizes are read off the shapes of its tensors.

What shapes do not tell (the size of a head, the blocks with attention to the whole picture, the
ids of tokens) is the same in all released models. Tokenizer, template and settings for pictures
come from files beside it, from the folders that diffusers puts beside it, or from the released
model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen25vl.errors import CheckpointError
from qwen25vl.single_file import official
from qwen25vl.single_file.description import place_of, write_description

METHOD = "comfyui"  # of quantization_config, for files that have none
EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "I8", "U8")
MAX_HEADER = 100_000_000  # bytes, as the safetensors package allows
HEAD_SIZE, VISION_HEAD_SIZE = 128, 80
EMBEDDINGS, PATCHES = "embed_tokens.weight", "patch_embed.proj.weight"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
             "special_tokens_map.json", "added_tokens.json")  # fmt: skip
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
NEIGHBOURS = (".", "../processor", "../tokenizer")
Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""By name: type and shape."""


def read_header(path: Path) -> Header:
    """Types and shapes of a safetensors file. Raises CheckpointError for a damaged one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
                raise ValueError("its header has no possible length")
            entries = json.loads(file.read(length))
        return {
            name: (str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {error}; download it again") from None


def describe_safetensors(path: Path, released: Callable[[], Path]) -> Path:
    """The folder that describes a file. released: gives the folder of a released model's processor,
    where nothing beside the file has a tokenizer.

    Raises CheckpointError for a damaged file or another model; what `released` raises.
    """
    config = describe_config(read_header(path), path)
    links = {"model.safetensors": path, **processor_files([path.parent / n for n in NEIGHBOURS])}
    if not any(name in links for name in ("tokenizer.json", "vocab.json")):
        links |= processor_files([released()])
    place = place_of(path.stem, links.values())
    if (place / "config.json").is_file():
        return place
    values: dict[str, Any] = {"config.json": config}
    if not any(name in links for name in PROCESSOR):
        values["preprocessor_config.json"] = official.PREPROCESSOR
    if not any(name in links for name in TEMPLATES):
        values["chat_template.json"] = {"chat_template": official.CHAT_TEMPLATE}
    values["generation_config.json"] = official.GENERATION | {
        "bos_token_id": 151643, "pad_token_id": 151643, "eos_token_id": [151645, 151643]
    }  # fmt: skip
    return write_description(place, values, links)


def processor_files(folders: list[Path]) -> dict[str, Path]:
    """Tokenizer, settings and template by name, each kind from the first folder that has it."""
    found: dict[str, Path] = {}
    for kind in (TOKENIZER, PROCESSOR, TEMPLATES):
        for folder in folders:
            there = {name: folder / name for name in kind if (folder / name).is_file()}
            if there:
                found |= there
                break
    return found


def describe_config(header: Header, path: Path) -> dict[str, Any]:
    """config.json. Raises CheckpointError where tensors of this model are missing."""
    sizes = Sizes(header, path)
    text, vision = sizes.prefix(EMBEDDINGS), sizes.prefix(PATCHES)
    vocabulary, width = sizes.matrix(f"{text}{EMBEDDINGS}")
    queries, _ = sizes.matrix(f"{text}layers.0.self_attn.q_proj.weight")
    keys, _ = sizes.matrix(f"{text}layers.0.self_attn.k_proj.weight")
    _, patch_shape = header[f"{vision}{PATCHES}"]
    vision_width = patch_shape[0] if patch_shape else 0
    config: dict[str, Any] = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": DTYPES.get(header[f"{text}{EMBEDDINGS}"][0], "bfloat16"),
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": sizes.matrix(f"{text}layers.0.mlp.gate_proj.weight")[0],
        "num_hidden_layers": sizes.count(f"{text}layers."),
        "num_attention_heads": max(1, queries // HEAD_SIZE),
        "num_key_value_heads": max(1, keys // HEAD_SIZE),
        "tie_word_embeddings": not any(name.endswith("lm_head.weight") for name in header),
        "vision_config": {
            "depth": sizes.count(f"{vision}blocks."),
            "hidden_size": vision_width,
            "intermediate_size": sizes.matrix(f"{vision}blocks.0.mlp.gate_proj.weight")[0],
            "num_heads": max(1, vision_width // VISION_HEAD_SIZE),
            "out_hidden_size": sizes.matrix(f"{vision}merger.mlp.2.weight")[0],
        },
    }
    if any(kind in EIGHT_BITS for kind, _ in header.values()):
        config["quantization_config"] = {"quant_method": METHOD}
    return config


class Sizes:
    """Looks up shapes; its errors name the file and the tensor."""

    def __init__(self, header: Header, path: Path) -> None:
        self.header, self.path = header, path

    def prefix(self, name: str) -> str:
        """What stands before a name that one tensor ends with."""
        found = [stored for stored in self.header if stored.endswith(name)]
        if len(found) != 1:
            raise CheckpointError(
                f"{self.path} is no Qwen2.5-VL: {len(found)} of its tensors are called {name}"
            )
        return found[0].removesuffix(name)

    def matrix(self, name: str) -> tuple[int, int]:
        _, shape = self.header.get(name, ("", ()))
        if len(shape) != 2:
            raise CheckpointError(f"{self.path} is no Qwen2.5-VL: it lacks the matrix {name}")
        return shape[0], shape[1]

    def count(self, prefix: str) -> int:
        """How many layers there are, by their numbers."""
        numbers = {name[len(prefix) :].split(".")[0] for name in self.header
                   if name.startswith(prefix)}  # fmt: skip
        return len({number for number in numbers if number.isdecimal()})

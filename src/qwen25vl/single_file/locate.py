"""What a path leads to: a checkpoint folder as it is, or what has to be described as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwen25vl.config_values import read_json
from qwen25vl.errors import CheckpointError
from qwen25vl.single_file.description import place_of, write_description
from qwen25vl.single_file.gguf_files import describe_gguf, find_text_file
from qwen25vl.single_file.gguf_header import is_gguf
from qwen25vl.single_file.safetensors_file import (
    NEIGHBOURS,
    TOKENIZER,
    describe_safetensors,
    processor_files,
)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OLD_MAGICS = (b"tjgg", b"fmgg", b"lmgg", b"algg")  # what preceded GGUF
PIPELINE, ENCODER = "model_index.json", "text_encoder"  # of diffusers


def describe_path(path: Path, released: Callable[[], Path]) -> Path:
    """The checkpoint folder of an existing path. released: see `describe_safetensors`.

    Raises CheckpointError for files of other kinds, by name.
    """
    return describe_folder(path) if path.is_dir() else describe_file(path, released)


def describe_folder(folder: Path) -> Path:
    """A folder as it is, except: GGUF files without a config.json, a pipeline of diffusers, and
    the text encoder of one."""
    if (folder / PIPELINE).is_file() and (folder / ENCODER / "config.json").is_file():
        return describe_folder(folder / ENCODER)
    if (folder / "config.json").is_file():
        return with_neighbours(folder)
    if any(folder.glob("*.gguf")):
        return describe_gguf(find_text_file(folder))
    return folder


def with_neighbours(folder: Path) -> Path:
    """A folder with weights and config.json, together with the tokenizer and processor beside
    it."""
    if folder.name != ENCODER or any((folder / name).is_file() for name in TOKENIZER):
        return folder
    beside = processor_files([folder / name for name in NEIGHBOURS])
    own = {path.name: path for path in folder.iterdir() if path.is_file()}
    if not beside.keys() & set(TOKENIZER):
        return folder
    links = beside | own
    place = place_of(f"{folder.resolve().parent.name}-{ENCODER}", links.values())
    return place if (place / "config.json").is_file() else write_description(place, {}, links)


def describe_file(path: Path, released: Callable[[], Path]) -> Path:
    if is_gguf(path):
        return describe_gguf(path)
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle file, which can run any code when opened; take a version in "
            f"safetensors or GGUF, or convert it where you trust it"
        )
    if path.suffix == ".json" or (path.suffix == ".safetensors" and is_of_folder(path)):
        return describe_folder(path.parent)
    if path.suffix == ".safetensors":
        return describe_safetensors(path, released)
    with path.open("rb") as file:
        old = file.read(4) in OLD_MAGICS
    kind = "an old form of GGUF (GGML)" if old else "neither GGUF nor safetensors"
    raise CheckpointError(
        f"{path} is a file, and {kind}; give a GGUF or safetensors file, or the folder with "
        "config.json and weights"
    )


def is_of_folder(path: Path) -> bool:
    """Whether a weights file belongs to the checkpoint in its folder."""
    config = path.parent / "config.json"
    if not config.is_file() or read_json(config).get("model_type") != "qwen2_5_vl":
        return False
    is_standard = path.name == "model.safetensors" or path.name.startswith("model-000")
    return is_standard or len(list(path.parent.glob("*.safetensors"))) == 1

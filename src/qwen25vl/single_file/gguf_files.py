"""GGUF files that belong together: the parts of a split one, and the vision encoder beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen25vl.errors import CheckpointError, HubError
from qwen25vl.single_file import official
from qwen25vl.single_file.description import place_of, write_description
from qwen25vl.single_file.gguf_config import (
    OLLAMA,
    PROJECTOR_TYPE,
    Keys,
    architecture,
    describe_config,
    describe_generation,
    describe_preprocessor,
    is_projector,
)
from qwen25vl.single_file.gguf_header import GgufHeader, is_gguf, read_header
from qwen25vl.single_file.gguf_tokenizer import read_tokenizer

SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
EXACT_FIRST = ("bf16", "f32", "f16", "q8_0")  # of several vision encoders
TEMPLATES = ("chat_template.jinja", "chat_template.json")
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


def describe_gguf(path: Path, projector: Path | None = None) -> Path:
    """The folder that describes a GGUF file of the language model, or Ollama's with both parts.

    projector: the file of the vision encoder; without it, it is looked for beside the other. Raises
    CheckpointError for damaged files, other models, and where the encoder is missing.
    """
    header = read_header(path)
    if architecture(header) != OLLAMA and is_projector(header):
        raise CheckpointError(
            f"{path} holds the vision encoder alone; give the file of the language model"
        )
    parts = parts_of(path)
    if has_vision(header):
        vision, files = header, parts
    else:
        projector = projector or find_projector(path, header)
        vision, files = read_header(projector), [*parts, projector]
        if not is_projector(vision):
            raise CheckpointError(f"{projector} holds no vision encoder")
    beside = {
        name: path.parent / name
        for name in (*TEMPLATES, *PREPROCESSORS)
        if (path.parent / name).is_file()
    }
    place = place_of(path.name.removesuffix(".gguf"), [*files, *beside.values()])
    if (place / "config.json").is_file():
        return place
    whole = join_headers([header, *map(read_header, parts[1:])])
    links = {f"{number}.gguf": file for number, file in enumerate(files)}
    return write_description(place, describe(whole, vision, beside), links | beside)


def describe(text: GgufHeader, vision: GgufHeader, beside: dict[str, Path]) -> dict[str, Any]:
    """The contents of the JSON files that are not there."""
    tokenizer, tokenizer_config = read_tokenizer(text.metadata, text.path)
    template = text.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or "<|image_pad|>" not in template:
        template = official.CHAT_TEMPLATE  # older files have one for texts alone
    values = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": describe_generation(text),
        "preprocessor_config.json": describe_preprocessor(vision),
        "config.json": describe_config(text, vision),
    }
    if not any(name in beside for name in TEMPLATES):
        values["chat_template.json"] = {"chat_template": template}
    return {name: content for name, content in values.items() if name not in beside}


def has_vision(header: GgufHeader) -> bool:
    """Whether a file holds both parts, as Ollama's does."""
    return any(name.startswith("v.") for name in header.tensors)


def parts_of(path: Path) -> list[Path]:
    """All parts of a split file, or the file. Raises CheckpointError where one is missing."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    names = [
        f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, 1 + int(match[3]))
    ]
    parts = [path.parent / name for name in names]
    if absent := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(f"{path} is one part of several; missing are {', '.join(absent)}")
    return parts


def join_headers(headers: Sequence[GgufHeader]) -> GgufHeader:
    """All tensors, with the first part's metadata."""
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    return GgufHeader(headers[0].path, headers[0].metadata, tensors)


def find_projector(path: Path, text: GgufHeader) -> Path:
    """The vision encoder in the same folder whose width is the language model's.

    Raises CheckpointError where there is none.
    """
    width = Keys(text, f"{architecture(text)}.").need("embedding_length")
    fitting = [
        other
        for other in sorted(path.parent.glob("*.gguf"))
        if "mmproj" in other.name.lower() and fits(read_header(other), width)
    ]
    if not fitting:
        raise CheckpointError(
            f"{path} holds the language model alone, and no vision encoder of it lies beside it; "
            "download the repository's mmproj file to the same folder"
        )
    own = projector_name(path)
    return min(fitting, key=lambda other: (other.name != own, rank(other)))


def projector_name(path: Path) -> str:
    """The name of the vision encoder's file that this package writes beside a text model's."""
    return f"mmproj-{path.name}"


def choose_files(names: Sequence[str], kind: str, repository: str) -> tuple[list[str], str | None]:
    """Of a repository's files: those of the language model in a kind such as "Q4_K_M", and a vision
    encoder.

    Raises HubError where no file, or more than one, is of this kind.
    """
    texts = [name for name in names if name.endswith(".gguf") and "mmproj" not in name.lower()]
    pattern = re.compile(rf"(?<![a-z0-9_]){re.escape(kind.lower())}(?![a-z0-9_])")
    found = sorted(name for name in texts if pattern.search(name.lower()))
    groups = {SPLIT.sub(r"\1", name) for name in found}
    if len(groups) != 1:
        which = "none" if not groups else f"{len(groups)} files"
        there = ", ".join(sorted(texts)) or "no GGUF files at all"
        raise HubError(f"{repository} has {which} of the kind {kind!r}; it has {there}")
    projectors = [name for name in names if name.endswith(".gguf") and name not in texts]
    return found, min(sorted(projectors), key=rank, default=None)


def fits(header: GgufHeader, width: object) -> bool:
    return (
        is_projector(header)
        and header.metadata.get("clip.projector_type") == PROJECTOR_TYPE
        and header.metadata.get("clip.vision.projection_dim") in (None, width)
    )


def rank(path: str | Path) -> int:
    """Of vision encoders in several types: those that hold the released numbers first."""
    name = str(path).rpartition("/")[2].lower()
    return next((n for n, kind in enumerate(EXACT_FIRST) if kind in name), len(EXACT_FIRST))


def find_text_file(folder: Path) -> Path:
    """The one language model among a folder's GGUF files.

    Raises CheckpointError where there are several or none.
    """
    files = [path for path in sorted(folder.glob("*.gguf")) if is_gguf(path)]
    first = [path for path in files if (m := SPLIT.fullmatch(path.name)) is None or int(m[2]) == 1]
    texts = [path for path in first if "mmproj" not in path.name.lower()]
    if len(texts) == 1:
        return texts[0]
    if not texts:
        raise CheckpointError(f"{folder} has GGUF files, but none of a language model")
    names = ", ".join(path.name for path in texts)
    raise CheckpointError(f"{folder} has several models; name one of the files: {names}")

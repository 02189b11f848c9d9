"""The inputs of a job: files, folders, patterns, files of requests, pictures in memory.

Names are listed at once, which is cheap; contents are read when it is their turn.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen25vl.errors import UsageError

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic",
    ".heif", ".avif", ".pdf",
)  # fmt: skip
Kind = Literal["file", "requests", "openai", "parquet", "memory", "messages"]


@dataclass(frozen=True)
class Source:
    """name: what the output calls it. path: of a file. content: bytes of a picture or document, or
    messages."""

    kind: Kind
    name: str
    path: Path | None = None
    content: Any = None


@dataclass
class Inputs:
    """num_ignored: files in folders that are neither pictures nor documents by their names."""

    sources: list[Source]
    num_ignored: int = 0

    @property
    def is_openai(self) -> bool:
        return bool(self.sources) and self.sources[0].kind == "openai"


def list_inputs(given: Iterable[Any]) -> Inputs:
    """Raises UsageError for what leads to nothing, and where OpenAI's requests are mixed with
    others."""
    inputs = Inputs([])
    seen: set[str] = set()
    for number, one in enumerate(given):
        for source in list_one(one, number, inputs):
            if source.path is not None:
                if str(source.path) in seen:
                    continue
                seen.add(str(source.path))
            inputs.sources.append(source)
    if not inputs.sources:
        raise UsageError("there is no input: no pictures, documents or requests")
    if len({source.kind == "openai" for source in inputs.sources}) > 1:
        raise UsageError("a batch file of OpenAI's kind cannot be mixed with other inputs")
    return inputs


def list_one(one: Any, number: int, inputs: Inputs) -> Iterator[Source]:
    if isinstance(one, str | os.PathLike):
        yield from list_path(os.fspath(one), inputs)
    elif isinstance(one, bytes | bytearray):
        yield Source("memory", f"input {number + 1}", content=bytes(one))
    elif isinstance(one, list | dict):
        yield Source("messages", f"input {number + 1}", content=one)
    elif hasattr(one, "save") and hasattr(one, "mode"):
        yield Source("memory", f"input {number + 1}", content=to_png(one))
    else:
        expected = "a path, bytes, a picture of Pillow, messages or a request"
        raise UsageError(f"input {number + 1} is of type {type(one).__name__}; expected {expected}")


def list_path(text: str, inputs: Inputs) -> Iterator[Source]:
    if text.lower().startswith(("http://", "https://")):
        content = [{"type": "image_url", "image_url": {"url": text}}]
        yield Source("messages", text, content={"content": content})
        return
    path = Path(text)
    if path.is_dir():
        yield from list_folder(path, inputs)
    elif path.exists() or path.is_symlink():
        yield Source(kind_of(path), text, path)
    elif glob.has_magic(text):
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (an absolute pattern)
        if not matches:
            raise UsageError(f"nothing matches {text}")
        for match in matches:
            yield from list_path(match, inputs)
    else:
        raise UsageError(f"{text} does not exist")


def list_folder(folder: Path, inputs: Inputs) -> Iterator[Source]:
    """Pictures and documents in it and below, in the order of their names; hidden ones are none."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(base) / name
            if name.startswith("."):
                continue
            if path.suffix.lower() not in SUFFIXES:
                inputs.num_ignored += 1
                continue
            yield Source("file", str(path), path)


def kind_of(path: Path) -> Kind:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    if suffix not in (".jsonl", ".ndjson"):
        return "file"
    first = first_line(path)
    return "openai" if isinstance(first, dict) and {"custom_id", "body"} <= first.keys() else (
        "requests"
    )  # fmt: skip


def first_line(path: Path) -> Any:
    """The first line of a file of requests, None for no JSON: the line is told when it comes."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    return json.loads(line)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        return None
    raise UsageError(f"{path} is empty; expected a request a line")


def to_png(picture: Any) -> bytes:
    import io

    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()

"""Which files of a folder hold its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from qwen25vl.config_values import read_json
from qwen25vl.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD = re.compile(r".+-(\d{5})-of-(\d{5})[.]safetensors")
MAX_LISTED = 20
MAX_FILE_NAME = 255  # bytes; asking a system about a longer one is an error


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files with weights, each with the names that the index promises to be in it."""
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: set()}
    if not (folder / INDEX_FILE).is_file():
        found = sorted(folder.glob("*.gguf")) or sorted(folder.glob("*.safetensors"))
        if len(found) == 1 or any(path.suffix == ".gguf" for path in found):
            return {path: set() for path in found}
        if any(SHARD.fullmatch(path.name) for path in found):
            return {path: set() for path in whole_shards(found)}
        if any(path for pattern in PICKLES for path in folder.glob(pattern)):
            raise CheckpointError(
                f"{folder} holds its weights as pickle files, which can run any code when opened; "
                f"take a version in safetensors, or convert it where you trust it"
            )
        raise CheckpointError(
            f"{folder} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE} "
            "(of a repository with GGUF files name one by its type, as in owner/name:Q4_K_M)"
        )
    files: dict[Path, set[str]] = {}
    for name, file_name in read_weight_map(folder / INDEX_FILE).items():
        files.setdefault(folder / file_name, set()).add(name)
    if absent := sorted(path.name for path in files if not path.is_file()):
        raise CheckpointError(
            f"{folder} is incomplete: {listed(absent)} of {INDEX_FILE} missing; download it again"
        )
    return files


def whole_shards(found: Sequence[Path]) -> list[Path]:
    """The files that are numbered as parts of one checkpoint, where no index lists them.

    Raises CheckpointError unless they are all there.
    """
    numbered = {path: match for path in found if (match := SHARD.fullmatch(path.name))}
    totals = {match[2] for match in numbered.values()}
    numbers = sorted(int(match[1]) for match in numbered.values())
    if len(totals) != 1 or numbers != [*range(1, int(max(totals)) + 1)]:
        names = listed(path.name for path in numbered)
        raise CheckpointError(
            f"{found[0].parent} has no {INDEX_FILE}, and its files are no whole set: {names}; "
            "download it again"
        )
    return list(numbered)


def read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        is_file_name(name) for name in weight_map.values()
    ):
        raise CheckpointError(
            f"{index}: weight_map must give the name of a file in the same folder for each tensor"
        )
    return weight_map


def is_file_name(value: object) -> bool:
    if not isinstance(value, str) or PurePath(value).name != value or "\0" in value:
        return False
    return len(value.encode("utf-8", "surrogatepass")) <= MAX_FILE_NAME


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """The first of them, and how many there are more."""
    items = list(items)
    more = len(items) - MAX_LISTED
    return separator.join(items[:MAX_LISTED]) + (f"{separator}and {more} more" if more > 0 else "")

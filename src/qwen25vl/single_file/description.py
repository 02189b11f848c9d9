"""The folder that describes a single file: JSON files in the hub's form, and links to the weights.

It is kept in the user's cache, under a name made of the paths, sizes and times of all files that it
was made of, so another file never meets an old description. A cache that cannot be written is
replaced by a temporary folder for as long as the process lives.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from qwen25vl.errors import CheckpointError

FORMAT = 1  # of the description; a change makes all kept ones useless
temporary_folders: list[tempfile.TemporaryDirectory[str]] = []


def cache_folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "qwen25vl" / "files"


def place_of(name: str, sources: Iterable[Path]) -> Path:
    """Where the description of some files is kept. name: for people."""
    facts = [str(FORMAT)]
    for path in sources:
        status = path.stat()
        facts += [str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)]
    digest = sha256("\0".join(facts).encode()).hexdigest()[:12]
    return cache_folder() / f"{name}-{digest}"


def write_description(
    place: Path, values: Mapping[str, Mapping[str, Any]], links: Mapping[str, Path]
) -> Path:
    """Write JSON files and links by name, all or nothing; the folder.

    Raises CheckpointError where neither the cache nor a temporary folder can be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=".new-"))
    except OSError:
        return write_temporary(place.name, values, links)
    try:
        fill(partial, values, links)
        partial.rename(place)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not (place / "config.json").is_file():  # else another process was faster
            return write_temporary(place.name, values, links)
    return place


def write_temporary(
    name: str, values: Mapping[str, Mapping[str, Any]], links: Mapping[str, Path]
) -> Path:
    try:
        folder = tempfile.TemporaryDirectory(prefix="qwen25vl-")
        temporary_folders.append(folder)  # removed at the end of the process
        place = Path(folder.name) / name
        place.mkdir()
        fill(place, values, links)
    except OSError as error:
        raise CheckpointError(f"no folder can be written for {name}: {error}") from error
    return place


def fill(folder: Path, values: Mapping[str, Mapping[str, Any]], links: Mapping[str, Path]) -> None:
    for name, path in links.items():
        (folder / name).symlink_to(path.resolve())
    for name, content in values.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8", errors="replace")

"""What the commands that write a checkpoint to a new folder have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwen25vl.cli.opening import say
from qwen25vl.errors import UsageError
from qwen25vl.single_file.gguf_files import projector_name


def write_checkpoint(names: tuple[str | None, ...], work: Callable[[], Path], use: str) -> int:
    """Let `work` write a folder and say what became of it.

    names: the command's folders and models, the one to write last. use: what the new folder is good
    for. Raises UsageError for an empty name.
    """
    if "" in names:
        raise UsageError("a model or folder has an empty name")
    try:
        target = work()
    except KeyboardInterrupt:
        say(f"interrupted: {names[-1]} was not written, and nothing is left of what was begun")
        raise
    written = (
        target.iterdir() if target.is_dir() else (target, target.with_name(projector_name(target)))
    )
    size = sum(path.stat().st_size for path in written)
    say(f"{target} is ready: {size / 1e9:.2f} GB; use it with -m{use}")
    return 0

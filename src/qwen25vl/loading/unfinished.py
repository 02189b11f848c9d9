"""A folder that is being written under another name, by one process at a time,
until it is complete.

The lock is the operating system's, on the folder itself: it goes with the process, however that
ends. So what a killed process left behind is told apart from what another is still writing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen25vl.errors import UsageError


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target`, to be renamed to it.
    Left by an error or Ctrl-C it is removed.

    Raises UsageError while another process has it.
    What a killed process left in it is removed with a warning.
    """
    partial = target.with_name(f".{target.name}.unfinished")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(partial, target):
        try:
            if any(partial.iterdir()):
                warnings.warn(f"{partial}, left behind by a killed run, is replaced", stacklevel=4)
                clear(partial)
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def locked(folder: Path, target: Path) -> Iterator[None]:
    """Make a folder and keep other processes from it. Raises UsageError where one has it."""
    busy = UsageError(
        f"another process is writing {target} at this moment; wait for it, or give another folder"
    )
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            warnings.warn(
                f"{folder} cannot be locked ({error.strerror}); no other process may write it",
                stacklevel=5,
            )
        if not is_at(descriptor, folder):  # the other process finished and renamed it, just now
            raise busy
        yield
    finally:
        os.close(descriptor)


def is_at(descriptor: int, folder: Path) -> bool:
    """Whether the folder that was opened still has this name."""
    return folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a complete folder; what it replaces is out of the way first, and deleted last."""
    old = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    had_one = target.exists()
    if had_one:
        target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        if had_one and not target.exists():
            old.rename(target)
        raise
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file's or folder's content written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

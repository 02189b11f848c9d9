"""The files of a job, of which the last few documents are kept for their next pages."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 2**30
KEPT_BYTES = 256 * 2**20
MAX_KEPT = 64
SMALL_BYTES = 2**20  # up to here, reading takes less time than asking a thread to do it
Name = tuple[Path, int, int]


class KeptFiles:
    """kept: by path, size and time of the last change, the least recently used first."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.kept: dict[Name, asyncio.Task[bytes]] = {}

    async def read(self, path: Path, *, is_kept: bool) -> bytes:
        """is_kept: whether others will ask for the same file. Raises OSError."""
        state = check_file(path)
        if state.st_size <= SMALL_BYTES:
            return path.read_bytes()
        if not is_kept:
            return await asyncio.to_thread(path.read_bytes)
        name = (path, state.st_size, state.st_mtime_ns)
        task = self.kept.pop(name, None)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(path.read_bytes))
        self.kept[name] = task
        self.drop()
        try:
            return await asyncio.shield(task)
        except OSError:
            self.kept.pop(name, None)
            raise

    def drop(self) -> None:
        """The oldest ones, until the rest fits."""
        total = sum(size for _, size, _ in self.kept)
        while len(self.kept) > MAX_KEPT or (len(self.kept) > 1 and total > self.max_bytes):
            oldest = next(iter(self.kept))
            total -= oldest[1]
            del self.kept[oldest]


def check_file(path: Path) -> os.stat_result:
    """Raises OSError for what is no file of at most 1 GiB."""
    state = path.stat()
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if state.st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, "it is larger than 1 GiB", str(path))
    return state

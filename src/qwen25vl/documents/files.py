"""The files of a job, of which the last few documents are kept for their next pages."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 2**30
KEPT_BYTES = 256 * 2**20


class KeptFiles:
    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.kept: dict[tuple[Path, int, int], asyncio.Task[bytes]] = {}

    async def read(self, path: Path) -> bytes:
        """Raises OSError."""
        state = await asyncio.to_thread(check_file, path)
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
        while len(self.kept) > 1 and sum(size for _, size, _ in self.kept) > self.max_bytes:
            del self.kept[next(iter(self.kept))]
        while len(self.kept) > 64:
            del self.kept[next(iter(self.kept))]


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

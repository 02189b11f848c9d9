"""The file beside an output: a lock against a second job, the settings, what is being asked."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen25vl.errors import UsageError


class LockedFile:
    """A JSON file that one process holds. It stays when the job is over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def open(self) -> None:
        """Raises UsageError if another job has it."""
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UsageError(f"another job writes {self.path.with_suffix('')}") from None

    def read(self) -> dict[str, Any]:
        """What the last job left here, {} for nothing or half of it."""
        data = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)
        try:
            content = json.loads(data)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, content: Mapping[str, Any]) -> None:
        data = json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "replace")
        written = os.pwrite(self.descriptor, data, 0)
        if written < len(data):
            os.pwrite(self.descriptor, data[written:], written)
        os.ftruncate(self.descriptor, len(data))

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

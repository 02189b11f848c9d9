"""Which inputs were being asked when a job's process died.

An input can end the process itself: by a fault in a library, or by taking all memory. Nobody is
left to write that down, so each input is noted before it is asked. After a crash, those that were
noted are asked alone and last; what was alone when the process died again is counted.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path


class Suspects:
    """path: a file with a line for each event: `+KEY` begun, `!KEY` begun alone, `-KEY` over,
    `*KEY` an earlier crash alone. It survives the process, not the machine: nothing is synced."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.descriptor = -1
        self.crashes: Counter[str] = Counter()
        self.keys: set[str] = set()

    def open(self) -> None:
        if self.path is None:
            return
        if self.path.exists():
            self.load(self.path.read_text("utf-8", "replace").split("\n"))
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for key in self.keys:
            self.note("+", key)
        for key, number in self.crashes.items():
            for _ in range(number):
                self.note("*", key)

    def load(self, lines: list[str]) -> None:
        alone: set[str] = set()
        for line in lines:
            mark, key = line[:1], line[1:]
            if mark in ("+", "!"):
                self.keys.add(key)
            if mark == "!":
                alone.add(key)
            if mark == "*":
                self.crashes[key] += 1
            if mark == "-":
                self.keys.discard(key)
                alone.discard(key)
                self.crashes.pop(key, None)
        self.crashes.update(alone)

    def note(self, mark: str, key: str) -> None:
        if self.descriptor >= 0:
            os.write(self.descriptor, f"{mark}{key}\n".encode())

    def over(self, key: str) -> None:
        self.keys.discard(key)
        self.crashes.pop(key, None)
        self.note("-", key)

    def close(self) -> None:
        """The process ends by itself: there is nothing to suspect."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self.path is None:
            return
        left = [*(f"+{key}" for key in self.keys), *(f"*{key}" for key in self.crashes.elements())]
        if left:
            self.path.write_text("".join(f"{line}\n" for line in left))
        else:
            self.path.unlink(missing_ok=True)

"""The output of a job: a line for each result, appended as a whole, found again after a crash.

While a job runs, its files grow in the order in which answers come. At its end they are put into
the order of the inputs, in one step. Beside OUT stands OUT.job: the settings, under a lock.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen25vl.documents.lock import LockedFile
from qwen25vl.documents.results import Lines, Result, beside, source_of, to_line
from qwen25vl.errors import Qwen25VLError, UsageError

SYNC_LINES, SYNC_SECONDS = 64, 1.0
UNKNOWN = 2**62  # the place of what is no input any more


class OutputError(Qwen25VLError, OSError):
    """The output cannot be written: a full disk, a folder that is gone."""


@dataclass(slots=True)
class Entry:
    """The line of a slot. place: of the input, among all."""

    key: str
    number: int
    offset: int
    length: int
    is_failed: bool
    place: int = UNKNOWN


class GrowingFile:
    """A file to which whole lines are appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        self.size = 0
        self.num_unsynced = 0
        self.synced = time.monotonic()

    def open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.descriptor = os.open(self.path, flags, 0o666)
        self.size = os.fstat(self.descriptor).st_size

    def cut(self, size: int) -> None:
        """Drop what a crash left behind of a line."""
        os.ftruncate(self.descriptor, size)
        self.size = size

    def append(self, line: bytes) -> int:
        """The offset of the line, which is in the file as a whole or not at all."""
        if self.descriptor < 0:
            self.open()
        start, left = self.size, memoryview(line)
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError:
            os.ftruncate(self.descriptor, start)
            raise
        self.size += len(line)
        self.num_unsynced += 1
        if self.num_unsynced >= SYNC_LINES or time.monotonic() - self.synced >= SYNC_SECONDS:
            self.sync()
        return start

    def sync(self) -> None:
        if self.num_unsynced:
            self.num_unsynced = 0
            os.fsync(self.descriptor)
        self.synced = time.monotonic()

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line with its offset, the last one perhaps without an end."""
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                yield offset, line
                offset += len(line)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Journal:
    """The files of a job with the line of each slot. settings: what decides the answers, under the
    names of the options. entries: by slot."""

    def __init__(self, path: Path, lines: Lines, settings: Mapping[str, Any]) -> None:
        self.path, self.format = path, lines
        self.settings = json.loads(json.dumps(settings, default=str))
        self.files = [GrowingFile(Path(beside(path, name))) for name in lines.names]
        self.entries: dict[str, Entry] = {}
        self.num_dead = 0
        self.is_fresh = True
        self.beside = LockedFile(path.with_name(path.name + ".job"))

    def open(self, *, resume: bool) -> None:
        """Raises UsageError: an output that is there already, another job that writes it, settings
        that differ from those it was begun with; OutputError."""
        if not self.path.parent.is_dir():
            raise UsageError(f"{self.path.parent} is no folder; the output would go there")
        with self.telling():
            self.beside.open()
        try:
            there = [file.path for file in self.files if file.path.exists()]
            if there and not resume:
                remedy = "resume continues it, another name starts anew"
                raise UsageError(f"{there[0]} is there already; {remedy}")
            before = self.beside.read()
            if there and before:
                check_settings(self.path, before.get("settings", {}), self.settings)
            with self.telling():
                self.beside.write({"settings": self.settings})
                self.files[0].open()
                for number, file in enumerate(self.files):
                    if file.path.exists():
                        self.load(number, file)
        except BaseException:
            self.close()
            raise

    def load(self, number: int, file: GrowingFile) -> None:
        if file.descriptor < 0:
            file.open()
        whole = 0
        for offset, line in file.lines():
            if not line.endswith(b"\n"):
                break
            whole = offset + len(line)
            try:
                slot, key, is_failed = self.format.decode(number, json.loads(line))
            except (ValueError, KeyError, TypeError):
                if line.strip(b"\0 \n"):
                    got = f"{file.path} has a line that no job wrote, at byte {offset}"
                    raise UsageError(f"{got}; give another output") from None
                continue  # what a power failure may leave behind
            self.enter(slot, Entry(key, number, offset, len(line), is_failed))
        if whole < file.size:
            file.cut(whole)

    def enter(self, slot: str, entry: Entry) -> None:
        self.num_dead += slot in self.entries
        self.entries[slot] = entry

    def find(self, slot: str, key: str) -> Entry | None:
        """The line of an input, if it was asked under the same settings."""
        entry = self.entries.get(slot)
        return entry if entry is not None and entry.key == key else None

    def write(self, result: Result, place: int) -> None:
        """Raises OutputError."""
        number, line = self.format.encode(result)
        data = to_line(line)
        with self.telling():
            offset = self.files[number].append(data)
        is_failed = result.error is not None
        self.enter(result.slot, Entry(result.key, number, offset, len(data), is_failed, place))

    def sync(self) -> None:
        with self.telling():
            for file in self.files:
                file.sync()

    def read(self, entry: Entry) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self.files[entry.number].read(entry.offset, entry.length))
        return line

    def finish(self, *, in_order: bool) -> None:
        """Put the lines into the order of the inputs, without what differs from run to run; else
        only drop the lines that later ones replace. Lines of inputs that this run was not given
        stay, before all others."""
        if not in_order and not self.num_dead:
            return
        listed = {source_of(slot) for slot, each in self.entries.items() if each.place != UNKNOWN}
        kept = [
            entry
            for slot, entry in self.entries.items()
            if entry.place != UNKNOWN or source_of(slot) not in listed
        ]
        if in_order:
            kept.sort(key=lambda entry: (entry.place != UNKNOWN, entry.place, entry.offset))
        else:
            kept.sort(key=lambda entry: entry.offset)
        for number, file in enumerate(self.files):
            if file.descriptor >= 0:
                mine = [entry for entry in kept if entry.number == number]
                self.replace(file, number, mine, in_order)

    def replace(self, file: GrowingFile, number: int, entries: list[Entry], in_order: bool) -> None:
        if number and not entries:
            file.path.unlink()
            file.close()
            return
        with self.telling():
            write_whole(file.path, (self.rewritten(entry, in_order) for entry in entries))
        file.close()
        file.open()

    def rewritten(self, entry: Entry, in_order: bool) -> bytes:
        line = self.read(entry)
        return to_line(self.format.settle(line) if in_order else line)

    def close(self) -> None:
        try:
            self.sync()
        finally:
            for file in self.files:
                file.close()
            self.beside.close()

    def telling(self) -> Telling:
        return Telling(self)


class Telling:
    """Errors of the operating system as one that says what is kept and how to go on."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, Qwen25VLError):
            kept = len(self.journal.entries)
            what = error.strerror or str(error)
            raise OutputError(
                f"{self.journal.path} cannot be written: {what}; {kept} results are kept, and the "
                "job goes on with --resume once there is room"
            ) from None


def write_whole(path: Path, parts: Iterator[bytes]) -> None:
    """A file that appears complete, or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(path.stat().st_mode if path.exists() else 0o666 & ~current_mask())
        os.replace(name, path)  # noqa: PTH105 (one word for one step)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def current_mask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """What was renamed is on the disk under its new name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        words = [
            f"{name} was {shown(before.get(name))} and is {shown(now.get(name))}"
            for name in changed
        ]
        remedy = "take the same settings, or another output"
        raise UsageError(f"{path} was begun with other settings: {'; '.join(words)}; {remedy}")


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "not given" if value is None else text if len(text) <= 60 else text[:60] + "…"

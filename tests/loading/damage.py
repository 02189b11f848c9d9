"""What a damaged file may lead to: a model that answers, or one of the package's own errors that
names the file; soon, and in no more memory than twice the folder."""

from __future__ import annotations

import gc
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from qwen25vl.errors import Qwen25VLError
from qwen25vl.memory import process_bytes, release_free_memory

Load, Use = Callable[[], Any], Callable[[Any], object]
SECONDS = 10  # of computing
ROOM = 32 << 20  # what a small model takes beside its folder while it is loaded and answers
MAPPED = 512 << 20  # of address space, of which much is never touched
LONGEST = 4000  # letters of a message


class TooLongError(BaseException):
    """Work that does not end."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Of the processor's time: a process may be stopped meanwhile."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """A limit to the address space: what asks for far more than the folder holds fails."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which resident memory grew at most."""
    release_free_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found = process_bytes()
    work()
    return process_bytes()["peak"] - found["anonymous"] - found["mapped"]


def fault_of(load: Load, use: Use, path: Path, size: int) -> tuple[str, bool]:
    """What is wrong with how a damaged file is taken, or nothing, and whether it was refused.

    use: works with what `load` gave. path: the file, which an error of `load` must name, or its
    folder; size: bytes of the folder.
    """
    errors: list[BaseException] = []
    loaded: list[bool] = []

    def attempt() -> None:
        try:
            with time_limit(SECONDS), memory_limit(2 * size + MAPPED), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = load()
                loaded.append(True)
                use(made)
        except BaseException as error:
            errors.append(error)

    taken = peak_of(attempt)
    gc.collect()
    if taken > 2 * size + ROOM:
        return f"{taken >> 20} MB of memory", bool(errors)
    names = () if loaded else (path.name, path.stem, str(path.parent))
    return (wrong_error(errors[0], names), True) if errors else ("", False)


def wrong_error(error: BaseException, names: tuple[str, ...]) -> str:
    """What is wrong with an error. names: of which it must give one, if there are any."""
    said = str(error)
    if not isinstance(error, Qwen25VLError):
        where = traceback.extract_tb(error.__traceback__)[-3:]
        calls = "; ".join(f"{Path(call.filename).name} {call.name}: {call.line}" for call in where)
        return f"{type(error).__name__} at {calls}"
    if "\n" in said or len(said) > LONGEST:
        return f"{len(said)} letters in {len(said.splitlines())} lines: {said}"
    if names and not any(name in said for name in names):
        return f"names no file: {type(error).__name__}: {said[:60]}"
    return ""


def faults_of(
    mutants: Iterable[bytes], path: Path, load: Load, use: Use, size: int
) -> tuple[dict[str, bytes], int]:
    """The faults with a mutant for each, and how many mutants were refused."""
    faults: dict[str, bytes] = {}
    num_refused = 0
    for made in mutants:
        path.unlink()  # a link to the whole file may stand there
        path.write_bytes(made)
        fault, is_refused = fault_of(load, use, path, size)
        num_refused += is_refused
        if fault:
            faults.setdefault(fault, made)
    return faults, num_refused

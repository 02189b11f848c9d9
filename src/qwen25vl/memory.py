"""How much memory is free, so that what cannot fit is refused before it starts; and giving back
what is unused."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from qwen25vl.errors import LESS_MEMORY, OutOfMemoryError

CGROUP = Path("/sys/fs/cgroup")
RELEASES: list[Callable[[], None]] = []


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [
        limit for limit in (free_bytes_of_machine(), free_bytes_of_container()) if limit is not None
    ]
    return max(0, min(limits) - mapped_bytes()) if limits else None


def mapped_bytes() -> int:
    """What this process has in memory of the files that it maps, weights above all. The system
    counts it as free, since it may drop it; but then every token would read the weights again."""
    return process_bytes().get("mapped", 0)


def free_bytes_of_machine() -> int | None:
    """Linux: what can be had without swapping, file cache included. Elsewhere: all that is
    installed, if known."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, ValueError, KeyError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def free_bytes_of_container() -> int | None:
    """The limit of a control group (version 2) less its use;
    its file cache can be given up, so it is free."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(
            line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()
        )
        return limit - used + int(statistics["file"])
    except (OSError, ValueError, KeyError):  # no group, or "max": no limit
        return None


def require_bytes(needed: int, device: torch.device, purpose: str) -> None:
    """Raise OutOfMemoryError if a device has less than `needed` bytes free."""
    available = available_bytes(device)
    if available is not None and needed > available:
        raise OutOfMemoryError(
            f"{purpose} needs {gigabytes(needed)} of memory on {device}, only "
            f"{gigabytes(available)} are free; {LESS_MEMORY}"
        )


def gigabytes(count: int) -> str:
    """Bytes for people; below 1 GB to the megabyte."""
    whole, _, digits = f"{count / 1e9:.3f}".partition(".")
    return f"{whole}.{digits[:1] if count >= 1e9 else digits.rstrip('0') or '0'} GB"


def process_bytes() -> dict[str, int]:
    """Linux: the peak of this process's resident memory, and what is resident now, its own and
    mapped from files."""
    status = Path("/proc/self/status")
    lines = (
        dict(re.findall(r"^(\w+):\s+(\d+) kB", status.read_text(), re.MULTILINE))
        if status.exists()
        else {}
    )
    names = {"peak": "VmHWM", "anonymous": "RssAnon", "mapped": "RssFile"}
    return {name: 1024 * int(lines[key]) for name, key in names.items() if key in lines}


def also_release(release: Callable[[], None]) -> None:
    """Let `release_free_memory` call this too: for memory that is kept outside of the heap."""
    RELEASES.append(release)


def release_free_memory() -> None:
    """Give unused memory back to the system: what was registered, and on Linux with glibc unused
    pages of the heap.

    Buffers that are kept for the next operation of the same kind save time (see
    kernels/allocator.py). Between two stages of a request they would only add up: what the vision
    encoder needed, beside what the prompt needs.
    """
    for release in RELEASES:
        release()
    trim_heap()


def trim_heap() -> None:
    """On Linux with glibc: give unused pages of the heaps of all threads back to the system."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)

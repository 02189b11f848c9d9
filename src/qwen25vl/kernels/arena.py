"""Memory for large results that is used again without page faults, and never holds more than what
the caller had live at one moment.

A `Region` is an address range reserved from the system. Its free part is a list of spans: resident
ones, which an earlier result has left, and clean ones, which take no memory until they are written
to. A result goes into the smallest resident span that holds it, or else into clean space.

    |  live  | resident |   live   | resident |            clean ...            |
                                    ^--------------^  a result that fits in neither

Before clean space is used, resident spans are given back until live and resident bytes together
are at most the peak of the live bytes. So reuse costs no memory: the process would have needed
that peak without it. Beside `MAX_IDLE_BYTES` that is the only limit; `release` gives back
everything that is not live.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import weakref
from bisect import insort
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch

from qwen25vl import memory

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 * 2**20
REGION_BYTES = 2**30  # of addresses, not of memory
MAX_IDLE_BYTES = 256 * 2**20
MAP_NORESERVE = 0x4000
MAX_REGIONS = 64  # each is a mapping of the process, whose number the system limits


class Span(NamedTuple):
    """Free bytes start … stop of a region."""

    start: int
    stop: int
    is_resident: bool

    @property
    def size(self) -> int:
        return self.stop - self.start


class Region:
    """Addresses on huge pages; `spans` are free, in order, and no two of a kind touch. Clean spans
    are whole huge pages."""

    def __init__(self, size: int) -> None:
        """Raises OSError where the system has no such range."""
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.map = mmap.mmap(-1, size + HUGE_PAGE_BYTES, flags=kind)
        with suppress(OSError):  # a kernel without huge pages
            self.map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self.map)
        start = -torch.frombuffer(self.view, dtype=torch.uint8).data_ptr() % HUGE_PAGE_BYTES
        self.whole = Span(start, start + size, False)
        self.spans = [self.whole]

    def insert(self, span: Span) -> None:
        """Add a free span, joined with neighbours of its kind."""
        insort(self.spans, span)
        index = self.spans.index(span)
        for left in (index, index - 1):
            if 0 <= left < len(self.spans) - 1:
                a, b = self.spans[left : left + 2]
                if a.stop == b.start and a.is_resident == b.is_resident:
                    self.spans[left : left + 2] = [Span(a.start, b.stop, a.is_resident)]

    def take_clean(self, size: int, index: int) -> int:
        """Where `size` bytes begin that end in clean span `index`, and begin in the resident span
        before it if there is one. The rest of the last huge page becomes resident too."""
        clean = self.spans.pop(index)
        start = clean.start - self.resident_before(clean, index)
        if start < clean.start:
            self.spans.pop(index - 1)
        stop = start + size
        edge = clean.start + round_up(stop - clean.start, HUGE_PAGE_BYTES)
        for rest in (Span(stop, edge, True), Span(edge, clean.stop, False)):
            if rest.size:
                self.insert(rest)
        return start

    def resident_before(self, clean: Span, index: int) -> int:
        """Bytes of the resident span that ends where a clean span at this index begins."""
        before = self.spans[index - 1] if index else None
        return before.size if before and before.stop == clean.start else 0

    def give_back(self, span: Span, num_bytes: int) -> int:
        """Turn up to `num_bytes`, in whole huge pages from the end of a resident span, into a clean
        one; how many."""
        first = round_up(span.start, HUGE_PAGE_BYTES)
        stop = span.stop // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        start = max(first, stop - round_up(num_bytes, HUGE_PAGE_BYTES))
        if start >= stop:
            return 0
        try:
            self.map.madvise(mmap.MADV_DONTNEED, start, stop - start)
        except OSError:
            return 0  # locked memory
        self.spans.remove(span)
        for part in (
            Span(span.start, start, True),
            Span(start, stop, False),
            Span(stop, span.stop, True),
        ):
            if part.size:
                self.insert(part)
        return stop - start

    def close(self) -> None:
        self.view.release()
        self.map.close()


class Block(weakref.ref[memoryview]):
    """A live result's place; it tells when the last tensor on it is gone."""

    __slots__ = ("region", "start", "stop")
    region: Region
    start: int
    stop: int


class Arena:
    """All regions, for all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.regions: list[Region] = []
        self.live: dict[int, Block] = {}  # by id, since a weak reference to a buffer has no hash
        # Blocks whose tensors are gone. The garbage collector may find one while this thread holds
        # the lock, so only the next call takes them in.
        self.freed: deque[Block] = deque()
        self.live_bytes = self.resident_bytes = self.peak_bytes = 0  # resident: those not live
        self.is_open = is_wanted()
        self.is_known_to_fork = False

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, num_bytes: int
    ) -> torch.Tensor | None:
        """A tensor on the CPU with unset numbers; None where there is no room or no such system."""
        with self.lock:
            self.collect()
            size = round_up(num_bytes, PAGE_BYTES)
            place = self.place_resident(size) or self.place_clean(size)
            if place is None:
                return None
            region, start = place
            view = region.view[start : start + num_bytes]
            block = Block(view, self.freed.append)
            block.region, block.start, block.stop = region, start, start + size
            self.live[id(block)] = block
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return torch.frombuffer(view, dtype=dtype).resize_(shape)

    def collect(self) -> None:
        """Take in what was freed."""
        while self.freed:
            block = self.freed.popleft()
            del self.live[id(block)]
            size = block.stop - block.start
            block.region.insert(Span(block.start, block.stop, True))
            self.live_bytes -= size
            self.resident_bytes += size
        if self.resident_bytes > MAX_IDLE_BYTES:
            self.give_back(self.resident_bytes - MAX_IDLE_BYTES)

    def place_resident(self, size: int) -> tuple[Region, int] | None:
        """Room in the smallest resident span that holds it."""
        fitting = [
            (span.size, number, span)
            for number, region in enumerate(self.regions)
            for span in region.spans
            if span.is_resident and span.size >= size
        ]
        if not fitting:
            return None
        _, number, span = min(fitting)
        region = self.regions[number]
        region.spans.remove(span)
        if span.size > size:
            region.insert(Span(span.start + size, span.stop, True))
        self.resident_bytes -= size
        return region, span.start

    def place_clean(self, size: int) -> tuple[Region, int] | None:
        """Room at the clean span behind the largest resident one."""
        found = self.find_clean(size)
        if found is None and self.add_region(size):
            found = self.find_clean(size)
        if found is None:
            return None
        region, index = found
        before = sum(span.size for span in region.spans if span.is_resident)
        start = region.take_clean(size, index)
        self.resident_bytes += sum(span.size for span in region.spans if span.is_resident) - before
        peak = max(self.peak_bytes, self.live_bytes + size)
        self.give_back(self.live_bytes + size + self.resident_bytes - peak)
        return region, start

    def find_clean(self, size: int) -> tuple[Region, int] | None:
        fitting = [
            (before, -number, -index)
            for number, region in enumerate(self.regions)
            for index, span in enumerate(region.spans)
            if not span.is_resident
            and (before := region.resident_before(span, index)) + span.size >= size
        ]
        if not fitting:
            return None
        _, number, index = max(fitting)
        return self.regions[-number], -index

    def add_region(self, size: int) -> bool:
        """Reserve addresses; not where they are limited, since others would miss them."""
        if not self.is_open or len(self.regions) >= MAX_REGIONS or has_limited_addresses():
            return False
        try:
            region = Region(max(REGION_BYTES, round_up(size, HUGE_PAGE_BYTES)))
        except (OSError, ValueError):
            return False
        self.regions.append(region)
        if not self.is_known_to_fork:
            self.is_known_to_fork = True
            release = self.lock.release
            os.register_at_fork(
                before=self.lock.acquire, after_in_parent=release, after_in_child=release
            )
            memory.also_release(self.release)
        return True

    def give_back(self, num_bytes: int) -> None:
        """Give resident bytes back to the system, the smallest spans first."""
        if num_bytes <= 0:
            return
        spans = [
            (span.size, number, span)
            for number, region in enumerate(self.regions)
            for span in region.spans
            if span.is_resident
        ]
        for _, number, span in sorted(spans):
            given = self.regions[number].give_back(span, num_bytes)
            self.resident_bytes -= given
            num_bytes -= given
            if num_bytes <= 0:
                return

    def release(self) -> None:
        """Give back all that is not live, and the addresses of regions that hold nothing."""
        with self.lock:
            self.collect()
            self.give_back(self.resident_bytes)
            self.peak_bytes = self.live_bytes
            for region in [r for r in self.regions if r.spans == [r.whole]]:
                self.regions.remove(region)
                region.close()


def round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def is_wanted() -> bool:
    """On Linux, where memory can be given back by the page."""
    return sys.platform.startswith("linux") and os.environ.get("QWEN25VL_KEEP_MALLOC") != "1"


def has_limited_addresses() -> bool:
    import resource  # not on Windows

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


ARENA = Arena()

"""Where the memory of tensors comes from, on Linux with glibc; two policies for the whole process.

Left to itself, glibc maps every buffer above a threshold afresh and unmaps it when it is freed, so
that the kernel has to clear every page of every result again: 10,268 page faults and 11 ms of
system time for each product [5476, 1280]·[1280, 3840] in bfloat16.

`keep_large_buffers`, for training: everything comes from the heap, which is never given back. This
takes no faults. But torch asks for aligned memory, and an aligned block that was freed does not
serve the next request of its size: the heap was seen to grow to 1.9 times what existed at the same
time.

`map_large_buffers`, for answering, where memory was promised: buffers below `LARGE_BYTES` stay on
the heap, which is kept. Larger ones are mapped and go back to the system when they are freed;
`empty` puts them on huge pages, where one fault clears 2 MiB.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1
LARGE_BYTES = 4 * 2**20
HUGE_PAGE_BYTES = 2 * 2**20
MADV_HUGEPAGE = 14


@cache
def keep_large_buffers() -> bool:
    """Tell glibc to take all memory from its heap and never to give it back; whether it did.

    Holds for the whole process, which then keeps its largest use of memory until it ends. Once, on
    Linux with glibc only; the environment's QWEN25VL_KEEP_MALLOC=1 leaves the allocator as it is.
    """
    return set_thresholds(NEVER)


@cache
def map_large_buffers() -> bool:
    """Tell glibc to keep the heap and to map what is large; otherwise as `keep_large_buffers`."""
    return set_thresholds(LARGE_BYTES)


def set_thresholds(map_bytes: int) -> bool:
    """Keep the heap, and map buffers from `map_bytes` on."""
    if not sys.platform.startswith("linux") or os.environ.get("QWEN25VL_KEEP_MALLOC") == "1":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_MMAP_THRESHOLD, map_bytes))


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """`torch.empty` on the CPU for a result that is written as a whole at once: on huge pages if it
    is large."""
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    if tensor.nbytes >= LARGE_BYTES and (madvise := find_madvise()) is not None:
        start = -(-tensor.data_ptr() // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        stop = (tensor.data_ptr() + tensor.nbytes) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        if start < stop:
            madvise(
                start, stop - start, MADV_HUGEPAGE
            )  # a system without huge pages refuses, which does no harm
    return tensor


@cache
def find_madvise() -> Any:
    """The C library's function on Linux, or None."""
    madvise = (
        getattr(ctypes.CDLL(None), "madvise", None) if sys.platform.startswith("linux") else None
    )
    if madvise is not None:
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return madvise

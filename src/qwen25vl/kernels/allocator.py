"""Keep the memory of large temporaries, instead of mapping and unmapping it for every operation.

glibc maps each allocation above a threshold afresh and unmaps it when it is freed, so that the kernel has to clear
every page of every result again. Measured with the product [5476, 1280]·[1280, 3840] in bfloat16: 10,268 page faults
and 11 ms of system time in each call; none with `keep_large_buffers`. Either threshold alone does not do it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


@cache
def keep_large_buffers() -> bool:
    """Tell glibc to take all memory from its heap and never to give it back; whether it did.

    Holds for the whole process, which then keeps its largest use of memory until it ends. Once, on Linux with glibc
    only; the environment's QWEN25VL_KEEP_MALLOC=1 leaves the allocator as it is.
    """
    if not sys.platform.startswith("linux") or os.environ.get("QWEN25VL_KEEP_MALLOC") == "1":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST) and mallopt(M_MMAP_THRESHOLD, LARGEST))

"""Where the memory of tensors comes from: results of the kernels, and what torch allocates.

Large results of the kernels come from the arena (arena.py): `empty`, `empty_as`, `release`.

For all that torch allocates there are two policies of glibc, on Linux, for the whole process. Left
to itself, glibc maps every buffer above a threshold afresh and unmaps it when it is freed, so that
the kernel has to clear every page of every result again.

`keep_large_buffers`, for training: everything comes from the heap, which is never given back. This
takes no faults. But torch asks for aligned memory, and an aligned block that was freed does not
serve the next request of its size: the heap was seen to grow to 1.9 times what existed at the same
time.

`map_large_buffers`, for answering, where memory was promised: buffers below `LARGE_BYTES` stay on
the heap, which is kept. Larger ones are mapped and go back to the system when they are freed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from math import prod

import torch

from qwen25vl.kernels.arena import ARENA

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1
LARGE_BYTES = 4 * 2**20
ARENA_BYTES = 2**20  # of a result that comes from the arena


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


def empty(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """`like.new_empty(shape)` on the CPU for a result that is written as a whole at once: from the
    arena if it is large."""
    num_bytes = prod(shape) * like.itemsize
    if num_bytes >= ARENA_BYTES:
        tensor = ARENA.empty(shape, like.dtype, num_bytes)
        if tensor is not None:
            return tensor
    return like.new_empty(shape)


def empty_as(x: torch.Tensor) -> torch.Tensor:
    """`empty` for a result of the shape of a contiguous x; half the time of `empty` if it is
    small."""
    return torch.empty_like(x) if x.nbytes < ARENA_BYTES else empty(x.shape, x)


def release() -> None:
    """Give back to the system what earlier results have left in the arena."""
    ARENA.release()

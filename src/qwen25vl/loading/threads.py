"""Work on the CPU in threads that wait for none of one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Block = TypeVar("Block")
Result = TypeVar("Result")


def map_in_threads(work: Callable[[Block], Result], blocks: Sequence[Block]) -> list[Result]:
    """The results of `work` for each block, in order, computed by as many threads as torch uses.

    Each thread computes whole blocks alone. torch's own threads share every operation of a block
    and wait for one another after each, which takes several times as long when another process
    keeps a core busy.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(blocks) == 1:
        return list(map(work, blocks))
    try:
        with ThreadPoolExecutor(num_threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            return list(pool.map(work, blocks))
    finally:
        # each thread has its own number, but new threads start with the last one set
        torch.set_num_threads(num_threads)

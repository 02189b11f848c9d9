"""How many threads a kernel may use: torch's number for this process, or fewer for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

most = threading.local()  # of the thread that calls the kernels


def num_threads() -> int:
    """Threads for the next kernel that this thread calls."""
    everyone = torch.get_num_threads()
    return min(everyone, getattr(most, "count", everyone))


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Limit the kernels that this thread calls meanwhile. torch's own number stays as it is: new
    threads would adopt a lower one for good."""
    before = getattr(most, "count", None)
    most.count = count
    try:
        yield
    finally:
        if before is None:
            del most.count
        else:
            most.count = before

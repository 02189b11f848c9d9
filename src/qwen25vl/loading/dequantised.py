"""Matrices that are stored in a form which no kernel reads: their numbers are worked out once,
while loading, a block of rows at a time in several threads.

Apart from the result, no more than a few blocks are in memory. The result is float32 for what is
quantised again, else the model's type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from qwen25vl.errors import TensorError
from qwen25vl.loading.checkpoint import Checkpoint, StoredTensor
from qwen25vl.loading.threads import map_in_threads

NUMBERS_AT_A_TIME = 2**18  # of a block: about as many as stay in a cache
Rows = Callable[[Sequence[torch.Tensor], int, int], torch.Tensor]
"""The rows from one number to another, in float32, of the tensors that are stored."""


def dequantise(
    checkpoint: Checkpoint,
    key: str,
    parts: Sequence[StoredTensor],
    shape: tuple[int, ...],
    rows: Rows,
    form: str,
) -> None:
    """Have a tensor of a checkpoint [rows, …] read as the numbers that its parts stand for.

    form: how they are stored, for people. Reading raises TensorError for numbers that are not
    finite.
    """
    first, *others = parts
    name = first.name

    def decode(tensors: Sequence[torch.Tensor], dtype: torch.dtype | None) -> torch.Tensor:
        return fill_rows(tensors, shape, rows, dtype or torch.float32, name)

    checkpoint.stored[key] = replace(
        first, shape=shape, type_name="F32", others=tuple(others), convert=None, decode=decode,
        form=form,
    )  # fmt: skip


def fill_rows(
    tensors: Sequence[torch.Tensor],
    shape: tuple[int, ...],
    rows: Rows,
    dtype: torch.dtype,
    name: str,
) -> torch.Tensor:
    """All rows, in a type. Raises TensorError for numbers that are not finite."""
    made = torch.empty(shape, dtype=dtype, device="cpu")
    step = max(1, NUMBERS_AT_A_TIME * shape[0] // max(1, made.numel()))

    def fill(start: int) -> None:
        stop = min(start + step, shape[0])
        block = rows(tensors, start, stop)
        # the sum costs less than a look at each number; a sum of many large ones may overflow
        if not block.sum().isfinite() and not block.isfinite().all():
            raise TensorError(f"{name} holds numbers that are not finite")
        made[start:stop] = block.view(-1, *shape[1:])

    map_in_threads(fill, range(0, shape[0], step))
    return made


def require_finite(scales: torch.Tensor, name: str) -> torch.Tensor:
    """The scales. Raises TensorError where one is not finite."""
    if not scales.isfinite().all():
        raise TensorError(f"{name} holds scales that are not finite")
    return scales

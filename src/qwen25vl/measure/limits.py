"""The machine's own limits, measured on the spot:
how fast it multiplies and how fast it reads memory."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qwen25vl.kernels import ops

# a product of this model's size; its weights do not fit a core's cache
ROWS, INPUTS, OUTPUTS = (1024, 2048, 8192)
READ_BYTES = 2**29  # well above any cache


@dataclass(frozen=True)
class Limits:
    """Operations per second of products in bfloat16 and int8, bytes read per second,
    with all of torch's threads."""

    bf16: float
    int8: float
    read: float


def seconds(work: Callable[[], Any], runs: int = 5) -> float:
    """The shortest of some runs, after one to warm up."""
    work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.inference_mode()
def measure_limits() -> Limits:
    """The best of what torch (oneDNN) and this package's kernels reach; takes about a second."""
    return Limits(
        max(2 * ROWS * INPUTS * OUTPUTS / seconds(work) for work in bf16_products()),
        max(2 * ROWS * INPUTS * OUTPUTS / seconds(work) for work in int8_products()),
        measure_reading(),
    )


def bf16_products() -> list[Callable[[], Any]]:
    x, weight = (torch.ones(n, INPUTS, dtype=torch.bfloat16, device="cpu") for n in (ROWS, OUTPUTS))
    y = torch.empty(ROWS, OUTPUTS, dtype=torch.bfloat16, device="cpu")
    return [lambda: torch.mm(x, weight.T, out=y), lambda: ops.linear(x, weight)]


def int8_products() -> list[Callable[[], Any]]:
    x, weight = (
        torch.full((n, INPUTS), 7, dtype=torch.int8, device="cpu") for n in (ROWS, OUTPUTS)
    )
    scale = torch.ones(OUTPUTS, dtype=torch.float32, device="cpu")
    codes, rows = weight.view(torch.uint8), x.bfloat16()
    products: list[Callable[[], Any]] = [
        lambda: torch._int_mm(x, weight.T),
        lambda: ops.linear_int8(rows, codes, scale),
    ]
    onednn = torch.ops.onednn
    if torch.cpu._is_vnni_supported():  # without these instructions it may overflow, or be refused
        packed, zeros = (
            onednn.qlinear_prepack(weight, None),
            torch.zeros(OUTPUTS, dtype=torch.int64, device="cpu"),
        )
        rest: Any = (packed, scale, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")
        products.append(lambda: onednn.qlinear_pointwise(x.view(torch.uint8), 0.01, 128, *rest))
    return products


def measure_reading(runs: int = 5) -> float:
    """Bytes per second, the better of torch.sum and our int8 GEMV over
    READ_BYTES (huge pages if available)."""
    memory = mmap.mmap(-1, READ_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    codes = torch.frombuffer(memory, dtype=torch.uint8).fill_(1).view(-1, INPUTS)
    row = torch.ones(1, INPUTS, dtype=torch.bfloat16, device="cpu")
    scale = torch.ones(len(codes), dtype=torch.float32, device="cpu")
    works = (codes.view(torch.int64).sum, lambda: ops.linear_int8(row, codes, scale))
    return READ_BYTES / min(seconds(work, runs) for work in works)

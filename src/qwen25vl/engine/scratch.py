"""The memory that compiled kernels of linear layers keep for the next call (native/memory.h): it is
taken once and stays through all stages of a request.

    D hidden_size · F intermediate_size
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen25vl.config import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.model.layers import wide_rows

KERNEL_ROWS_BYTES = 16 * 2**20  # activations that a compiled linear layer lays out anew at a time
KERNEL_THREAD_BYTES = 2**20  # panels that each thread of the kernels keeps, and those of attention
KERNEL_SUM_BYTES = 2**20  # sums that each thread keeps where the inputs come in several pieces
KERNEL_INPUTS = 2048  # that a piece has at least


@dataclass(frozen=True)
class Execution:
    """How the model computes. item: bytes of an activation; has_kernels: whether compiled kernels
    serve it."""

    item: int = 2
    has_kernels: bool = True
    threads: int = 1


def vision_scratch(config: Qwen2_5_VLVisionConfig, num_patches: int, how: Execution) -> int:
    """`kernel_bytes` of a pass of the encoder."""
    width = max(config.hidden_size, config.patch_dim)
    return kernel_bytes(num_patches, width, config.intermediate_size, how)


def text_scratch(config: Qwen2_5_VLTextConfig, rows: int, how: Execution) -> int:
    """`kernel_bytes` of a step of the language model."""
    return kernel_bytes(rows, config.hidden_size, config.intermediate_size, how)


def kernel_bytes(rows: int, width: int, wide: int, how: Execution) -> int:
    """What the kernels of the linear layers keep for the next call: the inputs of the largest
    product laid out anew, rows of D or a few rows of F, and what each thread needs."""
    if not how.has_kernels or not rows:
        return 0
    few = min(rows, wide_rows(wide, how.item))
    each = KERNEL_THREAD_BYTES + (KERNEL_SUM_BYTES if wide > KERNEL_INPUTS else 0)
    return max(laid_out_bytes(rows, width), laid_out_bytes(few, wide)) + how.threads * each


def laid_out_bytes(rows: int, inputs: int) -> int:
    """Rows beyond a limit are laid out in several parts of equal size."""
    total = 2 * rows * inputs
    return total // max(1, -(-total // KERNEL_ROWS_BYTES))

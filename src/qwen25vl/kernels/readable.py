"""Whether a kernel may read a tensor's memory: the questions about one operand.

`operands.py` asks them for every operand of every operation.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

BF16, STRIDED = torch.bfloat16, torch.strided
ORDINARY = (torch.Tensor, torch.nn.Parameter)  # subclasses may keep their numbers elsewhere
# Looked up once: every operation asks.
tracing_state = torch._C._get_tracing_state
functorch = torch._C._functorch.peek_interpreter_stack


def is_observed() -> bool:
    """Whether torch follows operations rather than only computing them: tracing, forward-mode
    gradients, functorch.

    A kernel is no operation of torch, so none of these would see what it does.
    """
    return forward_ad._current_level >= 0 or tracing_state() is not None or functorch() is not None


def is_readable(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor's numbers lie in memory of the CPU in this type, no gradient is to flow
    through them, and torch does not follow the operation."""
    return not is_observed() and is_plain(tensor, dtype) and has_storage(tensor)


def is_packed(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """`is_readable`, and contiguous: for further operands, since what follows is asked once."""
    if not is_plain(tensor, dtype) or not tensor.is_contiguous():
        return False
    count, room = tensor.numel(), tensor.untyped_storage().nbytes()
    return (tensor.storage_offset() + count) * tensor.itemsize <= room or not count


def is_plain(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor is an ordinary one of the CPU, of this type, without a gradient."""
    return (
        type(tensor) in ORDINARY
        and tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is STRIDED
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor reaches to its last number: a storage may have been freed or
    cut."""
    if tensor.is_contiguous():
        extent = tensor.numel()
    else:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in steps)
    room = tensor.untyped_storage().nbytes()
    return (tensor.storage_offset() + extent) * tensor.itemsize <= room or not tensor.numel()


def is_dense(tensor: torch.Tensor, dtype: torch.dtype, *shape: int) -> bool:
    """`is_packed`, and of exactly this shape."""
    return tensor.shape == shape and is_packed(tensor, dtype)


def is_bias(bias: torch.Tensor | None, num_outputs: int) -> bool:
    return bias is None or is_dense(bias, BF16, num_outputs)


def has_rows(x: torch.Tensor, width: int) -> bool:
    """Whether x is [..., width] in bfloat16 and not empty; its strides do not matter, since it is
    made contiguous."""
    return is_readable(x, BF16) and x.ndim > 0 and x.shape[-1] == width and x.numel() > 0

"""The head of a model with quantised layers, in 8 bits.

In bfloat16 the head would be a third of what a token of such a model reads. No file holds the copy,
and files keep the head as it is. It serves inference by the compiled kernels only, and only for the
weights that it was made from.

    D hidden_size · V vocab_size
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from qwen25vl.kernels import library, ops, readable
from qwen25vl.model.derived import Derived
from qwen25vl.model.layers import Linear, TokenEmbedding

ELEMENTS_AT_A_TIME = 2**19
SMALLEST_SCALE = 2.0**-20


class Int8Head:
    """Logits from a copy of a weight in 8 bits, kept while the weight stays the same."""

    def __init__(self) -> None:
        self.copy = Derived()

    def prepare(self, weight: torch.Tensor) -> None:
        """Make the copy now rather than at the first token."""
        self.copy.get(quantise_rows, weight)

    def compute_logits(self, hidden: torch.Tensor, head: nn.Module) -> torch.Tensor | None:
        """[…, D] -> […, V]; None where the head itself has to serve.

        That is under gradients, for other types than bfloat16, without the kernel, and for a head
        that does more than multiply: with a bias, hooks, an adapter or a forward of its own.
        """
        if torch.is_grad_enabled() or not is_plain(head):
            return None
        weight: torch.Tensor = head.weight  # type: ignore[assignment]
        if not is_served(hidden, weight):
            return None
        made = self.copy.get(quantise_rows, weight)
        return None if made is None else ops.linear_int8(hidden, *made)


def is_served(*tensors: torch.Tensor) -> bool:
    """Whether the kernel for 8 bits is there and these operands are of its type."""
    is_kind = all(readable.is_readable(tensor, torch.bfloat16) for tensor in tensors)
    return is_kind and library.function("linear_int8") is not None


def is_plain(head: nn.Module) -> bool:
    """Whether a head is no more than the product with its weight."""
    if (
        type(head) not in (Linear, nn.Linear, TokenEmbedding, nn.Embedding)
        or getattr(head, "bias", None) is not None
    ):
        return False
    has_hooks = has_any_global_hook() or head._forward_hooks or head._forward_pre_hooks
    return not has_hooks and "forward" not in vars(head)


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[V, D] -> codes [V, D] uint8, level + 128; scale [V] float32, the largest |w| of the row over
    127."""
    num_outputs, width = weight.shape
    whole_words = torch.empty(num_outputs, width + -width % 4, dtype=torch.uint8, device="cpu")
    codes = whole_words[:, :width]
    scale = torch.empty(num_outputs, dtype=torch.float32, device="cpu")
    num_rows = max(1, ELEMENTS_AT_A_TIME // width)
    parts = (tensor.split(num_rows) for tensor in (weight, codes, scale))
    for rows, some_codes, some_scale in zip(*parts, strict=True):
        numbers = rows.float()
        torch.clamp(numbers.abs().amax(1) / 127, min=SMALLEST_SCALE, out=some_scale)
        some_codes.copy_(numbers.div_(some_scale[:, None]).round_().add_(128))
    return codes, scale

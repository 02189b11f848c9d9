"""A vocabulary of another size: input embeddings and head get more rows or fewer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qwen25vl.errors import UsageError


def resize_embeddings(
    model: Any, num_tokens: int | None, multiple: int | None, mean_resizing: bool
) -> None:
    """Resize a model's vocabulary in place, rounded up to a multiple if one is given.

    New rows are the mean of the old ones; without mean_resizing they are N(0, initializer_range).
    Raises UsageError for a size below 1.
    """
    embeddings = model.get_input_embeddings()
    config = model.config.get_text_config()
    size = num_tokens if num_tokens is not None else len(embeddings.weight)
    if multiple is not None:
        if multiple < 1:
            raise UsageError(f"pad_to_multiple_of is {multiple}; it must be at least 1")
        size += -size % multiple
    if size < 1:
        raise UsageError(f"the vocabulary cannot have {size} tokens")
    if size != len(embeddings.weight):
        std = None if mean_resizing else config.initializer_range
        resize_rows(embeddings, size, std)
        embeddings.num_embeddings = size
        head = getattr(model, "lm_head", None)
        if head is not None:
            resize_rows(head, size, std)
            head.out_features = size
    config.vocab_size = size


@torch.no_grad()
def resize_rows(layer: nn.Module, num_rows: int, std: float | None) -> None:
    """Another number of rows for a layer's weight [V, D]."""
    old: torch.Tensor = layer.weight  # type: ignore[assignment]
    weight = old.new_empty(num_rows, old.shape[1])
    kept = min(num_rows, len(old))
    weight[:kept] = old[:kept]
    if std is None:
        weight[kept:] = old.float().mean(0).to(old.dtype)
    else:
        weight[kept:].normal_(std=std)
    layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)

"""A whole model under an adapter, its head included.

A head may be tied to the embeddings, and an adapter may change one of the two. PEFT's rules hold:
new rows of single tokens go to both, all else stays with the layer that it was trained for unless
the adapter says that the two are tied.

    n tokens · D hidden_size · V vocab_size · r rank
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from qwen25vl.kernels import ops
from qwen25vl.model.adapted import AdaptedLinear, adapt, frozen, with_modules
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.int8_head import Int8Head
from qwen25vl.model.layers import Linear
from qwen25vl.model.low_rank import LayerChange

HEAD, EMBEDDINGS = "lm_head", "model.language_model.embed_tokens"
Changes = dict[str, LayerChange]  # by the path of the layer


class HeadWithRows(nn.Module):
    """A head in which some tokens have other rows: tokens [n], rows [n, D]."""

    tokens: torch.Tensor

    def __init__(self, base_layer: nn.Module, tokens: torch.Tensor, rows: torch.Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_buffer("tokens", tokens)
        self.rows = frozen(rows)

    @property
    def weight(self) -> torch.Tensor:
        """The base's."""
        return self.base_layer.weight  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.base_layer(x)
        return logits.index_copy(-1, self.tokens, ops.linear(x, self.rows))  # type: ignore[no-any-return]


class BaseHead(nn.Module):
    """The head of a model as its own `compute_logits` has it, in 8 bits where that serves."""

    def __init__(self, head: nn.Module, int8_head: Int8Head | None) -> None:
        super().__init__()
        self.head, self.int8_head = head, int8_head

    @property
    def weight(self) -> torch.Tensor:
        return self.head.weight  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = None if self.int8_head is None else self.int8_head.compute_logits(x, self.head)
        return self.head(x) if logits is None else logits


def adapted_model(model: Qwen2_5_VLCausalModel, changes: Changes) -> Qwen2_5_VLCausalModel:
    """A model that computes what an adapter makes of another and shares its weights.

    changes: with those of the head, as `with_head` gives them.
    """
    replaced = {
        path: adapt(model.get_submodule(path), change, model.dtype)
        for path, change in changes.items()
        if path != HEAD
    }
    if HEAD not in changes:
        return with_modules(model, replaced)
    change, int8_head = changes[HEAD], model.int8_head
    if change.weight is not None and int8_head is not None:
        int8_head = Int8Head()
    head = adapt_head(model, change, int8_head)
    made = with_modules(model, {**replaced, HEAD: head})
    made.int8_head = int8_head
    return made


def adapt_head(
    model: Qwen2_5_VLCausalModel, change: LayerChange, int8_head: Int8Head | None
) -> nn.Module:
    """The head with a change, in a layer of its own where it is tied."""
    head = model.lm_head
    if head is None:
        num_rows, width = model.head.weight.shape
        with torch.device("meta"):
            head = Linear(width, num_rows, bias=False)
        head.weight = model.head.weight
    made = adapt(head, change, model.dtype)
    base = made.base_layer if isinstance(made, AdaptedLinear) else made
    if change.has_low_rank or change.rows is not None:
        base = BaseHead(base, int8_head)
    if change.rows is not None:
        tokens = torch.tensor(change.tokens, dtype=torch.int64, device=model.device)
        base = HeadWithRows(base, tokens, change.rows.to(model.device, model.dtype))
    if not isinstance(made, AdaptedLinear):
        return base
    made.base_layer = base
    return made


def with_head(changes: Mapping[str, LayerChange], is_tied: bool, ties_head: bool) -> Changes:
    """The changes with what those of the embeddings mean for a head that is tied to them.

    ties_head: whether the adapter was trained with both tied.
    """
    found = dict(changes)
    embeddings = found.get(EMBEDDINGS)
    if not is_tied or embeddings is None:
        return found
    head = found.get(HEAD, LayerChange())
    if ties_head and HEAD not in found:
        head = transpose(embeddings)
    if head.rows is None:
        head = replace(head, tokens=embeddings.tokens, rows=embeddings.rows)
    found[HEAD] = head
    return found


def transpose(change: LayerChange) -> LayerChange:
    """The same change of a weight that an embedding and a linear layer share."""
    down = None if change.up is None else change.up.T
    up = None if change.down is None else change.down.T
    return replace(change, down=down, up=up, is_embedding=False)

"""The whole model: the two towers joined, logits over them, and the loss.

The calls that the ecosystem knows (`forward` of padded batches, `from_pretrained`, `generate`, …)
are added on top, in `ecosystem/`; loading and the engine need no more than this.

    B batch · L padded length · D hidden_size · V vocab_size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import UsageError
from qwen25vl.kernels import ops
from qwen25vl.model.attention import Implementation
from qwen25vl.model.int8_head import Int8Head
from qwen25vl.model.layers import Linear, initialise
from qwen25vl.model.positions import MropeRule
from qwen25vl.model.qwen2_5_vl import JoinedTowers
from qwen25vl.model.vision import Qwen2_5_VLVisionModel


class Qwen2_5_VLCausalModel(nn.Module):
    joined_class = JoinedTowers

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        attn_implementation: Implementation = "sdpa",
        mrope: MropeRule = "reference",
    ) -> None:
        """A model with random weights, to be trained."""
        super().__init__()
        self.config = config
        self.model = self.joined_class(config, attn_implementation, mrope)
        text = config.text_config
        is_tied = config.tie_word_embeddings
        self.lm_head: nn.Linear | None = None
        if not is_tied:
            self.lm_head = Linear(text.hidden_size, text.vocab_size, bias=False)
            initialise(self.lm_head, text.initializer_range)
        self.int8_head: Int8Head | None = None  # of a model with quantised layers
        self.generation_config: Any = None  # defaults of an answer, which a checkpoint brings

    @property
    def visual(self) -> Qwen2_5_VLVisionModel:
        return self.model.visual

    @property
    def dtype(self) -> torch.dtype:
        return self.model.language_model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.language_model.embed_tokens.weight.device

    @property
    def head(self) -> nn.Linear | nn.Embedding:
        """The module whose weight [V, D] makes logits: the embeddings where the head is tied to
        them.

        NOTE PEFT may put a wrapper around the embeddings, to train all of them. The head keeps what
        it was tied to, as in transformers, where it is a module of its own.
        """
        if self.lm_head is not None:
            return self.lm_head
        embeddings = self.model.language_model.embed_tokens
        is_trained_as_a_whole = hasattr(embeddings, "modules_to_save")
        return embeddings.original_module if is_trained_as_a_whole else embeddings  # type: ignore[return-value]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, D] -> […, V], by the head or, where it is tied, by the embeddings."""
        if self.int8_head is not None:
            logits = self.int8_head.compute_logits(hidden, self.head)
            if logits is not None:
                return logits
        if self.lm_head is not None:
            return self.lm_head(hidden)  # type: ignore[no-any-return]
        return ops.linear(hidden, self.head.weight)


def causal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of −log p(label) over the labelled tokens, each predicted from the token before it, in
    float32. num_items_in_batch: divide their sum by this instead of by their number."""
    if labels.shape != logits.shape[:2]:
        raise UsageError(
            f"labels have shape {list(labels.shape)}; expected {list(logits.shape[:2])}"
        )
    targets = labels[:, 1:]
    if attention_mask is not None:
        targets = targets.masked_fill(
            attention_mask[:, -labels.shape[1] : -1] == 0, -100
        )  # padding predicts nothing
    rows, targets = logits[:, :-1].flatten(0, 1).float(), targets.flatten().to(logits.device)
    if num_items_in_batch is None:
        return F.cross_entropy(rows, targets)
    total = F.cross_entropy(rows, targets, reduction="sum")
    return total / torch.as_tensor(num_items_in_batch, dtype=total.dtype, device=total.device)

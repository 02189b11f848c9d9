"""The whole model: the two towers joined, logits over them, and the loss.

The calls that the ecosystem knows (`from_pretrained`, `generate`, …) are added on top, in
`ecosystem/conditional_generation.py`; loading and the engine need no more than this.

    B batch · L padded length · D hidden_size · V vocab_size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import UsageError
from qwen25vl.inputs import brief
from qwen25vl.kernels import ops
from qwen25vl.model.attention import Implementation
from qwen25vl.model.cache import KVCache
from qwen25vl.model.int8_head import Int8Head
from qwen25vl.model.layers import Linear, initialise
from qwen25vl.model.positions import MropeRule
from qwen25vl.model.qwen2_5_vl import Qwen2_5_VLModel
from qwen25vl.model.vision import Qwen2_5_VLVisionModel


@dataclass(frozen=True)
class CausalOutput:
    """logits [B, L or logits_to_keep, V]; loss: mean cross-entropy or None; rope_deltas [B, 1]."""

    logits: torch.Tensor
    loss: torch.Tensor | None
    past_key_values: list[KVCache] | None
    rope_deltas: torch.Tensor | None
    hidden_states: tuple[torch.Tensor, ...] | None

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={brief(value)}" for name, value in vars(self).items() if value is not None
        )
        return f"CausalOutput({shown})"


class Qwen2_5_VLCausalModel(nn.Module):
    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        attn_implementation: Implementation = "sdpa",
        mrope: MropeRule = "reference",
    ) -> None:
        """A model with random weights, to be trained."""
        super().__init__()
        self.config = config
        self.model = Qwen2_5_VLModel(config, attn_implementation, mrope)
        text = config.text_config
        is_tied = config.tie_word_embeddings
        self.lm_head = None if is_tied else Linear(text.hidden_size, text.vocab_size, bias=False)
        self.int8_head: Int8Head | None = None  # of a model with quantised layers
        self.generation_config: Any = None  # defaults of an answer, which a checkpoint brings
        initialise(self, text.initializer_range)

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
        them."""
        return self.lm_head if self.lm_head is not None else self.model.language_model.embed_tokens

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, D] -> […, V], by the head or, where it is tied, by the embeddings."""
        if self.int8_head is not None:
            logits = self.int8_head.compute_logits(hidden, self.head)
            if logits is not None:
                return logits
        if self.lm_head is not None:
            return self.lm_head(hidden)  # type: ignore[no-any-return]
        return ops.linear(hidden, self.head.weight)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each block's input for the backward pass and compute the block again there."""
        self.visual.gradient_checkpointing = self.model.language_model.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.visual.gradient_checkpointing = self.model.language_model.gradient_checkpointing = (
            False
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: list[KVCache] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool = False,
        mm_token_type_ids: torch.Tensor | None = None,
    ) -> CausalOutput:
        """Logits, and the loss where labels are given.

        input_ids [B, L] or inputs_embeds [B, L, D]; attention_mask [B, L], 0 where padded, on
        either side; position_ids [3, B, L], by default the MRoPE rule; past_key_values from an
        earlier call; labels [B, L], −100 for tokens without a loss; pixel_values [num_patches,
        1176] with image_grid_thw [num, 3]; the same for videos, with second_per_grid_ts [num] in
        seconds; logits_to_keep: the number of last columns (0: all), or their indices;
        mm_token_type_ids: they say what the ids say, and have no effect. A cache is kept only under
        torch.no_grad() or inference_mode. Raises UsageError and MessageError if the arguments do
        not fit together.
        """
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            pixel_values,
            pixel_values_videos,
            image_grid_thw,
            video_grid_thw,
            second_per_grid_ts,
            output_hidden_states,
        )
        is_indices = isinstance(logits_to_keep, torch.Tensor)
        keep = logits_to_keep if is_indices else slice(-logits_to_keep, None)
        logits = self.compute_logits(out.last_hidden_state[:, keep])
        loss = causal_loss(logits, labels, attention_mask) if labels is not None else None
        return CausalOutput(logits, loss, out.past_key_values, out.rope_deltas, out.hidden_states)


def causal_loss(
    logits: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Mean of −log p(label) over the labelled tokens, each predicted from the token before it, in
    float32."""
    if labels.shape != logits.shape[:2]:
        raise UsageError(
            f"labels have shape {list(labels.shape)}; expected {list(logits.shape[:2])}"
        )
    targets = labels[:, 1:]
    if attention_mask is not None:
        targets = targets.masked_fill(
            attention_mask[:, -labels.shape[1] : -1] == 0, -100
        )  # padding predicts nothing
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten().to(logits.device)
    )

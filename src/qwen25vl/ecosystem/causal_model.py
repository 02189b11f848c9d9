"""The whole model behind the ecosystem's padded batches: forward with logits and loss, and the
methods of a model with a head. `conditional_generation.py` adds answers.

B batch · L padded length · D hidden_size · V vocab_size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.ecosystem.outputs import CausalOutput, VisionOutput
from qwen25vl.ecosystem.pretrained_model import PretrainedModel
from qwen25vl.ecosystem.text_model import Qwen2_5_VLTextModel, choose
from qwen25vl.ecosystem.vision_language_model import Qwen2_5_VLModel
from qwen25vl.inputs import Patches
from qwen25vl.model.attention import Implementation
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel, causal_loss
from qwen25vl.model.layers import Linear
from qwen25vl.model.positions import MropeRule


class PaddedCausalModel(PretrainedModel, Qwen2_5_VLCausalModel):
    joined_class = Qwen2_5_VLModel
    model: Qwen2_5_VLModel
    accepts_loss_kwargs: ClassVar[bool] = False  # as for transformers' class: Trainer averages

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        attn_implementation: Implementation | None = None,
        mrope: MropeRule = "reference",
    ) -> None:
        config.check()
        super().__init__(config, self.settle_attention(config, attn_implementation), mrope)

    @classmethod
    def assemble(cls, config: Any, implementation: Implementation, mrope: Any) -> Any:
        return cls(config, implementation, mrope)

    @classmethod
    def part_of(cls, whole: Any) -> Any:
        return whole

    def path_in_checkpoint(self) -> str:
        return ""

    @property
    def in_force(self) -> PaddedCausalModel:
        """What computes: this model, or the same under an adapter."""
        return self

    @property
    def language_model(self) -> Qwen2_5_VLTextModel:
        return self.model.language_model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The layer that makes logits. Where it is tied to the embeddings, a layer that shares
        their weight."""
        if self.lm_head is not None:
            return self.lm_head
        rows, width = self.head.weight.shape
        with torch.device("meta"):
            shared = Linear(width, rows, bias=False)
        shared.weight = self.head.weight
        return shared

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Another layer for the logits; one with a weight of its own is no longer tied."""
        is_tied = value.weight is self.get_input_embeddings().weight
        self.lm_head = None if is_tied else value  # type: ignore[assignment]
        self.config.tie_word_embeddings = is_tied

    def tie_weights(self) -> None:
        """Do what the config says: logits from the embeddings, or from a head of its own."""
        if self.config.tie_word_embeddings:
            self.lm_head = None

    def get_decoder(self) -> Qwen2_5_VLTextModel:
        return self.model.language_model

    def can_generate(self) -> bool:
        return True

    def get_image_features(
        self,
        pixel_values: torch.Tensor | Patches,
        image_grid_thw: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> VisionOutput | tuple[Any, ...]:
        """As `Qwen2_5_VLModel.get_image_features`."""
        return self.in_force.model.get_image_features(
            pixel_values, image_grid_thw, output_hidden_states, return_dict
        )

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | Patches,
        video_grid_thw: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> VisionOutput | tuple[Any, ...]:
        """The same of videos."""
        return self.in_force.model.get_video_features(
            pixel_values_videos, video_grid_thw, output_hidden_states, return_dict
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | Patches | None = None,
        pixel_values_videos: torch.Tensor | Patches | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> CausalOutput | tuple[Any, ...]:
        """Logits, and the loss where labels are given: a CausalOutput, or with return_dict=False a
        tuple.

        input_ids [B, L] or inputs_embeds [B, L, D], whose slots are found by the placeholders'
        embeddings, or by input_ids if both are given; attention_mask [B, L], 0 where padded, on
        either side; position_ids [3, B, L], by default the MRoPE rule; past_key_values from an
        earlier call; labels [B, L], −100 for tokens without a loss; pixel_values [num_patches,
        1176] with image_grid_thw [num, 3]; the same for videos, with second_per_grid_ts [num] in
        seconds, by default 1; logits_to_keep: the number of last columns (0: all), or their
        indices; rope_deltas [B, 1]: text positions go on at the number of tokens plus these;
        cache_position and mm_token_type_ids are checked, and change nothing; num_items_in_batch
        divides the summed loss. A cache is kept only under torch.no_grad() or inference_mode.
        Raises UsageError and MessageError if the arguments do not fit together.
        """
        config = self.config
        shown = [
            choose(output_hidden_states, config.output_hidden_states),
            choose(output_attentions, config.output_attentions),
        ]
        text = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        pixels = (pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw)
        checked = (cache_position, rope_deltas, mm_token_type_ids)
        whole = self.in_force
        out = whole.model(*text, *pixels, second_per_grid_ts, *shown, True, *checked)
        is_indices = isinstance(logits_to_keep, torch.Tensor)
        keep = logits_to_keep if is_indices else slice(-logits_to_keep, None)
        logits = whole.compute_logits(out.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = causal_loss(logits, labels, attention_mask, num_items_in_batch)
        shared = (out.past_key_values, out.hidden_states, out.attentions, out.rope_deltas)
        output = CausalOutput(loss, logits, *shared)
        return output if choose(return_dict, config.return_dict) else output.to_tuple()

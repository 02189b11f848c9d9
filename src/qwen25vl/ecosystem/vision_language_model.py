"""The two towers joined, behind the ecosystem's padded batches.

B batch · L padded length · N packed tokens · D hidden_size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.ecosystem.outputs import TextOutput, VisionOutput
from qwen25vl.ecosystem.pretrained_model import PretrainedModel
from qwen25vl.ecosystem.text_model import Qwen2_5_VLTextModel, check_cache_position, choose
from qwen25vl.ecosystem.visual_features import visual_features
from qwen25vl.errors import UsageError
from qwen25vl.inputs import Patches
from qwen25vl.model.attention import Implementation
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.packing import Packing
from qwen25vl.model.positions import MropeRule
from qwen25vl.model.qwen2_5_vl import JoinedTowers, check_pair
from qwen25vl.model.text import next_positions

NO_TOKEN = -1  # stands for text that is given as embeddings


class Qwen2_5_VLModel(PretrainedModel, JoinedTowers):
    """Both towers without a head, with random weights; `from_pretrained` takes them from a
    checkpoint."""

    base_model_prefix: ClassVar[str] = ""
    left_out: ClassVar[tuple[str, ...]] = ("lm_head.",)
    text_class = Qwen2_5_VLTextModel
    language_model: Qwen2_5_VLTextModel

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
        whole = Qwen2_5_VLCausalModel(config, implementation, mrope)
        whole.model = cls(config, implementation, mrope)
        whole.lm_head = None
        return whole

    @classmethod
    def part_of(cls, whole: Any) -> Any:
        return whole.model

    def path_in_checkpoint(self) -> str:
        return "model"

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> Qwen2_5_VLTextModel:
        return self.language_model

    def get_image_features(
        self,
        pixel_values: torch.Tensor | Patches,
        image_grid_thw: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> VisionOutput | tuple[Any, ...]:
        """Visual tokens of pictures: a VisionOutput, whose pooler_output has those of each.

        pixel_values [num_patches, 1176]; image_grid_thw [num, 3]. return_dict=False gives a tuple.
        """
        out = visual_features(
            self.visual, pixel_values, image_grid_thw, "image_grid_thw", output_hidden_states
        )
        return out if choose(return_dict, self.config.return_dict) else out.to_tuple()

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | Patches,
        video_grid_thw: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> VisionOutput | tuple[Any, ...]:
        """The same of videos."""
        out = visual_features(
            self.visual, pixel_values_videos, video_grid_thw, "video_grid_thw", output_hidden_states
        )
        return out if choose(return_dict, self.config.return_dict) else out.to_tuple()

    def get_placeholder_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        image_features: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots of pictures and of videos, bool [B, L, 1] each. Raises MessageError where a
        kind has not as many slots as features [n, D] are given."""
        ids = input_ids if input_ids is not None else self.find_slots(inputs_embeds)
        flat = inputs_embeds.flatten(0, 1)
        if image_features is not None:
            self.fill_slots(flat, ids.flatten(), "picture", image_features)
        if video_features is not None:
            self.fill_slots(flat, ids.flatten(), "video", video_features)
        slots = (self.config.image_token_id, self.config.video_token_id)
        images, videos = ((ids == slot)[..., None].to(inputs_embeds.device) for slot in slots)
        return images, videos

    def find_slots(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Ids [B, L] that name the slots among embeddings, which are those of a placeholder."""
        weight = self.get_input_embeddings().weight
        device = inputs_embeds.device
        ids = torch.full(inputs_embeds.shape[:2], NO_TOKEN, dtype=torch.int64, device=device)
        for slot in (self.config.image_token_id, self.config.video_token_id):
            ids[(inputs_embeds == weight[slot].to(inputs_embeds)).all(-1)] = slot
        return ids

    def get_rope_index(
        self,
        input_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None = None,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """MRoPE positions of a padded batch.

        input_ids, attention_mask [B, L]; grids [num, 3] in the order of their slots;
        second_per_grid_ts [num_videos] in seconds, by default 1. Returns positions [3, B, L] (0
        where padded) and rope_deltas [B, 1]: what to add to the index of a token after the prompt
        to get its position. Raises MessageError where slots and grids do not fit, UsageError for
        impossible seconds and for types that are not those of the ids.
        """
        self.check_types(input_ids, mm_token_type_ids)
        packing = Packing.of((input_ids.shape[0], input_ids.shape[1]), attention_mask)
        packed = self.pack_positions(
            packing, input_ids, image_grid_thw, video_grid_thw, second_per_grid_ts
        )
        following = next_positions(packed, packing.lengths)
        deltas = [
            [after - length] for after, length in zip(following, packing.lengths, strict=True)
        ]
        positions = torch.stack([packing.unpack(stream) for stream in packed])
        return positions.to(input_ids.device), torch.tensor(
            deltas, device=input_ids.device, dtype=torch.int64
        )

    def check_types(self, ids: torch.Tensor, mm_token_type_ids: torch.Tensor | None) -> None:
        """The types (0 text, 1 picture, 2 video) that newer processors hand out say what the ids
        say; others raise UsageError."""
        if mm_token_type_ids is None:
            return
        given = mm_token_type_ids[:, -ids.shape[1] :].to(ids.device)
        kinds = (ids == self.config.image_token_id) + 2 * (ids == self.config.video_token_id)
        if given.shape != kinds.shape or not torch.equal(given.long(), kinds.long()):
            raise UsageError(
                "mm_token_type_ids must be 1 at the slots of pictures, 2 at those of videos and 0 "
                "elsewhere, in the shape of input_ids"
            )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | Patches | None = None,
        pixel_values_videos: torch.Tensor | Patches | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
    ) -> TextOutput | tuple[Any, ...]:
        """Padded tokens and media to hidden states; arguments as in
        `Qwen2_5_VLForConditionalGeneration.forward`."""
        images, videos = (pixel_values, image_grid_thw), (pixel_values_videos, video_grid_thw)
        if inputs_embeds is None and input_ids is None:
            raise UsageError("give either input_ids or inputs_embeds")
        if inputs_embeds is not None and input_ids is None and not all_none(*images, *videos):
            input_ids = self.find_slots(inputs_embeds)
        text = self.language_model
        shape = (input_ids if input_ids is not None else inputs_embeds).shape  # type: ignore[union-attr]
        packing = Packing.of((shape[0], shape[1]), attention_mask)
        caches = text.open_caches(packing, past_key_values, use_cache)
        check_cache_position(cache_position, caches)
        if input_ids is not None:
            self.check_types(input_ids, mm_token_type_ids)
        if input_ids is None or position_ids is not None or rope_deltas is not None:
            positions = text.read_positions(packing, position_ids, caches, rope_deltas)
        else:
            grids = image_grid_thw, video_grid_thw
            positions = self.pack_positions(packing, input_ids, *grids, second_per_grid_ts, caches)
        ids = packing.pack(input_ids) if input_ids is not None else None
        given = None if inputs_embeds is None else packing.pack(inputs_embeds)
        embeds = text.embed(ids) if given is None else given  # type: ignore[arg-type]
        if ids is not None:
            embeds = self.place_media(embeds, ids, images, videos, inputs_embeds is not None)
        config = self.config
        out: TextOutput = text.run_padded(
            embeds,
            positions,
            packing,
            caches,
            choose(output_hidden_states, config.output_hidden_states),
            choose(output_attentions, config.output_attentions),
            attention_mask,
        )
        return out if choose(return_dict, config.return_dict) else out.to_tuple()

    def place_media(
        self,
        embeds: torch.Tensor,
        ids: torch.Tensor,
        images: tuple[Any, torch.Tensor | None],
        videos: tuple[Any, torch.Tensor | None],
        may_be_filled: bool,
    ) -> torch.Tensor:
        """Embeddings [N, D] with encoded media in their slots. may_be_filled: a kind without pixels
        may stand in the embeddings already."""
        for kind, (pixels, grid), name in (
            ("picture", images, "image_grid_thw"),
            ("video", videos, "video_grid_thw"),
        ):
            if may_be_filled and pixels is None:
                continue
            check_pair(pixels, grid, name)
            tokens = None if pixels is None else self.visual(pixels, grid)
            embeds = self.fill_slots(embeds, ids, kind, tokens)  # type: ignore[arg-type]
        return embeds


def all_none(*values: Any) -> bool:
    return all(value is None for value in values)

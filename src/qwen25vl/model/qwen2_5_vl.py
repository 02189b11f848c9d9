"""The two towers joined: visual tokens are put into their slots among the text, then the language
model reads on.

B batch · L padded length · N packed tokens · D hidden_size
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import MessageError, UsageError
from qwen25vl.inputs import Patches
from qwen25vl.model.attention import Implementation
from qwen25vl.model.cache import KVCache
from qwen25vl.model.packing import Packing
from qwen25vl.model.positions import MediaQueue, MropeRule, sequence_positions
from qwen25vl.model.text import Qwen2_5_VLTextModel, TextOutput, next_positions
from qwen25vl.model.vision import Qwen2_5_VLVisionModel, read_grids


class Qwen2_5_VLModel(nn.Module):
    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        attn_implementation: Implementation = "sdpa",
        mrope: MropeRule = "reference",
    ) -> None:
        super().__init__()
        self.config = config
        self.mrope: MropeRule = mrope
        self.visual = Qwen2_5_VLVisionModel(config.vision_config, attn_implementation)
        self.language_model = Qwen2_5_VLTextModel(config.text_config, attn_implementation)

    def embed(
        self,
        token_ids: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        video_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packed token ids [N] to embeddings [N, D], visual tokens [n, D] in the slots of their
        kind, in order.

        Raises MessageError unless each slot has its token and each token its slot.
        """
        embeds: torch.Tensor = self.language_model.embed_tokens(token_ids)
        for kind, slot_id, tokens in (
            ("picture", self.config.image_token_id, image_tokens),
            ("video", self.config.video_token_id, video_tokens),
        ):
            slots = (token_ids == slot_id).nonzero().flatten()
            num_tokens = 0 if tokens is None else len(tokens)
            if len(slots) != num_tokens:
                raise MessageError(
                    f"the prompt has slots for {len(slots)} {kind} tokens, but {num_tokens} are "
                    "given"
                )
            if tokens is not None:
                embeds = embeds.index_put((slots,), tokens.to(embeds.dtype))
        return embeds

    def get_rope_index(
        self,
        input_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """MRoPE positions of a padded batch.

        input_ids, attention_mask [B, L]; grids [num, 3] in the order of their slots;
        second_per_grid_ts [num_videos] in seconds. Returns positions [3, B, L] (0 where padded) and
        rope_deltas [B, 1]: what to add to the index of a token after the prompt to get its
        position. Raises MessageError where slots and grids do not fit, UsageError for videos
        without their seconds.
        """
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

    def pack_positions(
        self,
        packing: Packing,
        input_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None,
        video_grid_thw: torch.Tensor | None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None,
        caches: Sequence[KVCache] | None = None,
    ) -> torch.Tensor:
        """Packed positions [3, N], each sequence counted on from its cache."""
        merge = self.config.vision_config.spatial_merge_size
        image_grids = read_grids(image_grid_thw, merge) if image_grid_thw is not None else []
        video_grids = read_grids(video_grid_thw, merge) if video_grid_thw is not None else []
        seconds = [float(s) for s in second_per_grid_ts] if second_per_grid_ts is not None else []
        if len(seconds) != len(video_grids) or not all(0 < value < math.inf for value in seconds):
            raise UsageError(
                f"second_per_grid_ts is {seconds}; expected {len(video_grids)} numbers above 0"
            )
        media = MediaQueue(image_grids, video_grids, seconds)
        starts = [cache.next_position for cache in caches] if caches else [0] * len(packing.lengths)
        rows = packing.pack(input_ids).cpu().split(packing.lengths)
        parts = [
            sequence_positions(ids, media, self.config, self.mrope) + start
            for ids, start in zip(rows, starts, strict=True)
        ]
        media.expect_empty()
        return torch.cat(parts, dim=1)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: list[KVCache] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None = None,
        output_hidden_states: bool = False,
    ) -> TextOutput:
        """Padded tokens and media to hidden states; arguments as in
        `Qwen2_5_VLForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise UsageError("give either input_ids or inputs_embeds")
        media = (pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw)
        if input_ids is None and any(part is not None for part in media):
            raise UsageError(
                "pictures and videos need input_ids with their slots, not inputs_embeds"
            )
        text = self.language_model
        shape = (input_ids if input_ids is not None else inputs_embeds).shape  # type: ignore[union-attr]
        packing = Packing.of((shape[0], shape[1]), attention_mask)
        caches = text.open_caches(packing, past_key_values, use_cache)

        if input_ids is None or position_ids is not None:
            positions = text.read_positions(packing, position_ids, caches)
        else:
            positions = self.pack_positions(
                packing, input_ids, image_grid_thw, video_grid_thw, second_per_grid_ts, caches
            )
        if inputs_embeds is not None:
            embeds = packing.pack(inputs_embeds)
        else:
            images = encode(self.visual, pixel_values, image_grid_thw, "image_grid_thw")
            videos = encode(self.visual, pixel_values_videos, video_grid_thw, "video_grid_thw")
            embeds = self.embed(packing.pack(input_ids), images, videos)  # type: ignore[arg-type]

        return text.run_padded(embeds, positions, packing, caches, output_hidden_states)


def encode(
    visual: Qwen2_5_VLVisionModel,
    pixels: torch.Tensor | Patches | None,
    grid_thw: torch.Tensor | None,
    grid_name: str,
) -> torch.Tensor | None:
    """Visual tokens of one kind of media, or None without any."""
    check_pair(pixels, grid_thw, grid_name)
    if pixels is None or grid_thw is None:
        return None
    return visual(pixels, grid_thw)  # type: ignore[no-any-return]


def check_pair(
    pixels: torch.Tensor | Patches | None, grid_thw: torch.Tensor | None, grid_name: str
) -> None:
    """Refuse pixels without grids, and grids without pixels."""
    if (pixels is None) != (grid_thw is None):
        raise UsageError(
            f"{grid_name} and its pixel values go together; the pixels or their grids are missing"
        )

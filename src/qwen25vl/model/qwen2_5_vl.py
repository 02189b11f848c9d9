"""The two towers joined: visual tokens are put into their slots among the text, then the language
model reads on.

B batch · L padded length · N packed tokens · D hidden_size
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import MessageError, UsageError
from qwen25vl.inputs import Patches
from qwen25vl.model.attention import Implementation
from qwen25vl.model.cache import KVCache
from qwen25vl.model.packing import Packing
from qwen25vl.model.positions import MediaQueue, MropeRule, sequence_positions
from qwen25vl.model.text import LanguageModel
from qwen25vl.model.vision import Qwen2_5_VLVisionModel, read_grids


class JoinedTowers(nn.Module):
    text_class = LanguageModel

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
        self.language_model = self.text_class(config.text_config, attn_implementation)

    def fill_slots(
        self,
        embeds: torch.Tensor,
        token_ids: torch.Tensor,
        kind: Literal["picture", "video"],
        tokens: torch.Tensor | None,
    ) -> torch.Tensor:
        """Embeddings [N, D] with the visual tokens [n, D] of one kind in their slots, in order.

        Raises MessageError unless each slot has its token and each token its slot.
        """
        slot_id = self.config.image_token_id if kind == "picture" else self.config.video_token_id
        slots = (token_ids == slot_id).nonzero().flatten()
        num_tokens = 0 if tokens is None else len(tokens)
        if len(slots) != num_tokens:
            raise MessageError(
                f"the prompt has slots for {len(slots)} {kind} tokens, but {num_tokens} are given"
            )
        if tokens is None:
            return embeds
        return embeds.index_put((slots,), tokens.to(embeds.device, embeds.dtype))

    def pack_positions(
        self,
        packing: Packing,
        input_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None,
        video_grid_thw: torch.Tensor | None,
        second_per_grid_ts: torch.Tensor | Sequence[float] | None,
        caches: Sequence[KVCache] | None = None,
    ) -> torch.Tensor:
        """Packed positions [3, N], each sequence counted on from its cache. Videos are sampled at
        one temporal grid a second where second_per_grid_ts is None."""
        merge = self.config.vision_config.spatial_merge_size
        image_grids = read_grids(image_grid_thw, merge) if image_grid_thw is not None else []
        video_grids = read_grids(video_grid_thw, merge) if video_grid_thw is not None else []
        given = [1.0] * len(video_grids) if second_per_grid_ts is None else second_per_grid_ts
        seconds = [float(value) for value in given]
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


def check_pair(
    pixels: torch.Tensor | Patches | None, grid_thw: torch.Tensor | None, grid_name: str
) -> None:
    """Refuse pixels without grids, and grids without pixels."""
    if (pixels is None) != (grid_thw is None):
        raise UsageError(
            f"{grid_name} and its pixel values go together; the pixels or their grids are missing"
        )

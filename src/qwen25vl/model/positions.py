"""Where a token stands in time, row and column (MRoPE, arXiv 2502.13923 §2.1.2), from ids and grids
alone.

Text counts on: time = row = column. A picture is one moment: time stands still while rows and
columns count its visual tokens. In a clip time runs with the clock: temporal grid i stands at
floor(i · tokens_per_second · seconds_per_grid). The next text token follows after the largest
position so far.

NOTE transformers 5.x moves on by max(rows, columns) only and so lets the text after a clip overlap
the clip's time. The weights were trained with the rule above (transformers 4.49–4.57 and Qwen's
training code follow it). "hf5" gives the 5.x positions for comparison.

    L tokens of one sequence · merge: patches per side of a visual token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import MessageError
from qwen25vl.inputs import Grid

MropeRule = Literal["reference", "hf5"]


@dataclass
class MediaQueue:
    """The pictures and clips of a batch, consumed in the order of their slots."""

    image_grids: Sequence[Grid]
    video_grids: Sequence[Grid]
    seconds_per_grid: Sequence[float]
    num_images: int = 0
    num_videos: int = 0

    def next_image(self) -> tuple[Grid, float]:
        if self.num_images == len(self.image_grids):
            raise MessageError(
                f"the prompt has more slots for pictures than the {self.num_images} pictures given"
            )
        self.num_images += 1
        return self.image_grids[self.num_images - 1], 0.0

    def next_video(self) -> tuple[Grid, float]:
        if self.num_videos == len(self.video_grids):
            raise MessageError(
                f"the prompt has more slots for videos than the {self.num_videos} videos given"
            )
        self.num_videos += 1
        return self.video_grids[self.num_videos - 1], self.seconds_per_grid[self.num_videos - 1]

    def expect_empty(self) -> None:
        if (self.num_images, self.num_videos) != (len(self.image_grids), len(self.video_grids)):
            raise MessageError(
                f"the prompt has slots for {self.num_images} pictures and {self.num_videos} "
                "videos, but "
                f"{len(self.image_grids)} pictures and {len(self.video_grids)} videos are given"
            )


def sequence_positions(
    token_ids: torch.Tensor,
    media: MediaQueue,
    config: Qwen2_5_VLConfig,
    rule: MropeRule = "reference",
) -> torch.Tensor:
    """Positions [3, L] of one unpadded sequence `token_ids` [L]."""
    merge = config.vision_config.spatial_merge_size
    is_image = token_ids == config.image_token_id
    slots = (is_image | (token_ids == config.video_token_id)).nonzero().flatten().tolist()
    parts: list[torch.Tensor] = []
    index = start = slot = 0
    while slot < len(slots):
        first = slots[slot]
        parts.append(text_positions(start, first - index))
        start += first - index
        picture = bool(is_image[first])
        (t, h, w), seconds_per_grid = media.next_image() if picture else media.next_video()
        rows, columns = h // merge, w // merge
        stop = first + t * rows * columns
        if slots[slot : slot + stop - first][-1] != stop - 1 or bool(
            (token_ids[first:stop] != token_ids[first]).any()
        ):
            kind = "picture" if picture else "video"
            raise MessageError(
                f"a {kind} of {stop - first} visual tokens does not fit the slot at token {first}"
            )
        pace = config.vision_config.tokens_per_second * seconds_per_grid
        parts.append(grid_positions(start, t, rows, columns, pace))
        start = max(rows, columns) + start if rule == "hf5" else int(parts[-1].max()) + 1
        index, slot = stop, slot + stop - first
    parts.append(text_positions(start, len(token_ids) - index))
    return torch.cat(parts, dim=1)


def text_positions(start: int, length: int) -> torch.Tensor:
    return torch.arange(start, start + length, device="cpu").expand(3, -1)


def grid_positions(
    start: int, num_frames: int, rows: int, columns: int, pace: float
) -> torch.Tensor:
    """[3, t·rows·columns]: time moves by `pace` per temporal grid (float32, rounded down), rows and
    columns by 1."""
    time = (
        torch.arange(num_frames, device="cpu")
        * torch.tensor(pace, dtype=torch.float32, device="cpu")
    ).long()
    grid = torch.meshgrid(
        time, torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu"), indexing="ij"
    )
    return torch.stack(grid).flatten(1) + start

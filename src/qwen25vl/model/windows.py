"""The order in which the vision encoder walks a frame, and which of its patches see each other.

Most vision blocks attend within windows of 112 × 112 pixels = 8×8 patches = 4×4 visual tokens;
windows at the right and bottom edges are smaller. Rows are permuted once so that every window lies
in one piece (in units of a visual token, whose four patches stay together) and permuted back after
the merger. Inside a window order means nothing to attention, so within each frame the windows of
equal size stand side by side: a whole run of them is then one batched attention call on a plain
view, without a mask, without padding and without a copy.

What surprises: a frame is always a segment of its own. Frames of a clip never see each other in
this encoder.

    grid (t, h, w) counted in patches · everything here is integer arithmetic on the host
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from qwen25vl.config import Qwen2_5_VLVisionConfig
from qwen25vl.inputs import Grid

MAX_PATCHES_PER_PASS = 32768


@dataclass(frozen=True)
class Run:
    """`count` segments of `length` rows each, one after another from row `start`."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


@dataclass(frozen=True)
class WindowPlan:
    """All that the encoder needs to know about the shape of its input.

    order [num_visual_tokens]: order[i] is the visual token that stands at place i. rows, columns
    [num_patches]: where the patches lie in their frames, in window order. windows, frames: the
    segments, in patches.
    """

    order: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    windows: tuple[Run, ...]
    frames: tuple[Run, ...]

    @property
    def inverse_order(self) -> torch.Tensor:
        return torch.argsort(self.order)


def plan_windows(grids: Sequence[Grid], config: Qwen2_5_VLVisionConfig) -> WindowPlan:
    """Plan the packed patches of pictures and clips with these grids."""
    merge = config.spatial_merge_size
    orders, rows, columns = [], [], []
    window_lengths: list[int] = []
    frame_lengths: list[int] = []
    num_tokens = 0
    for t, h, w in grids:
        order, lengths = order_windows(h // merge, w // merge, config.window_tokens)
        frame_starts = torch.arange(t, device="cpu")[:, None] * len(order) + num_tokens
        orders.append((frame_starts + order).flatten())
        token_rows, token_columns = order // (w // merge), order % (w // merge)
        inside = torch.arange(merge, device="cpu")
        frame_rows = (token_rows[:, None, None] * merge + inside[:, None]).expand(-1, merge, merge)
        frame_columns = (token_columns[:, None, None] * merge + inside[None, :]).expand(
            -1, merge, merge
        )
        rows.append(frame_rows.flatten().repeat(t))
        columns.append(frame_columns.flatten().repeat(t))
        window_lengths += [n * merge**2 for n in lengths] * t
        frame_lengths += [h * w] * t
        num_tokens += t * len(order)
    return WindowPlan(
        torch.cat(orders),
        torch.cat(rows),
        torch.cat(columns),
        find_runs(window_lengths),
        find_runs(frame_lengths),
    )


def order_windows(height: int, width: int, side: int) -> tuple[torch.Tensor, list[int]]:
    """Order the tokens of a height × width frame by windows of side × side, larger windows first.

    Returns (order [height·width], number of tokens in each window).
    """
    row, column = (
        torch.arange(height, device="cpu")[:, None],
        torch.arange(width, device="cpu")[None, :],
    )
    window = (row // side * -(-width // side) + column // side).flatten()
    sizes = torch.bincount(window)
    rank = torch.empty_like(sizes)
    by_size = torch.argsort(sizes, descending=True, stable=True)
    rank[by_size] = torch.arange(len(sizes), device="cpu")
    return torch.argsort(rank[window], stable=True), sizes[by_size].tolist()


def find_runs(lengths: Sequence[int]) -> tuple[Run, ...]:
    """Join neighbouring segments of equal length."""
    runs, start = [], 0
    for length, group in groupby(lengths):
        run = Run(start, len(list(group)), length)
        runs.append(run)
        start = run.stop
    return tuple(runs)


def split_grids(grids: Sequence[Grid], max_patches: int) -> Iterator[list[Grid]]:
    """Cut a request into parts of whole frames, at most `max_patches` patches each (a larger frame
    stands alone)."""
    part: list[Grid] = []
    room = max_patches
    for t, h, w in grids:
        while t:
            frames = min(t, max(room // (h * w), 0 if part else 1))
            if frames:
                part.append((frames, h, w))
                room -= frames * h * w
                t -= frames  # noqa: PLW2901
            else:
                yield part
                part, room = [], max_patches
    if part:
        yield part

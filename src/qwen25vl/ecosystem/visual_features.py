"""The vision encoder's result in the form of the ecosystem: tokens of each picture or video, and
patches in the order of windows that transformers has.

The encoder sorts windows by size, which changes no number; here they stand by frame, row, column.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLVisionConfig
from qwen25vl.ecosystem.outputs import VisionOutput
from qwen25vl.errors import UsageError
from qwen25vl.inputs import Grid, Patches
from qwen25vl.model.vision import Qwen2_5_VLVisionModel, read_grids
from qwen25vl.model.windows import MAX_PATCHES_PER_PASS, plan_windows, split_grids


def visual_features(
    visual: Qwen2_5_VLVisionModel,
    pixels: torch.Tensor | Patches,
    grid_thw: torch.Tensor | None,
    grid_name: str,
    output_hidden_states: bool = False,
) -> VisionOutput:
    """pixels [num_patches, 1176] of the grids [num, 3]. Raises UsageError where they do not fit."""
    if grid_thw is None:
        raise UsageError(f"give {grid_name}: how many patches each has in time, height and width")
    seen: dict[nn.Module, list[torch.Tensor]] = {}

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault(module, []).append(inputs[0])

    watched = [*(visual.blocks if output_hidden_states else ()), visual.merger]
    hooks = [module.register_forward_pre_hook(see) for module in watched]
    try:
        tokens: torch.Tensor = visual(pixels, grid_thw)
    finally:
        for hook in hooks:
            hook.remove()
    grids = read_grids(grid_thw, visual.config.spatial_merge_size)
    states = [order_by_place(seen[module], grids, visual.config) for module in watched]
    sizes = [prod(grid) // visual.config.spatial_merge_size**2 for grid in grids]
    hidden_states = tuple(states) if output_hidden_states else None
    return VisionOutput(states[-1], tokens.split(sizes), hidden_states)


def order_by_place(
    passes: list[torch.Tensor], grids: Sequence[Grid], config: Qwen2_5_VLVisionConfig
) -> torch.Tensor:
    """Rows [N, D] of all passes of the encoder: windows by frame, row and column."""
    unit = config.spatial_merge_size**2
    ordered = []
    for x, part in zip(passes, split_grids(grids, MAX_PATCHES_PER_PASS), strict=True):
        plan = plan_windows(part, config)
        order = plan.inverse_order[torch.cat([places(grid, config) for grid in offset(part, unit)])]
        ordered.append(x.unflatten(0, (-1, unit))[order.to(x.device)].flatten(0, 1))
    return torch.cat(ordered)


def offset(grids: Sequence[Grid], unit: int) -> list[tuple[int, Grid]]:
    """Each grid with the number of visual tokens before it."""
    found, start = [], 0
    for grid in grids:
        found.append((start, grid))
        start += prod(grid) // unit
    return found


def places(placed: tuple[int, Grid], config: Qwen2_5_VLVisionConfig) -> torch.Tensor:
    """Visual tokens of one grid, by number, sorted by frame, row and column of their window."""
    start, (t, h, w) = placed
    merge, side = config.spatial_merge_size, config.window_tokens
    rows, columns = (torch.arange(size // merge, device="cpu") for size in (h, w))
    windows = rows[:, None] // side * len(columns) + columns // side
    frames = torch.arange(t, device="cpu")[:, None, None] * windows.numel()
    return start + (frames + windows).flatten().argsort(stable=True)

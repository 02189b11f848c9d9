"""Frames of uint8 to the model's size and into patches: compiled in one pass over all threads, or
its torch twin.

Both give the figures of the reference's torchvision backend to the bit: bicubic with antialias on
**uint8** (resizing in float is up to 19 levels off, Pillow's own resize up to 18), then (x − mean)
/ deviation in float32.

T frames · H × W pixels as given · h × w at model size · N patches
"""

from __future__ import annotations

import torch

from qwen25vl.kernels import library, operands
from qwen25vl.threads import num_threads


def resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [T, 3, H, W] -> uint8 [T, 3, height, width], bicubic with antialias."""
    if frames.shape[-2:] == (height, width):
        return frames
    kernel = (
        library.function("resize_frames") if operands.fit_frames(frames, height, width) else None
    )
    if kernel is None:
        return torch.nn.functional.interpolate(
            frames, size=(height, width), mode="bicubic", antialias=True
        )
    rows = interleave(frames)
    out = torch.empty(len(rows), height, width, 3, dtype=torch.uint8, device=rows.device)
    kernel(out.data_ptr(), rows.data_ptr(), *rows.shape[:3], height, width, num_threads())
    return out.permute(0, 3, 1, 2)


def cut(
    frames: torch.Tensor, size: tuple[int, int], mean: torch.Tensor, deviation: torch.Tensor,
    *, patch: int, merge: int, temporal: int, dtype: torch.dtype = torch.float32,
) -> torch.Tensor:  # fmt: skip
    """uint8 [T, 3, H, W] -> patches [N, 3 · temporal · patch²] in merge-block order, in `dtype`:
    computed in float32 and rounded once.

    size: h and w, multiples of patch · merge; mean, deviation: float32 [3], in levels. The last
    frame is repeated to fill its patch, so that a still picture is one frame.
    """
    fits = operands.fit_patches(frames, size, mean, deviation, patch, merge, temporal)
    kernel = library.function("patch_frames") if fits else None
    if kernel is None:
        return cut_in_torch(resize(frames, *size), mean, deviation, patch, merge, temporal).to(
            dtype
        )
    if dtype not in (torch.float32, torch.bfloat16):
        return cut(frames, size, mean, deviation, patch=patch, merge=merge, temporal=temporal).to(
            dtype
        )
    rows = interleave(frames)
    num_patches = -(-len(rows) // temporal) * (size[0] // patch) * (size[1] // patch)
    patches = torch.empty(num_patches, 3 * temporal * patch**2, dtype=dtype, device=rows.device)
    pointers = (each.data_ptr() for each in (patches, rows, mean, deviation))
    is_half = dtype == torch.bfloat16
    kernel(*pointers, *rows.shape[:3], *size, patch, merge, temporal, is_half, num_threads())
    return patches


def interleave(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [T, 3, H, W] -> contiguous [T, H, W, 3]: a view of what Pillow stores; planes are
    joined, in half the time of a permuted copy."""
    rows = frames.permute(0, 2, 3, 1)
    return rows if rows.is_contiguous() else torch.stack(frames.unbind(1), -1)


def cut_in_torch(
    frames: torch.Tensor,
    mean: torch.Tensor,
    deviation: torch.Tensor,
    patch: int,
    merge: int,
    temporal: int,
) -> torch.Tensor:
    """The twin of `cut` for frames that have their size: float32."""
    num_frames, _, height, width = frames.shape
    if (num_left := num_frames % temporal) > 1:
        frames = torch.cat([frames, frames[-1:].expand(temporal - num_left, -1, -1, -1)])
    rows, columns = height // patch // merge, width // patch // merge
    sizes = -(-num_frames // temporal), rows, columns, merge, merge, 3, temporal, patch, patch
    patches = torch.empty(sizes, dtype=torch.float32, device=frames.device)
    for target, group in zip(patches, frames.split(temporal), strict=True):
        values = group.float().sub_(mean.view(3, 1, 1)).div_(deviation.view(3, 1, 1))
        blocks = values.view(-1, 3, rows, merge, patch, columns, merge, patch)
        target.copy_(blocks.permute(2, 5, 3, 6, 1, 0, 4, 7))  # a lone frame fills its patch
    return patches.view(-1, 3 * temporal * patch**2)

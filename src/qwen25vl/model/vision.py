"""The vision encoder (arXiv 2502.13923 §2.1.1): patches in, visual tokens out.

A patch is 14×14 pixels of two frames. Thirty-two transformer blocks mix patches, most of them
within windows, four of them over a whole frame; the merger then joins each 2×2 patches into one
visual token of the text model's width.

What surprises: the patch embedding is stored as a 3-D convolution whose kernel equals its stride,
which is a plain matrix product on flattened patches (and thousands of times faster as one in
bfloat16). Frames never attend to each other, so a long clip can be encoded in parts, with the same
result and bounded memory.

    N patches · D hidden_size · H heads · d head size
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qwen25vl.config import Qwen2_5_VLVisionConfig
from qwen25vl.errors import UsageError
from qwen25vl.inputs import Grid, Patches
from qwen25vl.kernels import ops
from qwen25vl.kernels.allocator import release
from qwen25vl.model.attention import Implementation, attend_in_parts, attend_segments
from qwen25vl.model.layers import Linear, RMSNorm, SwiGLU, initialise, is_plain
from qwen25vl.model.rope import Rotation, vision_rotation
from qwen25vl.model.windows import MAX_PATCHES_PER_PASS, Run, WindowPlan, plan_windows, split_grids

NORM_EPS = 1e-6

T = TypeVar("T")
Parts = Generator[None, None, T]  # work that can be paused: yields between its parts, returns T
ROWS_IN_A_PART = 2048  # of an encoding that others wait for


class PatchEmbed(nn.Module):
    """[N, channels·2·14·14] -> [N, D]"""

    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_channels, config.hidden_size, kernel, stride=kernel, bias=False
        )
        self.shape = config.in_channels, *kernel

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        if type(self.proj) is nn.Conv3d:
            return ops.linear(patches, self.proj.weight.flatten(1))
        # an adapter's layer in its place, which does more than multiply with a weight
        return self.proj(patches.view(-1, *self.shape)).flatten(1)  # type: ignore[no-any-return]


class VisionAttention(nn.Module):
    def __init__(self, config: Qwen2_5_VLVisionConfig, implementation: Implementation) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.implementation: Implementation = implementation
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, rotation: Rotation, runs: Sequence[Run]) -> torch.Tensor:
        q, k, v = self.split_heads(self.qkv(x), rotation)
        attended = attend_segments(q, k, v, runs, self.implementation)
        del q, k, v  # five of the eight rows that attention holds of a patch
        return self.proj(attended.flatten(1))  # type: ignore[no-any-return]

    def split_heads(
        self, qkv: torch.Tensor, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[N, 3D] -> q and k, both rotated, and v, [N, H, d] each."""
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        return ops.rotate(q, rotation), ops.rotate(k, rotation), v


class VisionBlock(nn.Module):
    def __init__(self, config: Qwen2_5_VLVisionConfig, implementation: Implementation) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, NORM_EPS)
        self.norm2 = RMSNorm(config.hidden_size, NORM_EPS)
        self.attn = VisionAttention(config, implementation)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, x: torch.Tensor, rotation: Rotation, runs: Sequence[Run]) -> torch.Tensor:
        x = ops.add(x, self.attn(self.norm1(x), rotation, runs))
        return ops.add(x, self.mlp(self.norm2(x)))

    def forward_in_parts(
        self, x: torch.Tensor, rotation: Rotation, runs: Sequence[Run], rows: int
    ) -> Parts[torch.Tensor]:
        """`forward` with the same bits, at most `rows` rows between two yields."""
        x = yield from self.attention_in_parts(x, rotation, runs, rows)

        def feed_forward(part: slice) -> torch.Tensor:
            return ops.add(x[part], self.mlp(self.norm2(x[part])))

        return (yield from in_parts(feed_forward, x, x.shape[1], rows))

    def attention_in_parts(
        self, x: torch.Tensor, rotation: Rotation, runs: Sequence[Run], rows: int
    ) -> Parts[torch.Tensor]:
        """x + attn(norm1(x))"""
        attn, width = self.attn, x.shape[1]
        qkv = yield from in_parts(lambda r: attn.qkv(self.norm1(x[r])), x, 3 * width, rows)
        q, k, v = attn.split_heads(qkv, rotation)
        del qkv
        attended = yield from attend_in_parts(q, k, v, runs, attn.implementation, rows)
        del q, k, v
        flat = attended.flatten(1)
        return (yield from in_parts(lambda r: ops.add(x[r], attn.proj(flat[r])), x, width, rows))


def in_parts(
    compute: Callable[[slice], torch.Tensor], x: torch.Tensor, width: int, rows: int
) -> Parts[torch.Tensor]:
    """A result [N, width] whose rows depend on one row of x each, `rows` rows between two
    yields."""
    y = ops.empty_like(x, (len(x), width))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        y[part] = compute(part)
        yield
    return y


class PatchMerger(nn.Module):
    """Join the merge² patches of a visual token: [N, D] -> [N / merge², out_hidden_size]"""

    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        self.joined = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, NORM_EPS)
        self.mlp = nn.Sequential(
            Linear(self.joined, self.joined), nn.GELU(), Linear(self.joined, config.out_hidden_size)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.joined))  # type: ignore[no-any-return]


class Qwen2_5_VLVisionModel(nn.Module):
    def __init__(
        self, config: Qwen2_5_VLVisionConfig, attn_implementation: Implementation = "sdpa"
    ) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            VisionBlock(config, attn_implementation) for _ in range(config.depth)
        )
        self.merger = PatchMerger(config)
        self.gradient_checkpointing = False
        initialise(self, config.initializer_range)

    def forward(
        self,
        pixel_values: torch.Tensor | Patches,
        grid_thw: torch.Tensor | Sequence[Grid],
    ) -> torch.Tensor:
        """Encode pictures and clips.

        pixel_values: [N, 1176], the patches of all of them; `Patches` are taken away as they are
        embedded. grid_thw: [num, 3] patches in time, height and width. Returns [N / 4,
        out_hidden_size]. Raises UsageError when patches and grids do not fit.
        """
        grids = fit_grids(grid_thw, pixel_values, self.config)
        patches = pixel_values if isinstance(pixel_values, Patches) else Patches([pixel_values])
        return finish(self.encode_in_parts(patches, grids, lambda: False))

    def encode_in_parts(
        self, patches: Patches, grids: Sequence[Grid], is_urgent: Callable[[], bool]
    ) -> Generator[float, None, torch.Tensor]:
        """`forward` as work that can be paused and resumed at any yield.

        is_urgent: asked before each block whether others wait for the processor; if so a part takes
        a few hundred rows through one operation, with the same bits, otherwise a whole block.
        Yields the share of the work that is done, returns [N / 4, out_hidden_size].
        """
        passes = list(split_grids(grids, MAX_PATCHES_PER_PASS))
        tokens = []
        for number, part in enumerate(passes):
            plan = plan_windows(part, self.config)
            x = self.embed(patches.take(sum(t * h * w for t, h, w in part)), plan.order)
            rotation = vision_rotation(
                plan.rows.to(x.device), plan.columns.to(x.device), self.config
            )
            for index, block in enumerate(self.blocks):
                runs = self.runs_of(index, plan)
                done = (number + (index + 1) / len(self.blocks)) / len(passes)
                if self.gradient_checkpointing and self.training:
                    x = checkpoint(block, x, rotation, runs, use_reentrant=False)
                elif is_urgent() and is_plain(block):
                    parts = cast(VisionBlock, block).forward_in_parts(
                        x, rotation, runs, ROWS_IN_A_PART
                    )
                    x = yield from count_parts(parts, done - 1 / len(self.blocks) / len(passes))
                else:
                    x = block(x, rotation, runs)
                yield done
            tokens.append((yield from self.merge_in_parts(x, plan, is_urgent, done)))
        return torch.cat(tokens) if len(tokens) > 1 else tokens[0]

    def merge_in_parts(
        self, x: torch.Tensor, plan: WindowPlan, is_urgent: Callable[[], bool], done: float
    ) -> Generator[float, None, torch.Tensor]:
        """The visual tokens of a pass in their own order: [N, D] -> [N / 4, out_hidden_size]"""
        release()  # the merger is partly torch's, which cannot use what the blocks have left
        unit = self.config.spatial_merge_size**2
        rows = ROWS_IN_A_PART * unit if is_urgent() else len(x)
        merged = []
        for part in x.split(rows):
            merged.append(self.merger(part))
            yield done
        rows_of_all = torch.cat(merged) if len(merged) > 1 else merged[0]
        return rows_of_all[plan.inverse_order.to(x.device)]

    def runs_of(self, block: int, plan: WindowPlan) -> Sequence[Run]:
        """The segments within which a block attends."""
        return plan.frames if block in self.config.fullatt_block_indexes else plan.windows

    def embed(self, patches: list[torch.Tensor], order: torch.Tensor) -> torch.Tensor:
        """Patches of several pictures to rows [N, D] in the order of the windows. They leave the
        list one by one."""
        weight = self.patch_embed.proj.weight
        rows = []
        while patches:
            rows.append(self.patch_embed(patches.pop(0).to(weight.device, weight.dtype)))
        x = torch.cat(rows) if len(rows) > 1 else rows.pop()
        rows.clear()
        unit = self.config.spatial_merge_size**2
        ordered: torch.Tensor = x.unflatten(0, (-1, unit))[order.to(x.device)].flatten(0, 1)
        return ordered


def finish(work: Generator[object, None, T]) -> T:
    """Do all of the work at once."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def count_parts(parts: Parts[T], done: float) -> Generator[float, None, T]:
    """Parts of a block as steps of the whole work, of which `done` was done before it."""
    while True:
        try:
            next(parts)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        yield done


def read_grids(grid_thw: torch.Tensor | Sequence[Grid], merge: int) -> list[Grid]:
    """[num, 3] -> host tuples; each side must be a positive multiple of the merge size."""
    rows = grid_thw.tolist() if isinstance(grid_thw, torch.Tensor) else grid_thw
    grids = [(int(t), int(h), int(w)) for t, h, w in rows]
    for t, h, w in grids:
        if t < 1 or h < merge or w < merge or h % merge or w % merge:
            raise UsageError(
                f"grid {(t, h, w)} is impossible: height and width must be multiples of {merge}"
            )
    return grids


def fit_grids(
    grid_thw: torch.Tensor | Sequence[Grid],
    pixel_values: torch.Tensor | Patches,
    config: Qwen2_5_VLVisionConfig,
) -> list[Grid]:
    """The grids as host tuples. Raises UsageError unless the patches are those of the grids."""
    grids = read_grids(grid_thw, config.spatial_merge_size)
    num_patches = sum(t * h * w for t, h, w in grids)
    if tuple(pixel_values.shape) != (num_patches, config.patch_dim):
        raise UsageError(
            f"pixel_values has shape {list(pixel_values.shape)}; grids {grids} need "
            f"[{num_patches}, {config.patch_dim}]"
        )
    return grids

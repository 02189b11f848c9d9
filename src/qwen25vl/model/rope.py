"""The two rotary embeddings (arXiv 2104.09864): rows and columns for patches, three streams for
tokens.

Both turn a head of size d by angles θ_j = p_j · f_j, j < d/2, in the half-rotated convention:
number j is paired with number j + d/2,

    y_j       = x_j · cos θ_j − x_{j+d/2} · sin θ_j
    y_{j+d/2} = x_{j+d/2} · cos θ_j + x_j · sin θ_j

What differs is the position p_j that frequency j follows. In a patch the first half of the
frequencies follows its row and the second half its column. In a token the frequencies are dealt out
to time, row and column by `mrope_section` (multimodal RoPE, arXiv 2409.12191 §2.1). Angles are
computed in float32. Patches are turned in float32 too, tokens in the precision of their
activations: that is how the reference rounds, and in bfloat16 it makes the text tower equal to it
bit for bit.

    N rows · H heads · d head size
"""

from __future__ import annotations

import math

import torch

from qwen25vl.config import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.rope_scaling import RopeScaling

VISION_THETA = 10_000.0

Rotation = tuple[torch.Tensor, torch.Tensor]
"""(cos, sin), each [N, 1, d/2]."""


def vision_rotation(
    rows: torch.Tensor, columns: torch.Tensor, config: Qwen2_5_VLVisionConfig
) -> Rotation:
    """Angles of patches at `rows`, `columns` [N]: f_k = 10000^(−2k/(d/2)) for each axis, k <
    d/4."""
    half = config.head_dim // 2
    frequencies = inverse_powers(VISION_THETA, half).to(rows.device)
    angles = torch.cat((rows[:, None] * frequencies, columns[:, None] * frequencies), dim=-1)
    return angles.cos()[:, None], angles.sin()[:, None]


def text_rotation(
    positions: torch.Tensor, config: Qwen2_5_VLTextConfig, dtype: torch.dtype
) -> Rotation:
    """Angles of tokens at `positions` [3, N] (time, row, column): f_j = theta^(−2j/d), stretched by
    YaRN if asked.

    cos and sin are rounded to `dtype`.
    """
    frequencies, attention_factor = text_frequencies(config)
    section = torch.tensor(
        config.rope_scaling.mrope_section, device=positions.device, dtype=torch.int64
    )
    stream = torch.repeat_interleave(torch.arange(3, device=positions.device), section)
    angles = positions[stream].T.contiguous() * frequencies.to(
        positions.device
    )  # [3, N] -> [N, d/2]
    cos, sin = angles.cos() * attention_factor, angles.sin() * attention_factor
    return cos[:, None].to(dtype), sin[:, None].to(dtype)


def text_frequencies(config: Qwen2_5_VLTextConfig) -> tuple[torch.Tensor, float]:
    """The d/2 text frequencies and the factor on cos and sin.

    YaRN (arXiv 2309.00071 §3.2–3.4): frequency j keeps its pace where it turns at least beta_fast
    times over the original context, is slowed by `factor` where it turns less than beta_slow times,
    and blends linearly between; cos and sin grow (see `growth`).
    """
    scaling = config.rope_scaling
    frequencies = inverse_powers(config.rope_theta, config.head_dim)
    if scaling.type == "mrope":
        return frequencies, 1.0
    if scaling.type == "linear":
        return frequencies / scaling.factor, 1.0
    context = scaling.original_max_position_embeddings or config.max_position_embeddings

    def index_turning(times: float) -> float:
        return (
            config.head_dim
            * math.log(context / (times * 2 * math.pi))
            / (2 * math.log(config.rope_theta))
        )

    low, high = index_turning(scaling.beta_fast), index_turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = (torch.arange(len(frequencies), device="cpu") - low) / max(high - low, 0.001)
    slowed = ramp.clamp(0, 1)
    return frequencies * (1 - slowed) + frequencies / scaling.factor * slowed, growth(scaling)


def growth(scaling: RopeScaling) -> float:
    """YaRN's factor on cos and sin: as given, else 0.1·ln(factor) + 1, or with two mscale keys the
    quotient of 0.1·mscale·ln(factor) + 1 for both."""
    if scaling.attention_factor:
        return scaling.attention_factor

    def grown(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return grown(scaling.mscale) / grown(scaling.mscale_all_dim)
    return grown(1.0)


def inverse_powers(theta: float, size: int) -> torch.Tensor:
    """theta^(−2j/size) for j < size/2, float32."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)

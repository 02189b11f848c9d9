"""What an input costs before it is run:
arithmetic from the shapes, seconds from the rates of the machine.

One multiplication and one addition are two operations. The vision encoder and the prompt are bound
by arithmetic; a written token by the reading of every weight and of the keys and values before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen25vl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.inputs import Grid
from qwen25vl.model.cache import cache_bytes

# in the layers of the language model
BYTES_PER_WEIGHT = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "int4": 0.516,
    "int8+vision": 1.0,
    "int4+vision": 0.516,
}
TYPICAL_OVER_BEST = 1.08  # in time; the rates are measured as the best of several runs
STEP_SECONDS, CHOICE_SECONDS = 0.0005, 8e-9  # to choose a token: fixed, and per vocabulary entry


def vision_operations(config: Qwen2_5_VLVisionConfig, grids: Sequence[Grid]) -> float:
    """Operations of the encoder, grids (t, h, w) in patches."""
    width, joined = config.hidden_size, config.hidden_size * config.spatial_merge_size**2
    block = 4 * width**2 + 3 * width * config.intermediate_size
    merger = joined * (joined + config.out_hidden_size) / config.spatial_merge_size**2
    side, num_full = config.window_size // config.patch_size, len(config.fullatt_block_indexes)
    total = 0.0
    for t, h, w in grids:
        windows = squares(h, side) * squares(w, side)
        pairs = num_full * (h * w) ** 2 + (config.depth - num_full) * windows
        total += t * (
            2 * h * w * (config.patch_dim * width + config.depth * block + merger)
            + 4 * width * pairs
        )
    return total


def squares(length: int, side: int) -> int:
    """Σ n² over the pieces of a length cut every `side`."""
    return length // side * side**2 + (length % side) ** 2


def text_operations(config: Qwen2_5_VLTextConfig, num_tokens: int, num_before: int = 0) -> float:
    """Operations of the layers for `num_tokens` new tokens behind `num_before` others;
    the head apart."""
    pairs = num_tokens * (num_before + (num_tokens + 1) / 2)
    return config.num_hidden_layers * (
        2 * num_tokens * layer_weights(config) + 4 * config.hidden_size * pairs
    )


def layer_weights(config: Qwen2_5_VLTextConfig) -> int:
    kv_width = config.num_key_value_heads * config.head_dim
    return config.hidden_size * (
        2 * config.hidden_size + 2 * kv_width + 3 * config.intermediate_size
    )


@dataclass(frozen=True)
class Rates:
    """What this machine reached: operations per second in a few layers of the model, bytes of their
    weights per second for a single token, bytes per second of plain reading."""

    vision: float
    prefill: float
    decode: float
    read: float


@dataclass(frozen=True)
class Estimate:
    """Seconds of each stage: encoding the media, reading the prompt to its first answer token,
    each further token."""

    vision: float
    prefill: float
    token: float


def estimate(
    config: Qwen2_5_VLConfig, rates: Rates, grids: Sequence[Grid], num_tokens: int, precision: str
) -> Estimate:
    """grids: of all media; num_tokens: of the prompt; precision:
    of the layers, a key of BYTES_PER_WEIGHT."""
    text, item = config.text_config, 4 if precision == "float32" else 2
    layer_bytes = text.num_hidden_layers * layer_weights(text) * BYTES_PER_WEIGHT[precision]
    head_bytes = (1 if precision.startswith("int") else item) * text.vocab_size * text.hidden_size
    choice = STEP_SECONDS + text.vocab_size * CHOICE_SECONDS + head_bytes / rates.read
    return Estimate(
        TYPICAL_OVER_BEST * vision_operations(config.vision_config, grids) / rates.vision,
        TYPICAL_OVER_BEST * text_operations(text, num_tokens) / rates.prefill + choice,
        TYPICAL_OVER_BEST * layer_bytes / rates.decode
        + cache_bytes(text, num_tokens, item) / rates.read
        + choice,
    )

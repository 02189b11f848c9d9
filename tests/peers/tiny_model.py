"""The small model of transformers' own tests for Qwen2.5-VL: sizes and inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PICTURE, VIDEO, START = 4, 5, 3
NUM_COLUMNS, SLOT = 39, 32
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "max_window_layers": 3,
    "vocab_size": 99,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
}
VISION: dict[str, Any] = {
    "depth": 2,
    "in_chans": 3,
    "hidden_act": "silu",
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 14,
    "spatial_patch_size": 14,
    "spatial_merge_size": 1,
    "temporal_patch_size": 2,
    "tokens_per_second": 4,  # transformers' default
}
WHOLE: dict[str, Any] = {
    **TEXT,
    "model_type": "qwen2_5_vl",
    "vision_config": VISION,
    "tie_word_embeddings": True,
    "vision_start_token_id": START,
    "image_token_id": PICTURE,
    "video_token_id": VIDEO,
    "rms_norm_eps": 1e-6,
}


def ids_with_slots(batch: int, slot: int = PICTURE, width: int = 1, seed: int = 0) -> torch.Tensor:
    """Random tokens [batch, 39] with a slot of `width` tokens in each row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 99, (batch, NUM_COLUMNS), generator=generator)
    ids[:, SLOT - 1] = START
    ids[:, SLOT : SLOT + width] = slot
    return ids


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def picture_inputs(batch: int = 3) -> dict[str, torch.Tensor]:
    """A picture of one patch in each row."""
    ids = ids_with_slots(batch)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": noise(batch, 1176),
        "image_grid_thw": torch.tensor([[1, 1, 1]] * batch),
    }


def video_inputs(batch: int = 3) -> dict[str, torch.Tensor]:
    """A video of four frames, two temporal grids of one patch, in each row."""
    ids = ids_with_slots(batch, VIDEO, 2)
    return {
        "input_ids": ids,
        "pixel_values_videos": noise(2 * batch, 1176),
        "video_grid_thw": torch.tensor([[2, 1, 1]] * batch),
    }


def token_types(ids: torch.Tensor) -> torch.Tensor:
    """What newer processors hand out beside the ids."""
    return (ids == PICTURE).int() + 2 * (ids == VIDEO).int()


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights wide enough that rows and tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            start = 1.0 if parameter.ndim == 1 else 0.0
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(start + 0.15 * values)

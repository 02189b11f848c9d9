"""What the steps of gpu_check.py share: the job, a small model with random weights, and how far its
logits are off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

IMAGE, VIDEO, VOCABULARY = 990, 991, 1000


@dataclass(frozen=True)
class Job:
    """device: what is checked; is_small: whether with tiny models only."""

    device: torch.device
    is_small: bool

    @property
    def name(self) -> str:
        """As the table calls it."""
        return "CUDA" if self.device.type == "cuda" else self.device.type


Check = tuple[str, Callable[[], "str | dict[str, Any]"]]


def small_config() -> Any:
    """The official structure in small: windows and whole frames, MRoPE, grouped keys; widths that
    groups of 32 divide."""
    from qwen25vl import Qwen2_5_VLConfig

    text = {
        "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 4096,
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4,
        "out_hidden_size": 128, "window_size": 112, "fullatt_block_indexes": [1, 3],
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "eos_token_id": 999}
    ids |= {"vision_start_token_id": 992, "vision_end_token_id": 993}
    return Qwen2_5_VLConfig.from_dict(
        {**text, **ids, "vision_config": vision, "tie_word_embeddings": False}
    )


def small_model(dtype: torch.dtype = torch.float32) -> Any:
    """Random weights on the CPU, wide enough that logits tell tokens apart."""
    from qwen25vl import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(small_config())
    for name, parameter in model.named_parameters():
        centre = float(name.endswith("norm.weight") or "norm" in name.split(".")[-2])
        torch.nn.init.normal_(parameter, centre, 0.1)
    return model.to(dtype).eval().requires_grad_(False)


def small_inputs() -> dict[str, torch.Tensor]:
    """Two rows, the first padded: words; a picture and a clip whose windows are cut off."""
    generator = torch.Generator().manual_seed(1)
    slots = [992, *[IMAGE] * 35, 993, 5, 992, *[VIDEO] * 24, 993]
    row = [1, 2, 3, *slots, *range(10, 20)]
    ids = torch.full((2, len(row)), 998)
    ids[1] = torch.tensor(row)
    ids[0, -12:] = torch.arange(30, 42)
    patches = torch.randn(10 * 14 + 2 * 6 * 8, 1176, generator=generator)
    return {
        "input_ids": ids, "attention_mask": (ids != 998).long(),
        "pixel_values": patches[:140], "image_grid_thw": torch.tensor([[1, 10, 14]]),
        "pixel_values_videos": patches[140:], "video_grid_thw": torch.tensor([[2, 6, 8]]),
        "second_per_grid_ts": torch.tensor([1.5]),
    }  # fmt: skip


@torch.inference_mode()
def logits_of(model: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Logits [tokens, V] of the small inputs, on the CPU in float32."""
    inputs = {name: value.to(model.device) for name, value in small_inputs().items()}
    for name in ("pixel_values", "pixel_values_videos"):
        inputs[name] = inputs[name].to(dtype or model.dtype)
    mask = inputs["attention_mask"].bool()
    return model(**inputs).logits[mask].float().cpu()


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the difference, over that of the exact logits."""
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def require(is_met: bool, what: str) -> str:
    if not is_met:
        raise AssertionError(what)
    return what

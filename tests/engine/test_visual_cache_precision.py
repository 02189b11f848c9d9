"""An encoder that was cast or moved gives other tokens: the cache must not serve those of
before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import Prompt, model_inputs

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from qwen25vl.engine.visual_cache import VisualCache


@pytest.fixture
def model(untied_folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig.from_pretrained(untied_folder)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def test_answers_of_a_cast_model(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """The same pictures under the same encoder object, cast to another type: tokens of float32 used
    to be given to a language model in bfloat16. (Casting back loses digits of the weights for good;
    that is a change in place, after which `clear` is needed.)"""
    inputs = model_inputs(Prompt().text(1).image(4, 8).video(2, 4, 4).text(2))
    options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    cache = VisualCache(2**20)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model.to(dtype)
        plain = model.generate(**inputs, **options)
        for _ in range(2):
            cached = model.generate(**inputs, visual_cache=cache, **options)
            assert torch.equal(torch.stack(cached.logits), torch.stack(plain.logits))
    assert len(cache.items) == 2 * 3  # the second time they came from the cache

"""Greedy generation against transformers 5.23 on random checkpoints,
with repetition_penalty 1.05, in float32.

`mrope="hf5"` where there are clips:
transformers 5 places the text after them wrongly (see model/positions.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import Prompt, mixed_prompts, model_inputs, token_types

from qwen25vl import Qwen2_5_VLForConditionalGeneration


@pytest.fixture(scope="module", params=["tiny_folder", "untied_folder"])
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    folder: Path = request.getfixturevalue(request.param)
    reference = Reference.from_pretrained(folder, dtype=torch.float32).eval()
    return reference, Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, mrope="hf5"
    )


def reference_tokens(
    reference: Any, inputs: dict[str, torch.Tensor], **options: Any
) -> torch.Tensor:
    types = token_types(inputs["input_ids"])
    return reference.generate(**inputs, mm_token_type_ids=types, do_sample=False, **options)


@pytest.mark.parametrize("prompt", mixed_prompts(), ids=range(8))
def test_64_greedy_tokens(models: tuple[Any, Any], prompt: Prompt) -> None:
    """Positions after pictures and clips, cache, penalty, ties: one of them wrong changes the rest
    of an answer."""
    reference, model = models
    inputs = model_inputs(prompt)
    theirs = reference_tokens(reference, inputs, max_new_tokens=64, repetition_penalty=1.05)
    ours = model.generate(**inputs, max_new_tokens=64, repetition_penalty=1.05)
    assert ours.tolist() == theirs.tolist()


def test_the_files_defaults_and_the_end(models: tuple[Any, Any]) -> None:
    """generation_config.json as it lies there, an end token in the middle,
    and min_new_tokens before it."""
    reference, model = models
    inputs = model_inputs(mixed_prompts()[1])
    free = model.generate(**inputs, max_new_tokens=12)[0, -12:].tolist()
    for options in (
        {"max_new_tokens": 12},
        {"max_new_tokens": 12, "eos_token_id": [free[5], 151643]},
        {"max_new_tokens": 12, "eos_token_id": free[0], "min_new_tokens": 4},
    ):
        assert (
            model.generate(**inputs, **options).tolist()
            == reference_tokens(reference, inputs, **options).tolist()
        )


def test_a_padded_batch(models: tuple[Any, Any]) -> None:
    """Without penalty, because transformers counts padding as tokens seen;
    ids, padding and shape are equal."""
    reference, model = models
    inputs = model_inputs(*mixed_prompts()[:3])
    end = model.generate(**inputs, max_new_tokens=8, repetition_penalty=1.0)[1, -5].item()
    options = {"max_new_tokens": 8, "repetition_penalty": 1.0, "eos_token_id": end}
    assert (
        model.generate(**inputs, **options).tolist()
        == reference_tokens(reference, inputs, **options).tolist()
    )


def test_raw_logits(models: tuple[Any, Any]) -> None:
    """`output_logits` are the model's own, before the penalty."""
    reference, model = models
    inputs = model_inputs(mixed_prompts()[2])
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    theirs = reference_tokens(reference, inputs, **options)
    ours = model.generate(**inputs, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, their in zip(ours.logits, theirs.logits, strict=True):
        assert (mine - their).abs().max() <= 1e-4 * their.abs().max()

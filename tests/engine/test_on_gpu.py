"""The engine on a GPU, where nobody looks in a test run without one: tensors on two devices, caches
left on the CPU, generators of the wrong device.

QWEN25VL_TEST_DEVICE names another device; "cpu" runs these tests anywhere.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from scenes import IMAGE, VIDEO, Prompt, model_inputs

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from qwen25vl.engine.visual_cache import VisualCache

DEVICE = os.environ.get("QWEN25VL_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"
    ),
]
IMAGE_ID, VIDEO_ID = 90, 91
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "max_repeated_tokens": 0}


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    """A small model with random weights on the device, in float32."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig.from_dict({
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 99, "pad_token_id": 98,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rms_norm_eps": 1e-6,
        "image_token_id": IMAGE_ID, "video_token_id": VIDEO_ID, "tie_word_embeddings": False,
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": 64, "fullatt_block_indexes": [1],
        },
    })  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), 0.1)
    return model.to(DEVICE).eval().requires_grad_(False)


def inputs_of(*prompts: Prompt, device: str = DEVICE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompt i's pixels depend on seed + i alone."""
    inputs = model_inputs(*prompts, seed=seed)
    ids = inputs["input_ids"]
    small = torch.where(ids == IMAGE, IMAGE_ID, torch.where(ids == VIDEO, VIDEO_ID, ids % 80))
    return {name: value.to(device) for name, value in (inputs | {"input_ids": small}).items()}


def prompts() -> list[Prompt]:
    return [
        Prompt([3]).text(10, 20, 30),
        Prompt([3]).image(10, 14).text(5),
        Prompt([4]).video(2, 6, 8, 1.5).text(6, 7),
        Prompt([5]).image(4, 4).text(8).image(6, 4).text(9),
    ]


def answer(
    model: Any, *chosen: Prompt, device: str = DEVICE, pixel_seed: int = 0, **options: Any
) -> torch.Tensor:
    """What is written to each prompt, on the CPU."""
    inputs = inputs_of(*chosen, device=device, seed=pixel_seed)
    ids = model.generate(**inputs, **(GREEDY | options))
    assert ids.device == inputs["input_ids"].device
    return ids[:, inputs["input_ids"].shape[1] :].cpu()


def test_a_batch_answers_as_each_alone(model: Any) -> None:
    """Rows, pictures and clips of a batch packed together."""
    together = answer(model, *prompts())
    for row, prompt in enumerate(prompts()):
        alone = answer(model, prompt, pixel_seed=row)[0]
        assert torch.equal(together[row], alone)


def test_inputs_may_lie_on_the_cpu(model: Any) -> None:
    """A processor's tensors come from the CPU; the answer goes back there."""
    assert torch.equal(answer(model, *prompts(), device="cpu"), answer(model, *prompts()))


def test_as_without_a_cache(model: Any) -> None:
    """Each token from a pass over everything before it."""
    prompt = prompts()[1]
    inputs = inputs_of(prompt)
    written = answer(model, prompt)[0]
    for token in written:
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[0, -1]
        assert int(logits.argmax()) == int(token)
        ids = torch.cat([inputs["input_ids"], token.view(1, 1).to(DEVICE)], dim=1)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_drafted_tokens_change_nothing(model: Any) -> None:
    """Several rows of one answer in a pass, and a cache that is cut back."""
    prompt = Prompt([3]).text(*[7, 8, 9, 10] * 6)
    drafted = answer(model, prompt, prompt_lookup_num_tokens=4, max_new_tokens=24)
    assert torch.equal(drafted, answer(model, prompt, max_new_tokens=24))


@pytest.mark.parametrize("option", [{"top_k": 20}, {"top_p": 0.9}, {"repetition_penalty": 1.3}])
def test_a_seed_gives_the_same_sample(model: Any, option: dict[str, Any]) -> None:
    """Generators live on the device of the logits."""
    sampled = {
        "do_sample": True,
        "temperature": 1.5,
        "seed": 4,
        "num_return_sequences": 3,
        **option,
    }
    first, second = (answer(model, prompts()[0], **sampled) for _ in range(2))
    assert torch.equal(first, second)
    assert len({tuple(row.tolist()) for row in first}) > 1


def test_known_pictures_on_a_device(model: Any) -> None:
    """Visual tokens are kept where the encoder is."""
    cache = VisualCache(2**20)
    plain = answer(model, *prompts())
    for _ in range(2):
        assert torch.equal(answer(model, *prompts(), visual_cache=cache), plain)
    assert {item.device.type for item in cache.items.values()} == {torch.device(DEVICE).type}
    assert cache.num_bytes == sum(item.nbytes for item in cache.items.values()) > 0


def test_logits_come_with_the_answer(model: Any) -> None:
    inputs = inputs_of(prompts()[0])
    out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    best = torch.stack(out.logits).argmax(-1)[:, 0].cpu()
    assert torch.equal(best, answer(model, prompts()[0])[0])

"""The cache of visual tokens: the same bits, each item once, bounded, by content."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import Prompt, model_inputs

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, load
from qwen25vl.engine.medium import Medium
from qwen25vl.engine.visual_cache import VisualCache, item_key

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"


@pytest.fixture(scope="module")
def model(untied_folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig.from_pretrained(untied_folder)
    ).eval()


@pytest.fixture
def encoded(
    model: Qwen2_5_VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """The grids of every call of the encoder."""
    calls: list[Any] = []
    encode = model.visual.encode_in_parts
    monkeypatch.setattr(
        model.visual,
        "encode_in_parts",
        lambda p, g, *rest: calls.append([tuple(x) for x in g]) or encode(p, g, *rest),
    )
    return calls


def write(model: Qwen2_5_VLForConditionalGeneration, inputs: Any, cache: VisualCache | None) -> Any:
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    return torch.stack(model.generate(**inputs, visual_cache=cache, **options).logits)


def test_known_items_are_not_computed_again(
    model: Qwen2_5_VLForConditionalGeneration, encoded: list[Any]
) -> None:
    """Pictures and a clip, alone and mixed with new ones; equal bits each time."""
    one = model_inputs(Prompt().text(1).image(10, 14).video(2, 4, 4).text(2))
    two = model_inputs(Prompt().text(3).image(10, 14).text(4), seed=9)
    both = {
        "input_ids": torch.cat([one["input_ids"], two["input_ids"]], dim=1),
        "pixel_values": torch.cat([one["pixel_values"], two["pixel_values"]]),
        "image_grid_thw": torch.cat([one["image_grid_thw"], two["image_grid_thw"]]),
        **{
            key: one[key] for key in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        },
    }
    plain = [write(model, inputs, None) for inputs in (one, two, both)]
    encoded.clear()
    cache = VisualCache(2**20)
    assert torch.equal(write(model, one, cache), plain[0])
    assert encoded == [[(1, 10, 14)], [(2, 4, 4)]]
    assert torch.equal(write(model, one, cache), plain[0])
    assert torch.equal(write(model, both, cache), plain[2])  # the second picture is new
    assert torch.equal(write(model, two, cache), plain[1])
    assert encoded == [[(1, 10, 14)], [(2, 4, 4)], [(1, 10, 14)]]


def test_the_same_picture_twice_is_computed_once(
    model: Qwen2_5_VLForConditionalGeneration, encoded: list[Any]
) -> None:
    """Within a prompt and across the prompts of a batch."""
    inputs = model_inputs(Prompt().image(4, 4).text(1).image(4, 4).text(2).image(4, 4))
    pixels = inputs["pixel_values"][:16]
    inputs["pixel_values"] = torch.cat([pixels, pixels + 1, pixels])
    plain = write(model, inputs, None)
    encoded.clear()
    assert torch.equal(write(model, inputs, VisualCache(2**20)), plain)
    assert encoded == [[(1, 4, 4)], [(1, 4, 4)]]
    batch = {key: inputs[key].repeat(2, 1) for key in inputs}
    together = write(model, batch, None)
    encoded.clear()
    assert torch.equal(write(model, batch, VisualCache(2**20)), together)
    assert encoded == [[(1, 4, 4)], [(1, 4, 4)]]


def medium(patches: torch.Tensor, grid: tuple[int, int, int]) -> Medium:
    return Medium("image", grid, 0, len(patches) // 4, [patches])


def test_content_size_and_encoder_tell_items_apart(
    model: Qwen2_5_VLForConditionalGeneration,
) -> None:
    pixels = torch.randn(16, 1176)
    other = Qwen2_5_VLForConditionalGeneration(model.config).eval()
    keys = {
        item_key(visual, medium(patches, grid))
        for visual, patches, grid in [
            (model.visual, pixels, (1, 4, 4)),
            (model.visual, pixels.clone(), (1, 4, 4)),  # the same
            (model.visual, pixels, (1, 2, 8)),
            (model.visual, pixels.flip(0), (1, 4, 4)),
            (model.visual, pixels.bfloat16(), (1, 4, 4)),
            (other.visual, pixels, (1, 4, 4)),
        ]
    }
    assert len(keys) == 5


def test_it_is_bounded() -> None:
    """The item used longest ago goes; one larger than the whole cache is not kept; 0 keeps
    nothing."""
    cache = VisualCache(200)
    for key in "ab":
        cache.keep(key, torch.zeros(25))
    assert cache.find("a") is not None
    cache.keep("c", torch.zeros(20))
    assert list(cache.items) == ["a", "c"]  # b was the oldest
    assert cache.num_bytes == 180
    cache.keep("d", torch.zeros(51))
    assert not cache.items
    nothing = VisualCache(0)
    nothing.keep("a", torch.zeros(1))
    assert nothing.find("a") is None
    cache.keep("a", torch.zeros(1))
    cache.clear()
    assert (cache.num_bytes, len(cache.items)) == (0, 0)


def test_a_conversation_looks_at_its_pictures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for kept in (256 * 2**20, 0):
        vlm = load(visual_cache_bytes=kept, prefix_cache_bytes=0)
        calls: list[int] = []
        encode = vlm.model.visual.encode_in_parts
        monkeypatch.setattr(
            vlm.model.visual, "encode_in_parts", lambda *a, f=encode, c=calls: c.append(1) or f(*a)
        )
        chat = vlm.chat()
        answers.append(
            [chat.ask("Describe the picture.", images=[SCENE]).text, chat.ask("What is red?").text]
        )
        assert len(calls) == (1 if kept else 2)
    assert answers[0] == answers[1]

"""The cache of visual tokens: the same bits, each item once, bounded, by content."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import Prompt, model_inputs

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, load
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import UsageError

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
    forward = model.visual.forward
    monkeypatch.setattr(
        model.visual,
        "forward",
        lambda p, g, *rest: calls.append([tuple(x) for x in g]) or forward(p, g, *rest),
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
    inputs = model_inputs(Prompt().image(4, 4).text(1))
    pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    cache = VisualCache(2**20)
    tokens = cache.encode(model.visual, torch.cat([pixels, pixels + 1, pixels]), grids.repeat(3, 1))
    assert encoded == [[(1, 4, 4), (1, 4, 4)]]
    assert torch.equal(tokens[:4], tokens[8:])
    assert not torch.equal(tokens[:4], tokens[4:8])


def test_content_size_and_encoder_tell_items_apart(
    model: Qwen2_5_VLForConditionalGeneration,
) -> None:
    cache, pixels = VisualCache(2**20), torch.randn(16, 1176)
    other = Qwen2_5_VLForConditionalGeneration(model.config).eval()
    with torch.no_grad():
        for visual, patches, grid in [
            (model.visual, pixels, (1, 4, 4)),
            (model.visual, pixels, (1, 2, 8)),
            (model.visual, pixels.flip(0), (1, 4, 4)),
            (other.visual, pixels, (1, 4, 4)),
        ]:
            for _ in range(2):
                assert torch.equal(cache.encode(visual, patches, [grid]), visual(patches, [grid]))
    assert len(cache.items) == 4
    with pytest.raises(UsageError, match="grids"):
        cache.encode(model.visual, pixels, [(1, 4, 6)])


def test_it_is_bounded(model: Qwen2_5_VLForConditionalGeneration, encoded: list[Any]) -> None:
    """The item used longest ago goes; one larger than the whole cache is not kept; 0 keeps
    nothing."""
    pictures = [torch.randn(16, 1176) for _ in range(3)]
    item = 4 * model.config.text_config.hidden_size * 4
    cache = VisualCache(2 * item + 1)
    with torch.no_grad():
        for index in (0, 1, 0, 2, 0, 1):
            cache.encode(model.visual, pictures[index], [(1, 4, 4)])
            assert (
                cache.num_bytes
                == sum(tokens.nbytes for tokens in cache.items.values())
                <= cache.max_bytes
            )
        assert len(encoded) == 4  # 1 was the oldest when 2 came
        cache.encode(model.visual, torch.randn(48, 1176), [(1, 4, 12)])
        assert not cache.items
        nothing = VisualCache(0)
        nothing.encode(model.visual, pictures[0], [(1, 4, 4)])
        assert not nothing.items
    cache.clear()
    assert cache.num_bytes == 0


def test_a_conversation_looks_at_its_pictures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for kept in (256 * 2**20, 0):
        vlm = load(visual_cache_bytes=kept)
        calls: list[int] = []
        forward = vlm.model.visual.forward
        monkeypatch.setattr(
            vlm.model.visual, "forward", lambda *a, f=forward, c=calls: c.append(1) or f(*a)
        )
        chat = vlm.chat()
        answers.append(
            [chat.ask("Describe the picture.", images=[SCENE]).text, chat.ask("What is red?").text]
        )
        assert len(calls) == (1 if kept else 2)
    assert answers[0] == answers[1]

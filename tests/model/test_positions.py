"""MRoPE positions against the rule written out token by token."""

import random

import pytest
import torch
from scenes import IMAGE, VIDEO, Prompt, model_inputs

from qwen25vl import Qwen2_5_VLModel
from qwen25vl.config import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
    RopeScaling,
)
from qwen25vl.errors import MessageError, UsageError
from qwen25vl.model.rope import text_frequencies


def small_model() -> Qwen2_5_VLModel:
    rope = RopeScaling(mrope_section=(2, 3, 3))
    text = Qwen2_5_VLTextConfig(hidden_size=32, num_attention_heads=2, num_key_value_heads=1,
                                num_hidden_layers=1,
                                intermediate_size=8, vocab_size=16, rope_scaling=rope)  # fmt: skip
    vision = Qwen2_5_VLVisionConfig(depth=1, hidden_size=16, num_heads=2, intermediate_size=8,
                                    out_hidden_size=32,
                                    fullatt_block_indexes=(0,))  # fmt: skip
    return Qwen2_5_VLModel(Qwen2_5_VLConfig(text, vision))


def rule(prompt: Prompt, tokens_per_second: float = 2) -> list[tuple[int, int, int]]:
    """The reference rule, one token at a time."""
    images, videos, seconds = (
        iter(prompt.image_grids),
        iter(prompt.video_grids),
        iter(prompt.seconds),
    )
    out: list[tuple[int, int, int]] = []
    index = 0
    while index < len(prompt.ids):
        start = max((max(p) for p in out), default=-1) + 1
        if prompt.ids[index] not in (IMAGE, VIDEO):
            out.append((start, start, start))
            index += 1
            continue
        is_video = prompt.ids[index] == VIDEO
        t, h, w = next(videos) if is_video else next(images)
        pace = next(seconds) * tokens_per_second if is_video else 0
        out += [
            (start + int(i * pace), start + row, start + column)
            for i in range(t)
            for row in range(h // 2)
            for column in range(w // 2)
        ]
        index += t * h * w // 4
    return out


def random_mix(seed: int) -> Prompt:
    random_ = random.Random(seed)
    prompt = Prompt()
    for _ in range(random_.randint(1, 5)):
        kind = random_.choice(["text", "image", "video"])
        side = lambda: 2 * random_.randint(1, 9)  # noqa: E731
        if kind == "text":
            prompt.text(*range(random_.randint(1, 12)))
        elif kind == "image":
            prompt.image(side(), side())
        else:
            prompt.video(
                random_.randint(1, 6),
                side(),
                side(),
                random_.choice([0.125, 0.25, 0.5, 1.0, 2.0, 4.0]),
            )
    return prompt.text(1, 2)


@pytest.mark.parametrize("seed", range(24))
def test_the_rule_on_mixes(seed: int) -> None:
    """transformers 5 loses the time of a clip, llama.cpp its columns."""
    prompt = random_mix(seed)
    positions, deltas = small_model().get_rope_index(**grids_of(prompt))
    expected = rule(prompt)
    assert positions[:, 0].T.tolist() == [list(p) for p in expected]
    assert deltas.tolist() == [[max(max(p) for p in expected) + 1 - len(expected)]]


def test_text_after_a_clip_starts_behind_its_time() -> None:
    """The example of the reference: ten grids on 4×4 visual tokens, a second each,
    from position 3."""
    prompt = Prompt([1, 2]).video(10, 8, 8, 1.0).text(5)
    positions, _ = small_model().get_rope_index(**grids_of(prompt))
    time = positions[0, 0].tolist()
    assert time[3:-2:16] == [3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    assert time[-2:] == [22, 23]


def test_second_clip_moves_only_its_own_times() -> None:
    """One fps for all clips, or the first clip's, is a fault seen in several engines."""
    slow = Prompt().video(3, 4, 4, 1.0).text(7).video(3, 4, 4, 1.0)
    fast = Prompt().video(3, 4, 4, 1.0).text(7).video(3, 4, 4, 0.5)
    model = small_model()
    one, _ = model.get_rope_index(**grids_of(slow))
    two, _ = model.get_rope_index(**grids_of(fast))
    second = len(slow.ids) - 13
    assert torch.equal(one[:, 0, :second], two[:, 0, :second])
    assert not torch.equal(one[0, 0, second:], two[0, 0, second:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_nothing(side: str) -> None:
    """Padded on the left, a row of a batch used to start at the wrong position."""
    prompts = [
        Prompt().text(1).image(4, 6).text(2),
        Prompt().text(*range(30)),
        Prompt().video(2, 4, 4).text(3),
    ]
    inputs = model_inputs(*prompts, padding_side=side)
    model = small_model()
    names = (
        "input_ids",
        "attention_mask",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
    )
    together, deltas = model.get_rope_index(**{name: inputs[name] for name in names})
    for row, prompt in enumerate(prompts):
        alone, delta = model.get_rope_index(**grids_of(prompt))
        assert torch.equal(together[:, row, inputs["attention_mask"][row].bool()], alone[:, 0])
        assert deltas[row] == delta[0]


def test_slots_and_media_must_fit() -> None:
    """'Image features and image tokens do not match' after a prompt was cut inside a picture."""
    model = small_model()
    whole = grids_of(Prompt().image(4, 4).text(1))
    with pytest.raises(MessageError, match="more slots for pictures than the 0"):
        model.get_rope_index(whole["input_ids"])
    with pytest.raises(MessageError, match="slots for 1 pictures and 0 videos, but 2 pictures"):
        model.get_rope_index(whole["input_ids"], whole["image_grid_thw"].repeat(2, 1))
    with pytest.raises(MessageError, match="4 visual tokens does not fit"):
        model.get_rope_index(whole["input_ids"][:, :4], whole["image_grid_thw"])
    clip = grids_of(Prompt().video(2, 4, 4).text(1))
    for seconds in ([], [1.0, 2.0], [float("nan")], [-1.0]):
        with pytest.raises(UsageError, match="second_per_grid_ts"):
            model.get_rope_index(clip["input_ids"], None, clip["video_grid_thw"], seconds)


def test_yarn_is_what_transformers_computes() -> None:
    """YaRN's ramp is easily off by one frequency."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
        Qwen2_5_VLTextConfig as Theirs,
    )

    ours = Qwen2_5_VLTextConfig(
        rope_scaling=RopeScaling("yarn", factor=4.0, original_max_position_embeddings=32768)
    )
    parameters = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "rope_theta": 1e6,
    }
    theirs = Theirs(
        hidden_size=2048,
        num_attention_heads=16,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    frequencies, attention_factor = text_frequencies(ours)
    assert torch.allclose(frequencies, expected, rtol=1e-6)
    assert attention_factor == pytest.approx(factor)


def grids_of(prompt: Prompt) -> dict[str, torch.Tensor]:
    inputs = model_inputs(prompt)
    return {
        name: value
        for name, value in inputs.items()
        if "pixel" not in name and name != "attention_mask"
    }


def test_a_cache_knows_where_each_of_its_tokens_ends() -> None:
    """Noted in parts of any size, with jumps and without, against the largest position so far."""
    from qwen25vl.config import Qwen2_5_VLTextConfig, RopeScaling
    from qwen25vl.model.cache import KVCache

    rope = RopeScaling(mrope_section=(2, 3, 3))
    config = Qwen2_5_VLTextConfig(40, 32, 24, 2, 2, 1, rope_scaling=rope)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        cache = KVCache(config, torch.float32, capacity=1)
        wanted, start = [0], 0
        for _ in range(6):
            num_tokens = int(torch.randint(1, 6, (), generator=generator))
            positions = torch.arange(num_tokens).expand(3, -1) + start
            if torch.rand((), generator=generator) < 0.5:
                positions = torch.randint(start, start + 9, (3, num_tokens), generator=generator)
            cache.advance(num_tokens)
            cache.take_positions(positions)
            wanted += [int(positions[:, : n + 1].max()) + 1 for n in range(num_tokens)]
            start = wanted[-1]
            assert [cache.position_after(n) for n in range(cache.length + 1)] == wanted
            if torch.rand((), generator=generator) < 0.3:
                length = int(torch.randint(1, cache.length + 1, (), generator=generator))
                cache.crop(length, cache.position_after(length))
                wanted, start = wanted[: length + 1], wanted[length]

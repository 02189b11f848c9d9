"""Prompt lookup: what is drafted, how far, and that no answer changes by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scenes import Prompt, mixed_prompts, model_inputs
from test_generate import Recorder, Words

from qwen25vl import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, load
from qwen25vl.engine.generate import stream
from qwen25vl.engine.lookup import LONGEST_PAUSE, DraftPace, PromptLookup
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.cache import KVCache

LOOKUP = {"prompt_lookup_num_tokens": 8, "max_matching_ngram_size": 2}


@pytest.fixture(scope="module")
def model(untied_folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(untied_folder))
    model.load_state_dict(load_file(untied_folder / "model.safetensors"))
    model.generation_config = GenerationConfig(eos_token_id=(151645,), pad_token_id=151643)
    return model.eval()


def eager_lookup(prompt: list[int], slots: tuple[int, ...] = (), size: int = 3) -> PromptLookup:
    lookup = PromptLookup(prompt, size, slots)
    lookup.pace = DraftPace(16)
    return lookup


@pytest.mark.parametrize(
    ("prompt", "limit", "drafted"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 2, [4, 5]),
        ([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 3, [4, 9, 2]),  # the longer match, not the later one
        ([7, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3], 2, [5, 6]),  # the later one of equals
        ([1, 2, 3, 1, 2, 3], 8, [1, 2, 3, 1, 2, 3, 1, 2]),  # a cycle goes on
        ([5, 5, 5], 4, [5, 5, 5, 5]),
        ([1, 2, 3, 8, 8, 4, 1, 2, 3], 4, []),  # 8 stands for a picture
        ([1, 2, 3, 4, 8, 4, 1, 2, 3], 4, [4]),
        ([1, 2, 3, 4, 1], 4, []),  # one token is too little evidence
        ([1, 2, 3, 4], 4, []),
        ([1], 4, []),
        ([1, 2, 1, 2], 0, []),
    ],
)
def test_drafts(prompt: list[int], limit: int, drafted: list[int]) -> None:
    assert eager_lookup(prompt, (8,)).draft(limit) == drafted


def test_one_token_matches_where_no_more_is_asked_for() -> None:
    assert eager_lookup([1, 2, 3, 1], size=1).draft(2) == [2, 3]


def test_tokens_of_any_vocabulary_are_characters() -> None:
    """Surrogates among them, which a text may hold though no encoding has them."""
    ids = [0xD800, 0xDFFF, 151935, 0xD800, 0xDFFF]
    lookup = eager_lookup(ids)
    lookup.learn([151935], 1)
    assert lookup.draft(3) == []  # nothing of the draft came true: a pause
    assert eager_lookup(ids).draft(3) == [151935, 0xD800, 0xDFFF]


def test_the_pace_follows_what_came_true() -> None:
    pace = DraftPace().after(2, 2).after(4, 4)
    assert pace.length == 8
    assert pace.after(8, 5).length == 5
    waits, passes, pace = [], 0, DraftPace()
    for _ in range(12):
        pace = pace.after(2, 0)
        waits.append(pace.wait)
        while pace.wait:
            pace, passes = pace.after(0, 0), passes + 1
    assert waits == [1, 2, 4, 8, 16] + [LONGEST_PAUSE] * 7
    assert pace.after(2, 1) == DraftPace()


def collect(
    model: Qwen2_5_VLForConditionalGeneration, inputs: dict[str, Any], **options: Any
) -> Any:
    return model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)


def num_passes(
    model: Qwen2_5_VLForConditionalGeneration, write: Callable[[], Any]
) -> tuple[Any, int]:
    sizes: list[int] = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda *_: sizes.append(1)
    )
    try:
        return write(), len(sizes)
    finally:
        handle.remove()


LOOPING = {"repetition_penalty": 0.01}  # a reward for repeating drives a random model into a cycle
OPTIONS: list[dict[str, Any]] = [
    {},
    LOOPING,
    {**LOOPING, "max_repeated_tokens": 20},
    {**LOOPING, "min_new_tokens": 20, "presence_penalty": 0.3, "frequency_penalty": 0.01},
    {**LOOPING, "temperature": 0.8, "top_p": 0.95, "seed": 3},
    {"temperature": 1.0, "seed": 3, "num_return_sequences": 3, **LOOPING},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_are_those_without_it(
    model: Qwen2_5_VLForConditionalGeneration, options: dict[str, Any], side: str
) -> None:
    """Batches of texts, pictures and clips: tokens, logits, reasons, and what a streamer is
    given."""
    inputs = model_inputs(*mixed_prompts(), padding_side=side)
    recorders = Recorder(), Recorder()
    plain, before = num_passes(
        model, lambda: collect(model, inputs, max_new_tokens=40, streamer=recorders[0], **options)
    )
    looked_up = {**options, **LOOKUP, "prompt_lookup_num_tokens": 64}
    out, after = num_passes(
        model, lambda: collect(model, inputs, max_new_tokens=40, streamer=recorders[1], **looked_up)
    )
    assert torch.equal(out.sequences, plain.sequences)
    assert out.finish_reasons == plain.finish_reasons
    assert len(out.logits) == len(plain.logits)
    assert torch.allclose(torch.stack(out.logits), torch.stack(plain.logits), atol=1e-4)
    assert torch.equal(torch.stack(recorders[0].values[1:]), torch.stack(recorders[1].values[1:]))
    assert after < before if "repetition_penalty" in options else after <= before


def test_streams_are_those_without_it(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """A chunk a token, with its log-probability; end tokens, stop strings and lengths in the middle
    of a draft."""
    inputs = ModelInputs(**model_inputs(Prompt().text(11, 12).image(10, 14).text(13)))
    free = [c.token for c in model.stream(inputs, Words(), max_new_tokens=60, **LOOPING)]
    assert len(set(free[-20:])) < 20
    text = "".join(f"<{token}>" for token in free)
    cuts: list[dict[str, Any]] = [{"max_new_tokens": n} for n in (1, 2, 30, 31, 32, 33)]
    cuts += [{"stop_strings": text[n : n + 9], "min_new_tokens": 3} for n in (4, 90, 131)]
    cuts += [
        {"eos_token_id": token, "min_new_tokens": n} for n in (25, 26, 27) for token in free[-3:]
    ]
    for cut in cuts:
        options = {"max_new_tokens": 60, **LOOPING, **cut}
        plain = list(model.stream(inputs, Words(), **options))
        quick = list(model.stream(inputs, Words(), **options, **LOOKUP))
        assert [(c.text, c.token, c.finish_reason) for c in quick] == [
            (c.text, c.token, c.finish_reason) for c in plain
        ]
        assert [c.logprob for c in quick] == pytest.approx([c.logprob for c in plain], abs=1e-4)


def test_caches_hold_what_was_written(
    model: Qwen2_5_VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong drafts in every pass: after each, the cache is as long as the answer, and its next
    position fits."""
    caches: list[KVCache] = []
    run = model.model.language_model.run
    monkeypatch.setattr(
        model.model.language_model,
        "run",
        lambda *a: caches.__setitem__(slice(None), a[3]) or run(*a),
    )
    monkeypatch.setattr(PromptLookup, "draft", lambda self, limit: [5, 6, 7][:limit])
    inputs = model_inputs(Prompt().text(11, 12).image(10, 14).text(13))
    wanted = collect(model, inputs, max_new_tokens=12)
    config = GenerationConfig(max_new_tokens=12, prompt_lookup_num_tokens=3)
    tokens, ends = [], []
    for chunk in stream(model.engine, ModelInputs(**inputs), config):
        tokens.append(chunk.token)
        if caches[0].length:
            ends.append(caches[0].length - caches[0].next_position)
    assert tokens == wanted.sequences[0, -12:].tolist()
    assert len(set(ends)) == 1
    assert caches[0].length == inputs["input_ids"].shape[1] + 11


def test_the_built_in_model() -> None:
    """One answer that restates what the prompt says, one that does not; sampled ones keep their
    draws."""
    vlm = load(dtype="float32")
    picture = Path(__file__).parents[2] / "examples" / "scene.png"
    said = vlm.ask("Describe the picture.", images=[picture]).text
    for question in (
        f"{said} {said} Describe the picture.",
        "Describe the picture.",
        "What is red?",
    ):
        for sampling in ({}, {"temperature": 1.0, "seed": 1}):
            plain = vlm.ask(question, images=[picture], max_new_tokens=60, **sampling)
            quick = vlm.ask(
                question,
                images=[picture],
                max_new_tokens=60,
                prompt_lookup_num_tokens=8,
                **sampling,
            )
            assert (quick.text, quick.finish_reason) == (plain.text, plain.finish_reason)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="prompt_lookup_num_tokens is -1"):
        GenerationConfig(prompt_lookup_num_tokens=-1)
    with pytest.raises(UsageError, match="max_matching_ngram_size is 0"):
        GenerationConfig(max_matching_ngram_size=0)

"""Options: what they default to, how a caller's go over a checkpoint's, and which are refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qwen25vl import GenerationConfig
from qwen25vl.errors import CheckpointError, OptionError, UsageError

RELEASED = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 1e-06,
}


def shape(config: GenerationConfig) -> tuple[float, int, float, float]:
    return config.temperature, config.top_k, config.top_p, config.min_p


def test_the_released_file_is_greedy_with_a_penalty() -> None:
    """do_sample is true in it; taken at its word it would divide logits by a millionth and draw."""
    config = GenerationConfig.from_dict(RELEASED)
    assert config.is_greedy
    assert config.eos_token_id == (151645, 151643)
    assert config.fill_token_id == 151643
    assert config.describe() == "greedy, repetition_penalty 1.05, max_new_tokens 512"


@pytest.mark.parametrize(
    ("options", "is_greedy", "wanted"),
    [
        ({}, True, (1e-6, 0, 1.0, 0.0)),
        ({"do_sample": True}, False, (1.0, 0, 1.0, 0.0)),
        ({"temperature": 0.7}, False, (0.7, 0, 1.0, 0.0)),
        ({"top_p": 0.9}, False, (1.0, 0, 0.9, 0.0)),
        ({"top_k": 20, "min_p": 0.1}, False, (1.0, 20, 1.0, 0.1)),
        ({"temperature": 0}, True, (0, 0, 1.0, 0.0)),
        ({"do_sample": False, "temperature": 0.7}, True, (0.7, 0, 1.0, 0.0)),
        ({"do_sample": False, "temperature": None, "top_k": None}, True, (1e-6, 0, 1.0, 0.0)),
        ({"max_new_tokens": 5, "seed": 1}, True, (1e-6, 0, 1.0, 0.0)),
    ],
)
def test_asking_for_sampling_samples(
    options: dict[str, Any], is_greedy: bool, wanted: tuple[float, ...]
) -> None:
    """The most asked question about this model: temperature has no effect, because the file keeps
    it greedy."""
    merged = GenerationConfig.from_dict(RELEASED).merge(**options)
    assert merged.is_greedy == is_greedy
    assert shape(merged) == wanted
    assert merged.repetition_penalty == 1.05


def test_older_files_that_are_peaked_in_another_way() -> None:
    """top_k 1 and top_p 0.001 of earlier files are as greedy as temperature 1e-6."""
    older = GenerationConfig.from_dict(
        {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1}
    )
    assert shape(older.merge(temperature=0.7)) == (0.7, 0, 1.0, 0.0)


def test_a_file_that_says_how_to_sample_is_heard() -> None:
    """A finetune's own temperature and top_p stand where the caller says nothing of them, as in
    transformers."""
    file = GenerationConfig.from_dict(
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    )
    assert shape(file.merge(do_sample=True)) == (0.7, 20, 0.8, 0.0)
    assert shape(file.merge(temperature=1.2)) == (1.2, 20, 0.8, 0.0)


def test_do_sample_follows_from_the_shape() -> None:
    """GenerationConfig(temperature=0.7) that is then ignored would be an option without effect."""
    assert not GenerationConfig(temperature=0.7).is_greedy
    assert GenerationConfig(temperature=0.7, do_sample=False).is_greedy
    assert GenerationConfig().is_greedy


@pytest.mark.parametrize(
    ("name", "meant"),
    [("temprature", "temperature"), ("max_tokens", "max_new_tokens"), ("num_beam", "num_beams"),
     ("stop", "stop_strings"), ("top_kk", "top_k"), ("watermark", "known are max_new_tokens")],
)  # fmt: skip
def test_unknown_options_are_refused(name: str, meant: str) -> None:
    """A misspelt option that is ignored costs an evening."""
    with pytest.raises(OptionError, match=rf"no generation option '{name}'.*{meant}"):
        GenerationConfig().merge(**{name: None})


@pytest.mark.parametrize(
    ("name", "neutral", "asking", "way_out"),
    [
        ("num_beam_groups", 1, 2, "num_return_sequences with do_sample"),
        ("guidance_scale", 1.0, 1.5, "loop of your own"),
        ("typical_p", 1.0, 0.5, "top_p or min_p"),
        ("penalty_alpha", None, 0.6, "repetition_penalty"),
        ("output_hidden_states", False, True, "call the model on the ids"),
        ("cache_implementation", "static", "quantized", "leave it out"),
        ("remove_invalid_values", False, True, "bfloat16 or float32"),
    ],
)
def test_options_of_transformers_that_are_not_here(
    name: str, neutral: Any, asking: Any, way_out: str
) -> None:
    """Scripts spell out values that ask for nothing; another value must not be ignored, and the
    message says what to do instead."""
    assert GenerationConfig().merge(**{name: neutral}) == GenerationConfig()
    with pytest.raises(OptionError, match=f"{name} is .*{way_out}"):
        GenerationConfig().merge(**{name: asking})


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": math.nan}, {"temperature": math.inf}, {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": True}, {"top_k": -1}, {"top_k": 2.5}, {"top_p": 1.1}, {"top_p": -0.1},
        {"min_p": 2},
        {"repetition_penalty": 0}, {"repetition_penalty": -1.0}, {"presence_penalty": math.nan},
        {"frequency_penalty": "1"}, {"max_new_tokens": 0}, {"max_new_tokens": 1.0},
        {"max_new_tokens": True},
        {"min_new_tokens": -1}, {"min_new_tokens": 10, "max_new_tokens": 5},
        {"num_return_sequences": 0},
        {"seed": -1}, {"seed": 0.5}, {"stop_strings": [""]}, {"stop_strings": [1]},
        {"eos_token_id": "end"},
        {"eos_token_id": [1.5]}, {"eos_token_id": -2}, {"eos_token_id": True}, {"pad_token_id": -1},
        {"max_length": 0}, {"num_beams": 0}, {"num_return_sequences": 3, "num_beams": 2},
        {"early_stopping": "soon"}, {"length_penalty": math.nan}, {"bad_words_ids": [5]},
        {"bad_words_ids": [[]]}, {"suppress_tokens": ["x"]}, {"output_scores": 2},
        {"prompt_lookup_num_tokens": 3, "num_beams": 2},
        {"do_sample": 1}, {"output_logits": "yes"}, {"max_repeated_tokens": -5},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_values_are_refused_by_name(values: dict[str, Any]) -> None:
    """NaN, wrong types and bad ranges must not reach the loop."""
    with pytest.raises(UsageError, match=next(iter(values))):
        GenerationConfig(**values)
    with pytest.raises(UsageError):
        GenerationConfig().merge(**values)


def test_one_or_several() -> None:
    """The ecosystem passes one end token or stop string bare."""
    config = GenerationConfig().merge(eos_token_id=5, stop_strings="end")
    assert config.eos_token_id == (5,)
    assert config.stop_strings == ("end",)
    assert config.merge(eos_token_id=[]).eos_token_id == ()
    assert config.merge(eos_token_id=-1).eos_token_id == (), "no token: the answer never ends"


def test_keys_of_a_file() -> None:
    """A checkpoint with keys of the ecosystem must load, but a key that means something must not go
    under."""
    GenerationConfig.from_dict({**RELEASED, "transformers_version": "4.49.0", "top_p": None})
    with pytest.warns(UserWarning, match="have no effect here: chat_format, typical_p"):
        GenerationConfig.from_dict({"typical_p": 0.4, "chat_format": "chatml"})


def test_lengths_with_the_prompt() -> None:
    """max_length counts the prompt; of both ways to give a length, that for new tokens counts, as
    in transformers, wherever each of them came from."""
    file = GenerationConfig.from_dict({"max_length": 50, "min_length": 12})
    assert (file.within(10).max_new_tokens, file.within(10).min_new_tokens) == (40, 2)
    assert file.within(30).min_new_tokens == 0
    assert file.merge(max_new_tokens=5).within(10).max_new_tokens == 5
    assert file.merge(min_new_tokens=1).within(10).min_new_tokens == 1
    assert GenerationConfig(max_new_tokens=7).merge(max_length=30).within(10).max_new_tokens == 20
    assert GenerationConfig(max_new_tokens=7, max_length=30).within(10).max_new_tokens == 7
    with pytest.raises(UsageError, match="max_length is 50 and the prompt has 50 tokens"):
        file.within(50)


def test_a_folder_without_the_file_has_the_end_token_of_its_config(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Without an end token every answer would run to its full length."""
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config.is_greedy
    assert config.eos_token_id == (151645,)


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot"}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)


def test_saved_and_read_again(tmp_path: Path) -> None:
    """transformers reads the saved file too, and finds the same values."""
    from transformers import GenerationConfig as Reference

    config = GenerationConfig.from_dict(RELEASED).merge(top_p=0.9, stop_strings=["a", "b"], seed=3)
    assert GenerationConfig.from_dict(config.to_dict()) == config
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == config
    assert "max_new_tokens" not in json.loads((tmp_path / "generation_config.json").read_text())
    reference = Reference.from_pretrained(tmp_path)
    assert (reference.top_p, reference.repetition_penalty, reference.do_sample) == (0.9, 1.05, True)
    assert reference.eos_token_id == [151645, 151643]
    assert config.describe() == (
        "sampling, top_p 0.9, seed 3, repetition_penalty 1.05, stop_strings ('a', 'b'), "
        "max_new_tokens 512"
    )


def test_a_configuration_goes_over_the_checkpoints() -> None:
    """GenerationConfig(max_new_tokens=…) given to generate lost the end token, and answers never
    stopped."""
    released = GenerationConfig(
        do_sample=True, temperature=1e-6, repetition_penalty=1.05, eos_token_id=[7, 8]
    )
    short = GenerationConfig(max_new_tokens=20).over(released)
    assert (short.eos_token_id, short.repetition_penalty, short.max_new_tokens) == (
        (7, 8),
        1.05,
        20,
    )
    assert short.is_greedy
    assert not GenerationConfig(temperature=0.7).over(released).is_greedy
    assert GenerationConfig(do_sample=False, temperature=0.7).over(released).is_greedy
    assert released.merge(top_p=1.0, top_k=0).is_greedy, "neutral values ask for nothing"
    assert not released.merge(temperature=1.0).is_greedy


def test_only_the_last_of_several_must_fit_together() -> None:
    """The model's, the given configuration and the call's options: two beams of the second one met
    the first one's four answers before the call could ask for two."""
    base = GenerationConfig(num_beams=4, num_return_sequences=4, max_new_tokens=9)
    config = GenerationConfig(num_beams=2)
    config.temperature = 0.7
    merged = base.merge_in_turn(*config.in_turn(base), {"num_return_sequences": 2})
    assert (merged.num_beams, merged.num_return_sequences, merged.max_new_tokens) == (2, 2, 9)
    assert (merged.do_sample, merged.temperature) == (True, 0.7)
    with pytest.raises(UsageError, match="num_return_sequences is 4"):
        base.merge_in_turn(*config.in_turn(base))
    longer = GenerationConfig(max_new_tokens=7).merge_in_turn({"max_length": 20}, {"max_length": 5})
    assert (longer.max_length, longer.to_dict()["max_new_tokens"]) == (5, None)

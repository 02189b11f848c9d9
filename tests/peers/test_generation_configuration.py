"""GenerationConfig: what peers' tests assert of it (tests/generation/test_configuration_utils.py of
transformers)."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from generation_models import Pair, pair_fixture, text_inputs  # noqa: F401

from qwen25vl import GenerationConfig
from qwen25vl.errors import UsageError

VALUES: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.7,
    "length_penalty": 1.5,
    "bad_words_ids": [[1, 2, 3], [4, 5]],
}


@pytest.mark.parametrize("name", [None, "foo.json"])
def test_saved_and_loaded(tmp_path: Path, name: str | None) -> None:
    """GenerationConfigTest::test_save_load_config."""
    given = {} if name is None else {"config_file_name": name}
    GenerationConfig(**VALUES).save_pretrained(tmp_path, **given)
    loaded = GenerationConfig.from_pretrained(tmp_path, **given)
    assert loaded.to_dict().items() >= VALUES.items()
    assert (loaded.top_k, loaded.max_length, loaded.max_time) == (0, None, None)
    assert (tmp_path / (name or "generation_config.json")).exists()


def test_options_on_the_way_in(tmp_path: Path) -> None:
    """GenerationConfigTest::test_from_pretrained_with_kwargs…: a loaded file is changed by what is
    given beside it."""
    GenerationConfig(**VALUES).save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path, temperature=1.0, num_beams=3)
    assert (loaded.temperature, loaded.num_beams, loaded.length_penalty) == (1.0, 3, 1.5)
    assert GenerationConfig.from_dict(VALUES, length_penalty=0.5).length_penalty == 0.5


def test_update() -> None:
    """GenerationConfigTest::test_update: sets what it knows, returns the rest, changes nothing of
    what it was given."""
    config = GenerationConfig()
    given = {"max_new_tokens": 1024, "foo": "bar"}
    before = deepcopy(given)
    unused = config.update(**given)
    assert given == before
    assert config.max_new_tokens == 1024
    assert unused == {"foo": "bar"}


def test_defaults_and_keywords() -> None:
    """GenerationConfigTest::test_kwarg_init."""
    assert GenerationConfig().temperature == 1.0
    assert GenerationConfig().do_sample is False
    assert GenerationConfig().num_beams == 1
    config = GenerationConfig(do_sample=True, temperature=0.7, bad_words_ids=[[1, 2, 3], [4, 5]])
    assert (config.temperature, config.do_sample) == (0.7, True)
    assert config.bad_words_ids == ((1, 2, 3), (4, 5))


def test_json() -> None:
    """GenerationConfigTest::test_serialize_generation_… and PretrainedConfig.to_json_string: what
    differs, or everything."""
    config = GenerationConfig(**VALUES)
    assert json.loads(config.to_json_string()) == config.to_diff_dict() == VALUES
    assert json.loads(config.to_json_string(use_diff=False)) == config.to_dict()
    assert GenerationConfig.from_dict(json.loads(config.to_json_string())) == config


def test_a_copy_is_a_config_of_its_own() -> None:
    """GenerationConfigTest::test_save_load_config and whoever writes `deepcopy(model.
    generation_config)` before a change."""
    config = GenerationConfig(**VALUES)
    other = deepcopy(config)
    other.max_new_tokens = 3
    assert config.max_new_tokens == 512
    assert other.max_new_tokens == 3


@pytest.mark.parametrize(
    "values",
    [
        {"early_stopping": "maybe"},
        {"num_return_sequences": 2, "num_beams": 1, "max_new_tokens": 0},
        {"num_beams": 2, "num_return_sequences": 3},
        {"temperature": -1.0, "do_sample": True},
        {"output_scores": True, "return_dict_in_generate": False},
    ],
    ids=str,
)
def test_impossible_values(values: dict[str, Any]) -> None:
    """GenerationConfigTest::test_validate: a ValueError, at once."""
    with pytest.raises(ValueError, match="|".join(values)):
        GenerationConfig(**values)


@pytest.mark.refused("shape without do_sample asks for sampling here, instead of a warning")
def test_a_temperature_alone() -> None:
    """GenerationConfigTest::test_validate: a warning there that temperature has no effect."""
    assert GenerationConfig(temperature=0.5).do_sample


@pytest.mark.refused("options that do not exist raise; a subclass may hold others")
def test_attributes_of_ones_own() -> None:
    """GenerationConfigTest::test_update, with an attribute that is no option: kept there."""
    with pytest.raises(UsageError, match="no generation option 'foo'"):
        GenerationConfig().foo = "bar"  # type: ignore[attr-defined]


def test_the_models_own_is_changed(pair: Pair) -> None:
    """GenerationIntegrationTests on `model.generation_config.…`: what is set there holds for every
    later call, and a call's options go over it."""
    before = pair.ours.generation_config
    pair.ours.generation_config = deepcopy(before)
    try:
        pair.ours.generation_config.max_new_tokens = 3
        pair.ours.generation_config.eos_token_id = -1
        assert pair.ours.generate(**text_inputs()).shape[1] == 8 + 3
        assert pair.ours.generate(**text_inputs(), max_new_tokens=2).shape[1] == 8 + 2
        pair.ours.generation_config.max_length = 13
        assert pair.ours.generate(**text_inputs()).shape[1] == 8 + 3, "as in transformers"
    finally:
        pair.ours.generation_config = before


def test_a_config_of_transformers(pair: Pair) -> None:
    """GenerationIntegrationTests: generation_config= with beams, lengths and excluded tokens."""
    from transformers import GenerationConfig as Theirs

    config = Theirs(num_beams=3, max_length=15, no_repeat_ngram_size=2, eos_token_id=-1)
    inputs = text_inputs()
    ours = pair.ours.generate(**inputs, generation_config=config, do_sample=False)
    theirs = pair.reference(
        inputs, generation_config=config, do_sample=False, repetition_penalty=1.05, pad_token_id=311
    )
    assert ours.tolist() == theirs.tolist()

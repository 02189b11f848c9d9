"""GenerationConfig: what peers' tests assert of it (tests/generation/test_configuration_utils.py of
transformers)."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from generation_models import Pair, pair_fixture, text_inputs  # noqa: F401
from transformers import GenerationConfig as Theirs

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


def test_update_for_what_is_not_given() -> None:
    """GenerationMixin._prepare_generation_config: `update(defaults_only=True)`."""
    for kind in (GenerationConfig, Theirs):
        config = kind(max_new_tokens=512)
        assert config.update(defaults_only=True, max_new_tokens=7, num_beams=3, foo=1) == {
            "max_new_tokens": 7,
            "foo": 1,
        }
        assert (config.max_new_tokens, config.num_beams) == (512, 3)


def test_all_at_once() -> None:
    """GenerationConfig.update sets everything and then validates: a pair that fits together is no
    error because of the values that were there before."""
    for kind in (GenerationConfig, Theirs):
        config = kind(num_beams=4, num_return_sequences=4)
        assert config.update(num_beams=2, num_return_sequences=2) == {}
        config.update(num_return_sequences=8, num_beams=8)
        with pytest.raises(ValueError, match="num_return_sequences"):
            config.update(num_beams=3)


def test_every_option_of_transformers_is_known() -> None:
    """GenerationConfig(**their_config.to_dict()): what asks for nothing is passed over, and
    `update` returns what is of a call only."""
    unset = Theirs().to_dict()
    assert GenerationConfig(**unset) == GenerationConfig()
    assert GenerationConfig().update(**unset) == {}
    names = {"labels": None, "logits_to_keep": 0, "synced_gpus": False, "position_ids": None}
    assert Theirs().update(**names) == GenerationConfig().update(**names) == names
    assert GenerationConfig(max_new_tokens=None) == GenerationConfig()


ASSIGNED = {
    "output_scores": True,
    "return_dict_in_generate": True,
    "num_return_sequences": 3,
    "num_beams": 3,
    "min_new_tokens": 600,
    "max_new_tokens": 700,
}


@pytest.mark.parametrize("names", [list(ASSIGNED), list(reversed(ASSIGNED))], ids=["this", "that"])
def test_the_order_of_attributes(names: list[str]) -> None:
    """Whoever fills a config line by line: in no order is one of them refused on the way."""
    results = []
    for kind in (GenerationConfig, Theirs):
        config = kind()
        for name in names:
            setattr(config, name, ASSIGNED[name])
        results.append({name: getattr(config, name) for name in ASSIGNED})
        config.validate()
    assert results == [ASSIGNED, ASSIGNED]


def test_an_output_that_is_switched_on_first(pair: Pair) -> None:
    """output_scores=True in the config, return_dict_in_generate=True in the call."""
    config = GenerationConfig(output_scores=True, max_new_tokens=2)
    found = pair.ours.generate(
        **text_inputs(), generation_config=config, return_dict_in_generate=True
    )
    assert len(found.scores) == 2


CHECKPOINT = {
    "do_sample": True, "temperature": 0.3, "max_new_tokens": 40, "repetition_penalty": 1.3,
    "num_beams": 1, "top_p": 0.8, "min_new_tokens": 4, "use_cache": False,
}  # fmt: skip


GIVEN: list[dict[str, Any]] = [
    {"max_new_tokens": 512},
    {"repetition_penalty": 1.0},
    {"do_sample": False},
    {"do_sample": True, "temperature": 1.0},
    {"top_p": 1.0, "do_sample": True},
    {"use_cache": True, "min_new_tokens": 0},
    {"temperature": 1.0},
    {"max_new_tokens": None, "do_sample": None},
    {},
]


@pytest.mark.parametrize("how", ["made", "assigned", "updated", "read"])
def test_what_was_given_goes_over_the_checkpoint(pair: Pair, tmp_path: Path, how: str) -> None:
    """GenerationMixin._prepare_generation_config: explicit values win, also those that equal the
    defaults, and what was not given is the checkpoint's."""
    for number, given in enumerate(GIVEN):
        for samples in (True, False):
            folder = tmp_path / f"{number} {samples}"
            checkpoint = {**CHECKPOINT, "do_sample": samples}
            found = resolve(pair.ours, GenerationConfig, how, given, checkpoint, folder / "ours")
            expected = resolve(pair.theirs, Theirs, how, given, checkpoint, folder / "theirs")
            if how in ("assigned", "updated") and given == {"temperature": 1.0}:
                expected["do_sample"] = True  # here an assigned temperature asks for sampling
            assert found == expected, given


def resolve(
    model: Any, kind: Any, how: str, given: dict[str, Any], checkpoint: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The options of a call with what was given, in one of several ways, over a checkpoint's."""
    config = kind(**given) if how in ("made", "read") else kind()
    if how == "read":
        folder.mkdir(parents=True)
        config.save_pretrained(folder)
        config = kind.from_pretrained(folder)
    if how == "updated":
        config.update(**given)
    if how == "assigned":
        for name, value in given.items():
            setattr(config, name, value)
    before, model.generation_config = model.generation_config, kind(**checkpoint)
    try:
        if kind is Theirs:
            resolved = model._prepare_generation_config(config)[0]
        else:
            resolved = model.resolve_generation(config, {})
    finally:
        model.generation_config = before
    return {name: getattr(resolved, name) for name in CHECKPOINT}


def test_a_file_with_a_temperature_alone_is_greedy(tmp_path: Path) -> None:
    """Checkpoints that transformers 4 saved have a temperature without do_sample: greedy there, so
    greedy here; a call that asks for sampling gets it."""
    text = Theirs(temperature=0.7, top_k=20).to_json_string()
    (tmp_path / "generation_config.json").write_text(text)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config.is_greedy
    assert GenerationConfig.from_dict(config.to_dict()).is_greedy
    assert not config.merge(do_sample=True).is_greedy
    assert config.merge(do_sample=True).top_k == 20
    assert not config.merge(temperature=0.5).is_greedy
    assert not GenerationConfig.from_pretrained(tmp_path, do_sample=True).is_greedy
    config.max_new_tokens = 5
    assert config.is_greedy


def test_a_length_does_not_switch_sampling_on() -> None:
    """The released file has do_sample with a temperature of 1e-6. Setting max_new_tokens on it
    counted as asking for sampling, at temperature 1."""
    config = GenerationConfig.from_dict({"do_sample": True, "temperature": 1e-6})
    config.max_new_tokens = 5
    assert config.is_greedy
    assert config.temperature == 1e-6
    assert config.over(GenerationConfig(do_sample=True, temperature=0.9)).is_greedy


def test_what_was_not_given_is_none_in_a_dict() -> None:
    """GenerationConfig(**config.to_dict()) of a config without end tokens must not take those of a
    checkpoint away."""
    config = GenerationConfig(**GenerationConfig(max_new_tokens=512).to_dict())
    assert config.to_diff_dict() == {"max_new_tokens": 512}
    base = GenerationConfig(max_new_tokens=9, eos_token_id=7)
    assert config.over(base).eos_token_id == (7,)
    assert config.over(base).max_new_tokens == 512


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
    ],
    ids=str,
)
def test_impossible_values(values: dict[str, Any]) -> None:
    """GenerationConfigTest::test_validate: a ValueError, at once."""
    with pytest.raises(ValueError, match="|".join(values)):
        GenerationConfig(**values)


@pytest.mark.refused("an output that has no place in the result is an error, not ignored")
def test_outputs_without_a_place(pair: Pair) -> None:
    """GenerationConfigTest::test_validate: a warning there; here an error when it is used."""
    config = GenerationConfig(output_scores=True, return_dict_in_generate=False)
    with pytest.raises(ValueError, match="output_scores needs return_dict_in_generate"):
        pair.ours.generate(**text_inputs(), generation_config=config)


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
    config = Theirs(num_beams=3, max_length=15, no_repeat_ngram_size=2, eos_token_id=-1)
    inputs = text_inputs()
    ours = pair.ours.generate(**inputs, generation_config=config, do_sample=False)
    theirs = pair.reference(
        inputs, generation_config=config, do_sample=False, repetition_penalty=1.05, pad_token_id=311
    )
    assert ours.tolist() == theirs.tolist()

"""tests/test_configuration_common.py and the configuration of transformers' tests of this model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import TEXT as TINY_TEXT
from tiny_model import TEXT, VISION, WHOLE

from qwen25vl import (
    AutoConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from qwen25vl.errors import ConfigError, OptionError

CLASSES = [Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig]
COMMON = "test_configuration_common.py::ConfigTester."


@pytest.fixture
def config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(**WHOLE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Qwen2_5_VLConfig(**WHOLE),
        lambda: Qwen2_5_VLConfig(vision_config=VISION, text_config=TEXT),
        lambda: Qwen2_5_VLConfig.from_dict(WHOLE),
        lambda: Qwen2_5_VLConfig(Qwen2_5_VLTextConfig(**TEXT), Qwen2_5_VLVisionConfig(**VISION)),
    ],
    ids=["flat", "nested", "from_dict", "objects"],
)
def test_constructor_takes_both_forms(make: Any) -> None:
    """test_modeling_qwen2_5_vl.py::get_config: dictionaries reached the model as they were, or the
    constructor had no such arguments."""
    made = make()
    assert made.text_config.hidden_size == made.vision_config.out_hidden_size == 32
    assert made.text_config.rope_scaling["mrope_section"] == [2, 1, 1]
    assert made.vision_config.fullatt_block_indexes == ()


def test_values_are_those_of_transformers() -> None:
    """test_modeling_qwen2_5_vl.py::get_config: a value that lands in the wrong tower changes the
    model without an error."""
    ours, theirs = Qwen2_5_VLConfig(**WHOLE), transformers.Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))
    names = [name for name in TEXT if name != "rope_scaling"]
    for name in names:
        assert getattr(ours.text_config, name) == getattr(theirs.text_config, name)
    for name in VISION.keys() - {"in_chans"}:
        assert getattr(ours.vision_config, name) == getattr(theirs.vision_config, name)
    assert ours.image_token_id == theirs.image_token_id == 4
    rope = theirs.text_config.rope_parameters
    assert ours.text_config.rope_parameters["rope_theta"] == rope["rope_theta"]
    assert ours.text_config.rope_parameters["mrope_section"] == rope["mrope_section"]


@pytest.mark.parametrize("config_class", CLASSES)
def test_no_arguments_are_needed(config_class: Any) -> None:
    """ConfigTester.check_config_can_be_init_without_params"""
    made = config_class()
    assert made == config_class()
    assert made is not config_class()


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"]
)
def test_common_properties(config: Qwen2_5_VLConfig, name: str) -> None:
    """ConfigTester.create_and_test_config_common_properties: readable, settable, and an argument of
    the constructor; the vision config has them too, under its own names."""
    text = config.get_text_config()
    assert getattr(text, name) == TEXT[name]
    setattr(text, name, 7)
    assert getattr(text, name) == 7
    if name != "vocab_size":
        assert getattr(config.vision_config, name) == getattr(
            transformers.Qwen2_5_VLVisionConfig(**copy.deepcopy(VISION)), name
        )


def test_json_string_has_what_was_given(config: Qwen2_5_VLConfig) -> None:
    """ConfigTester.create_and_test_config_to_json_string"""
    written = json.loads(config.to_json_string(use_diff=False))
    for name, value in TEXT.items():
        assert written[name] == value
    for name, value in VISION.items():
        assert written["vision_config"][name] == value
    assert written["tie_word_embeddings"] is True


@pytest.mark.parametrize("use_diff", [True, False])
def test_json_file_and_back(config: Qwen2_5_VLConfig, tmp_path: Path, use_diff: bool) -> None:
    """ConfigTester.create_and_test_config_to_json_file"""
    config.to_json_file(tmp_path / "config.json", use_diff=use_diff)
    again = Qwen2_5_VLConfig.from_json_file(tmp_path / "config.json")
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("config_class", CLASSES)
def test_save_and_load(config: Qwen2_5_VLConfig, tmp_path: Path, config_class: Any) -> None:
    """ConfigTester.create_and_test_config_from_and_save_pretrained, and …_composite: each tower's
    config alone."""
    parts = {
        Qwen2_5_VLConfig: config,
        Qwen2_5_VLTextConfig: config.text_config,
        Qwen2_5_VLVisionConfig: config.vision_config,
    }
    part = parts[config_class]
    part.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == part.to_dict()


@pytest.mark.parametrize("config_class", CLASSES[1:])
def test_a_tower_is_read_from_the_whole(
    config: Qwen2_5_VLConfig, tmp_path: Path, config_class: Any
) -> None:
    """ConfigTester.create_and_test_config_from_and_save_pretrained_composite: from the folder of a
    whole model."""
    config.save_pretrained(tmp_path)
    read = config_class.from_pretrained(tmp_path)
    assert read == getattr(config, config_class.base_config_key)
    assert not hasattr(read, "image_token_id")


def test_transformers_reads_what_we_write(config: Qwen2_5_VLConfig, tmp_path: Path) -> None:
    """ConfigTester.create_and_test_config_from_and_save_pretrained, across packages."""
    config.save_pretrained(tmp_path)
    theirs = transformers.Qwen2_5_VLConfig.from_pretrained(tmp_path)
    assert theirs.text_config.num_key_value_heads == 2
    assert theirs.vision_config.spatial_merge_size == 1
    theirs.save_pretrained(tmp_path / "again")
    again = Qwen2_5_VLConfig.from_pretrained(tmp_path / "again")
    for name in TEXT.keys() - {"rope_scaling"}:
        assert getattr(again.text_config, name) == getattr(config.text_config, name)
    assert again.text_config.rope_scaling == config.text_config.rope_scaling
    assert again.tie_word_embeddings


def test_options_that_every_config_takes() -> None:
    """ConfigTester.check_config_arguments_init: kept, though this package has no use for some."""
    given = {
        "return_dict": False,
        "output_hidden_states": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["BertModel"],
        "finetuning_task": "translation",
        "id2label": {0: "label"},
        "tokenizer_class": "BertTokenizerFast",
        "prefix": "prefix",
        "pad_token_id": 7,
        "problem_type": "regression",
    }
    made = Qwen2_5_VLConfig(**given)
    for name, value in given.items():
        owner = made.text_config if name == "pad_token_id" else made
        assert getattr(owner, name) == value, name


def test_unknown_attributes_are_kept(config: Qwen2_5_VLConfig, tmp_path: Path) -> None:
    """test_configuration_utils.py::test_config_from_string and recipes for training, which set
    `model.config.use_cache = False` and attach names of their own."""
    config.my_own = {"a": [1]}
    config.use_cache = False
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.my_own == {"a": [1]}
    assert again.use_cache is again.text_config.use_cache is False
    assert copy.deepcopy(config).my_own == {"a": [1]}


def test_files_hide_no_method() -> None:
    """test_configuration_utils.py::test_config_from_string: a key that is the name of a method, or
    of something private, must not take its place."""
    read = Qwen2_5_VLConfig.from_dict(
        {"to_dict": 1, "has": 2, "__class__": 3, "_attn_implementation": "x", "own": 4}
    )
    assert callable(read.to_dict)
    assert callable(read.has)
    assert type(read) is Qwen2_5_VLConfig
    assert read._attn_implementation is None
    assert read.own == 4


def test_changes_while_reading(config: Qwen2_5_VLConfig, tmp_path: Path) -> None:
    """test_configuration_utils.py::test_config_from_pretrained with overrides: applied, nested ones
    too; others are handed back if they are asked for."""
    config.save_pretrained(tmp_path)
    read, unused = Qwen2_5_VLConfig.from_pretrained(
        tmp_path,
        output_hidden_states=True,
        text_config={"rms_norm_eps": 1e-3},
        nonsense=1,
        return_unused_kwargs=True,
    )
    assert read.output_hidden_states
    assert read.text_config.rms_norm_eps == 1e-3
    assert read.text_config.hidden_size == 32
    assert unused == {"nonsense": 1}


def test_only_differences(config: Qwen2_5_VLConfig) -> None:
    """test_configuration_utils.py::test_config_common_kwargs_is_complete and to_diff_dict: nothing
    that is a default anyway."""
    changed = config.to_diff_dict()
    assert changed["model_type"] == "qwen2_5_vl"
    assert changed["hidden_size"] == 32
    assert "initializer_range" not in changed
    assert "hidden_act" not in changed


def test_update_sets_attributes(config: Qwen2_5_VLConfig) -> None:
    """test_configuration_utils.py::test_config_from_string: `update` with several values."""
    config.update({"image_token_id": 8, "vision_config": {"window_size": 56}})
    assert (config.image_token_id, config.vision_config.window_size) == (8, 56)
    assert config.has("tie_word_embeddings")


def test_text_config_of_each(config: Qwen2_5_VLConfig) -> None:
    """test_configuration_utils.py::test_get_text_config"""
    assert config.get_text_config() is config.get_text_config(decoder=True) is config.text_config
    assert config.text_config.get_text_config() is config.text_config


def test_older_name_of_dtype() -> None:
    """test_modeling_common.py::test_bc_torch_dtype: both names, as text or as torch's object."""
    for given in ({"torch_dtype": "bfloat16"}, {"dtype": torch.bfloat16}, {"dtype": "bfloat16"}):
        made = Qwen2_5_VLConfig(**given)
        assert made.torch_dtype == torch.bfloat16
    made.torch_dtype = torch.float16
    assert made.dtype == "float16"


def test_rope_under_its_newer_name(config: Qwen2_5_VLConfig) -> None:
    """test_modeling_rope_utils.py: rope_parameters can be read, given and assigned."""
    text = config.text_config
    text.rope_parameters = {**text.rope_parameters, "rope_theta": 5e4}
    assert text.rope_theta == 5e4
    given = {name: value for name, value in TEXT.items() if name != "rope_scaling"}
    made = Qwen2_5_VLTextConfig(**given, rope_parameters=text.rope_parameters)
    assert made.rope_theta == 5e4
    assert made.rope_scaling == text.rope_scaling


def test_names_of_the_whole(config: Qwen2_5_VLConfig) -> None:
    """test_configuration_common.py: model_type of all three, in_chans, use_return_dict."""
    types = [c.model_type for c in (config, config.text_config, config.vision_config)]
    assert types == ["qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_vl_vision"]
    assert config.vision_config.in_chans == 3
    config.vision_config.in_chans = 4
    assert config.vision_config.in_channels == 4
    assert config.use_return_dict is config.return_dict is True
    assert {"text_config", "return_dict"} <= {*config}
    fields = config.vision_config.fields_of()
    assert fields["spatial_patch_size"] == 14


def test_key_heads_default_to_heads() -> None:
    """configuration_qwen2_5_vl.py: num_key_value_heads=None means no grouping."""
    made = Qwen2_5_VLTextConfig(**{**TEXT, "num_key_value_heads": None})
    assert made.num_key_value_heads == 4


@pytest.mark.refused("impossible sizes raise ConfigError when a config is made or a model built")
def test_impossible_values_after_the_fact(config: Qwen2_5_VLConfig) -> None:
    """test_configuration_utils.py: transformers takes any value and fails inside the model."""
    from qwen25vl import Qwen2_5_VLForConditionalGeneration

    config.text_config.num_attention_heads = 5
    with pytest.raises(ConfigError, match="does not divide"):
        Qwen2_5_VLForConditionalGeneration(config)
    with pytest.raises(ConfigError, match="model_type is 'bert'"):
        Qwen2_5_VLConfig(model_type="bert")


@pytest.mark.refused("an unknown option of from_pretrained is an error that names the nearest one")
def test_unknown_options_of_reading(config: Qwen2_5_VLConfig, tmp_path: Path) -> None:
    """test_configuration_utils.py: transformers drops keywords that are no attributes."""
    config.save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="token"):
        Qwen2_5_VLConfig.from_pretrained(tmp_path, tokn="x")


@pytest.mark.refused("num_labels is an attribute like any other: there is no classifier")
def test_labels() -> None:
    """ConfigTester.create_and_test_config_with_num_labels"""
    assert not hasattr(Qwen2_5_VLConfig(num_labels=5), "id2label")


@pytest.mark.refused("defaults are the released family's, not transformers' class defaults")
def test_default_sizes() -> None:
    """ConfigTester.check_config_can_be_init_without_params compares with transformers' defaults."""
    ours, theirs = Qwen2_5_VLVisionConfig(), transformers.Qwen2_5_VLVisionConfig()
    assert (ours.tokens_per_second, theirs.tokens_per_second) == (2, 4)
    assert Qwen2_5_VLTextConfig().rms_norm_eps == 1e-6
    assert TINY_TEXT["rms_norm_eps"] == 1e-6


@pytest.mark.refused("config.dtype is a name, so that reading a config needs no torch")
def test_dtype_is_a_name() -> None:
    """test_modeling_common.py::test_bc_torch_dtype: transformers gives torch's object; here that is
    `torch_dtype`."""
    made = Qwen2_5_VLConfig(dtype="float32")
    assert made.dtype == "float32"
    assert made.torch_dtype is torch.float32


@pytest.mark.refused("nothing is uploaded")
def test_push_to_hub(config: Qwen2_5_VLConfig, tmp_path: Path) -> None:
    """test_configuration_utils.py::test_push_to_hub"""
    with pytest.raises(OptionError, match="hf upload"):
        config.save_pretrained(tmp_path, push_to_hub=True)

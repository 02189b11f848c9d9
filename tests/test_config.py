"""config.json in all its forms: flat and nested, old and new names,
missing and impossible values."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import IDS, TEXT, VISION

from qwen25vl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.errors import CheckpointError, ConfigError

FLAT: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": True,
    **TEXT,
    **IDS,
    "vision_config": VISION,
}


def test_flat_and_nested_forms_are_one(tmp_path: Path) -> None:
    """Newer saves nest the text fields and rename rope_scaling;
    read as flat they would give the default sizes."""
    flat = Qwen2_5_VLConfig.from_dict(FLAT)
    text = {key: value for key, value in TEXT.items() if key not in ("rope_scaling", "rope_theta")}
    text |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    vision = {key: value for key, value in VISION.items() if key != "in_chans"} | {"in_channels": 3}
    nested = Qwen2_5_VLConfig.from_dict(
        {"model_type": "qwen2_5_vl", **IDS, "text_config": text, "vision_config": vision}
    )
    assert nested.text_config == flat.text_config
    assert nested.vision_config == flat.vision_config
    assert nested.tie_word_embeddings
    assert nested.dtype == "float32"
    flat.save_pretrained(tmp_path)
    assert Qwen2_5_VLConfig.from_pretrained(tmp_path) == flat


def test_missing_vision_keys_take_the_familys_values() -> None:
    """The released 32B file leaves keys out; other engines then build windows everywhere."""
    config = Qwen2_5_VLConfig.from_dict(
        {
            "model_type": "qwen2_5_vl",
            "hidden_size": 5120,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vision_config": {"intermediate_size": 3456, "out_hidden_size": 5120},
        }
    )
    assert config.vision_config == Qwen2_5_VLVisionConfig(
        intermediate_size=3456, out_hidden_size=5120
    )
    assert config.vision_config.fullatt_block_indexes == (7, 15, 23, 31)
    assert config.vision_config.tokens_per_second == 2
    assert config.text_config.rms_norm_eps == 1e-6


def test_yarn_is_read() -> None:
    """The long-context recipe of the model card."""
    rope = {
        "type": "yarn",
        "mrope_section": [2, 3, 3],
        "factor": 4,
        "original_max_position_embeddings": 32768,
    }
    config = Qwen2_5_VLConfig.from_dict(FLAT | {"rope_scaling": rope})
    assert config.text_config.rope_scaling.type == "yarn"
    assert Qwen2_5_VLConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_vl"}, "model_type is 'qwen3_vl'"),
        ({"num_attention_heads": 5}, "hidden_size 64 does not divide by num_attention_heads 5"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads 4 does not divide by num_key_value_heads 3",
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "sums to 9"),
        ({"rope_scaling": {"type": "dynamic", "mrope_section": [2, 3, 3]}}, "'dynamic' is unknown"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        (
            {"vision_config": VISION | {"num_heads": 5}},
            "hidden_size 48 does not divide by num_heads 5",
        ),
        ({"vision_config": VISION | {"window_size": 100}}, "window_size 100"),
        (
            {"vision_config": VISION | {"fullatt_block_indexes": [1, 9]}},
            r"\[9\] lie outside the 4 blocks",
        ),
        ({"vision_config": VISION | {"out_hidden_size": 128}}, "out_hidden_size 128"),
    ],
)
def test_impossible_values_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    """Otherwise they come back as a shape error from the depth of the model,
    or as worse answers."""
    with pytest.raises(ConfigError, match=message):
        Qwen2_5_VLConfig.from_dict(FLAT | change)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    """Each said in one line."""
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Qwen2_5_VLConfig.from_pretrained(tmp_path)
    for content, message in (("{", "cannot be read as JSON"), ("[]", "one JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Qwen2_5_VLConfig.from_pretrained(tmp_path)


def test_unknown_keys_are_left_alone() -> None:
    """Files carry what other programs need; only impossible values are errors."""
    assert Qwen2_5_VLConfig.from_dict(
        FLAT | {"transformers_version": "4.41.2"}
    ) == Qwen2_5_VLConfig.from_dict(FLAT)
    assert json.dumps(Qwen2_5_VLConfig.from_dict(FLAT).to_dict())
    assert Qwen2_5_VLTextConfig().head_dim == 128

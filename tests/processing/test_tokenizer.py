"""Typed text is inert, and text that is written token by token is whole."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from qwen25vl.errors import CheckpointError
from qwen25vl.processing.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_folder)


def test_control_tokens_only_where_allowed(tokenizer: Tokenizer) -> None:
    """`encode_special_tokens` of the library alone lets <tool_call> through."""
    for text, number in tokenizer.control_ids.items():
        assert tokenizer.encode(text, control=True) == [number]
        assert not set(tokenizer.encode(f"a{text}b")) & set(tokenizer.control_ids.values())
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.control_ids) == 22


def test_pieces_merge_across_their_border(tokenizer: Tokenizer) -> None:
    """The template's newline and the user's are one token in the reference."""
    assert tokenizer.encode_pieces(
        [("<|im_start|>user\n", True), ("\nHi", False)]
    ) == tokenizer.encode("<|im_start|>user\n\nHi", control=True)


def test_streaming_gives_the_whole_text(tokenizer: Tokenizer) -> None:
    """Emoji and Chinese characters are spread over tokens; half of one must not be shown."""
    text = "naïve 你好 👩‍👩‍👧 🏳️‍🌈 done"
    decoder = tokenizer.stream_decoder()
    parts = [decoder.push(number) for number in tokenizer.encode(text)]
    assert "".join(parts) + decoder.finish() == text
    assert not any("\ufffd" in part for part in parts)
    random_ = random.Random(1)
    for _ in range(50):
        ids = [random_.randrange(151800) for _ in range(20)]
        decoder = tokenizer.stream_decoder()
        assert "".join(map(decoder.push, ids)) + decoder.finish() == tokenizer.decode(
            ids, skip_special_tokens=True
        )


def test_strange_text(tokenizer: Tokenizer) -> None:
    """A lone surrogate, as JSON can bring it, used to raise from the depth of the library."""
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"
    assert tokenizer.encode("") == []
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == ""
    hello = tokenizer.encode("Hello")
    assert tokenizer.batch_decode([[-100, *hello], [*hello, 1 << 40], []]) == ["Hello", "Hello", ""]


def test_another_vocabulary(
    tokenizer_json: dict[str, Any], tmp_path: Path, tiny_folder: Path
) -> None:
    """Ids of the official vocabulary built in anywhere; here it is bytes alone, and control tokens
    stand in gaps."""
    letters = {
        letter: i for letter, i in tokenizer_json["model"]["vocab"].items() if len(letter) == 1
    }
    model = {
        **tokenizer_json["model"],
        "vocab": {letter: i for i, letter in enumerate(letters)},
        "merges": [],
    }
    added = [{**token, "id": 300 + 7 * i} for i, token in enumerate(tokenizer_json["added_tokens"])]
    spec = {**tokenizer_json, "model": model, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec, indent=2))
    (tmp_path / "tokenizer_config.json").write_text(
        (tiny_folder / "tokenizer_config.json").read_text()
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (300, 314)
    ids = tokenizer.encode("<|im_start|>é你<tool_call>", control=True)
    assert (ids[0], ids[-1], len(ids)) == (307, 300 + 7 * 14, 7)
    assert tokenizer.decode([*ids, 299, 301, 5000]) == "<|im_start|>é你<tool_call>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "é你<tool_call>"


def test_truncation_that_training_left_behind(tiny_folder: Path, tmp_path: Path) -> None:
    """A fine-tuned checkpoint's tokenizer.json cut every prompt to 5 tokens,
    or filled it up to 20, in silence."""
    spec = json.loads((tiny_folder / "tokenizer.json").read_text())
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    spec["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(
        (tiny_folder / "tokenizer_config.json").read_text()
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert len(tokenizer.encode("hello")) == 1
    assert tokenizer.decode(tokenizer.encode("hello " * 100)) == "hello " * 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {"type": "Fuse"}}, "not a byte-level tokenizer"),
        ({"model": {"type": "Nonsense"}}, "cannot be read"),
        ({"added_tokens": []}, r"no token '<\|im_end\|>'"),
    ],
)
def test_damaged_files(
    tiny_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """One clear line instead of the library's."""
    spec = json.loads((tiny_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | change))
    config = json.loads((tiny_folder / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer: it has no added_tokens"):
        Tokenizer.from_folder(tmp_path)

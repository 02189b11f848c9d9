"""What code for transformers asks of the tokenizer and of a processor's result, in our words.

Values are compared with transformers' own tokenizer of the same files.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer as PeerTokenizer
from transformers import BatchEncoding

from qwen25vl import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2TokenizerFast,
)
from qwen25vl.errors import CheckpointError, OptionError, UsageError
from qwen25vl.inputs import ModelInputs

TEXTS = ["hello", "hello you there <|im_end|>", "é <tool_call> 漢字\n\n"]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "you"}]


@pytest.fixture(scope="module")
def peer(tiny_folder: Path) -> Any:
    return PeerTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder, padding_side="right")


@pytest.fixture
def own(loaded: Any) -> Any:
    """One that a test may change."""
    made = copy.copy(loaded)
    made.named_tokens = dict(loaded.named_tokens)
    return made


def plain(encoding: Any) -> dict[str, Any]:
    return {key: as_lists(value) for key, value in encoding.items()}


def as_lists(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(map(as_lists, value)) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (TEXTS[1], {}),
        (TEXTS, {}),
        (TEXTS, {"padding": True}),
        (TEXTS, {"padding": True, "return_tensors": "pt"}),
        (TEXTS, {"padding": "longest", "return_tensors": "np"}),
        (TEXTS, {"padding": "max_length", "max_length": 20}),
        (TEXTS, {"padding": True, "pad_to_multiple_of": 8, "return_tensors": "pt"}),
        (TEXTS[1], {"truncation": True, "max_length": 2}),
        (TEXTS[1], {"max_length": 2}),
        (TEXTS, {"truncation": True, "padding": True, "max_length": 3, "return_tensors": "pt"}),
        (TEXTS[0], {"return_tensors": "pt"}),
        (TEXTS, {"padding": True, "padding_side": "left"}),
        (TEXTS, {"padding": True, "add_special_tokens": False}),
        (TEXTS[1], {"return_attention_mask": False}),
    ],
)
def test_encodings(peer: Any, own: Any, text: Any, options: dict[str, Any]) -> None:
    """tokenization_utils_base::__call__: ids, masks, and lists where lists are meant"""
    expected, found = peer(text, **options), own(text, **options)
    assert plain(found) == plain(expected)
    assert all(isinstance(found[key], type(expected[key])) for key in expected)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_a_text(peer: Any, own: Any, text: str) -> None:
    """test_tokenization_common::test_internal_consistency (encode, decode, tokenize)"""
    ids = peer.encode(text)
    assert own.encode(text) == ids
    assert own.encode(text, return_tensors="pt").tolist() == [ids]
    assert own.decode(ids) == peer.decode(ids)
    assert own.decode(ids, skip_special_tokens=True) == peer.decode(ids, skip_special_tokens=True)
    assert own.tokenize(text) == peer.tokenize(text)


def test_vocabulary(peer: Any, own: Any) -> None:
    """test_tokenization_common::test_get_vocab"""
    assert own.get_vocab() == peer.get_vocab()
    assert (len(own), own.vocab_size) == (len(peer), peer.vocab_size)


@pytest.mark.parametrize(
    "tokens", ["<|image_pad|>", "Hello", "no such token", ["<|im_end|>", "Ġyou"]]
)
def test_tokens_and_ids(peer: Any, own: Any, tokens: Any) -> None:
    """test_tokenization_common::test_conversion_reversible"""
    ids = peer.convert_tokens_to_ids(tokens)
    assert own.convert_tokens_to_ids(tokens) == ids
    if ids is not None:
        assert own.convert_ids_to_tokens(ids) == peer.convert_ids_to_tokens(ids)


def test_ids_without_special_tokens(peer: Any, own: Any) -> None:
    """test_tokenization_common::test_convert_ids_to_tokens with skip_special_tokens"""
    ids = [9707, 151645]
    expected = peer.convert_ids_to_tokens(ids, skip_special_tokens=True)
    assert own.convert_ids_to_tokens(ids, skip_special_tokens=True) == expected


@pytest.mark.parametrize(
    "name",
    "eos_token eos_token_id pad_token pad_token_id bos_token bos_token_id unk_token unk_token_id "
    "padding_side truncation_side model_max_length model_input_names is_fast".split(),
)
def test_attributes(peer: Any, own: Any, name: str) -> None:
    """test_tokenization_common::test_tokenizers_common_properties"""
    assert getattr(own, name) == getattr(peer, name)


def test_special_tokens(peer: Any, own: Any) -> None:
    """test_tokenization_common::test_tokenizers_common_properties (all of them)"""
    assert sorted(own.all_special_tokens) == sorted(peer.all_special_tokens)
    assert sorted(own.all_special_ids) == sorted(peer.all_special_ids)


def test_names_of_the_slots(own: Any) -> None:
    """processing_qwen2_5_vl::__init__: tokenizer.image_token, where a tokenizer has it"""
    assert (own.image_token, own.image_token_id) == ("<|image_pad|>", 151655)
    assert (own.video_token, own.video_token_id) == ("<|video_pad|>", 151656)


def test_another_padding_token(own: Any) -> None:
    """recipes: tokenizer.pad_token = tokenizer.eos_token"""
    own.pad_token = own.eos_token
    assert own(["a", "b c"], padding=True).input_ids[0][-1] == own.pad_token_id == 151645
    own.eos_token = "<|endoftext|>"
    assert own.eos_token_id == 151643
    with pytest.raises(OptionError, match="pad_token is 'no token'"):
        own.pad_token = "no token"


ONE = {"input_ids": [1, 2, 3]}
MASKED = [
    {"input_ids": [1, 2], "attention_mask": [0, 1], "token_type_ids": [0, 1], "labels": [1, 2]},
    {"input_ids": [3], "attention_mask": [1], "token_type_ids": [1], "labels": [3]},
]
SAME = [{"input_ids": [1, 2], "labels": 0.5}, {"input_ids": [3], "labels": 1.5}]
TENSORS = [{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([3])}]
ARRAYS = [{"input_ids": np.array([1, 2])}, {"input_ids": np.array([3])}]
SQUARE = [
    {"input_ids": [1, 2], "attention_mask": torch.ones(1, 2, 2)},
    {"input_ids": [3, 4], "attention_mask": torch.zeros(1, 2, 2)},
]


def as_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in rows[0]}


ENCODINGS = [
    ONE,
    {"input_ids": [1, 2], "attention_mask": [0, 1]},
    {"input_ids": torch.tensor([1, 2])},
    {"input_ids": torch.tensor([[1, 2], [3, 4]]), "labels": torch.tensor([5, 6])},
    as_columns(MASKED),
    as_columns(SAME),
    MASKED,
    tuple(MASKED),
    SAME,
    TENSORS,
    ARRAYS,
    SQUARE,
    BatchEncoding(as_columns(MASKED)),
    [BatchEncoding(row) for row in MASKED],
    [ONE],
    {"input_ids": []},
    {"input_ids": [[], [1]]},
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pad_to_multiple_of": 4},
        {"padding_side": "left", "padding": "longest"},
        {"padding": "max_length", "max_length": 5},
        {"padding": "max_length", "max_length": 1},
        {"padding": "max_length", "max_length": 5, "pad_to_multiple_of": 4},
        {"padding": False},
        {"padding": "do_not_pad", "max_length": 2},
        {"padding": True, "max_length": 9},
        {"return_attention_mask": False},
        {"return_tensors": "pt"},
        {"return_tensors": "np", "pad_to_multiple_of": 8, "padding_side": "left"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_padding_of_encodings(peer: Any, own: Any, options: dict[str, Any]) -> None:
    """test_tokenization_common::test_padding_to_max_length, …_to_multiple_of,
    test_padding_with_attention_mask, test_right_and_left_padding, and collators' tokenizer.pad: the
    same keys, values and kinds, or a ValueError; what was given stays as it is."""
    for given in ENCODINGS:
        before = str(given)
        try:
            expected = peer.pad(copy.deepcopy(given), **options)
        except ValueError:
            with pytest.raises(UsageError):
                own.pad(given, **options)
            continue
        found = own.pad(given, **options)
        assert plain(found) == plain(expected)
        for key, value in expected.items():
            assert isinstance(found[key], type(value))
            assert getattr(found[key], "dtype", None) == getattr(value, "dtype", None)
        assert str(given) == before


def test_padding_in_its_place(peer: Any, own: Any) -> None:
    """DataCollatorWithPadding: `padding` comes second; the length of the model stands for a
    max_length."""
    for each in (copy.copy(peer), own):
        each.model_max_length = 6
        found = each.pad({"input_ids": [[1], [2, 3]]}, "max_length")
        assert list(map(len, found["input_ids"])) == [6, 6]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "the encodings are empty; expected mappings with input_ids"),
        (5, "the encodings are int"),
        ([[1, 2]], "an encoding is list; expected a mapping"),
        ({"labels": [1]}, "the encodings hold labels; no input_ids"),
        ([{"input_ids": [1], "labels": 1}, {"input_ids": [1]}], "labels is in the first"),
        ({"input_ids": [[1], [2]], "labels": [1]}, "labels has 1 rows and input_ids 2"),
    ],
)
def test_what_is_no_encoding(own: Any, given: Any, words: str) -> None:
    """tokenization_utils_base::pad raises what Python finds there: KeyError, AttributeError,
    AssertionError."""
    with pytest.raises(UsageError, match=words):
        own.pad(given)
    with pytest.raises(UsageError, match="return_tensors"):
        own.pad(ONE, return_tensors="tf")


@pytest.mark.parametrize(
    "options", [{"tokenize": False}, {}, {"add_generation_prompt": True}, {"return_dict": False}]
)
def test_chats_of_text(peer: Any, own: Any, options: dict[str, Any]) -> None:
    """test_tokenization_common::test_chat_template"""
    template = own.chat_template
    expected = peer.apply_chat_template(CHAT, chat_template=template, **options)
    found = own.apply_chat_template(CHAT, **options)
    is_encoding = isinstance(found, ModelInputs)
    assert (plain(found) if is_encoding else found) == (
        plain(expected) if is_encoding else expected
    )


def test_chats_of_several_texts(own: Any) -> None:
    """test_tokenization_common::test_chat_template_batched"""
    found = own.apply_chat_template([CHAT, CHAT[:1]], return_tensors="pt", padding=True)
    assert found.input_ids.shape[0] == 2
    with pytest.raises(UsageError, match="takes no pictures"):
        own.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    own.chat_template = None
    with pytest.raises(CheckpointError, match="has no chat template"):
        own.apply_chat_template(CHAT)


def test_a_tokenizer_is_saved(own: Any, tmp_path: Path) -> None:
    """test_tokenization_common::test_save_and_load_tokenizer"""
    saved = own.save_pretrained(tmp_path)
    assert all(Path(name).is_file() for name in saved)
    for kind in (AutoTokenizer, Qwen2Tokenizer, Qwen2TokenizerFast):
        assert kind.from_pretrained(tmp_path)(TEXTS[1]) == own(TEXTS[1])


@pytest.mark.refused("offsets and masks of parts of a text are not computed")
@pytest.mark.parametrize(
    "name", ["return_offsets_mapping", "return_special_tokens_mask", "is_split_into_words"]
)
def test_what_an_encoding_does_not_tell(own: Any, name: str) -> None:
    """test_tokenization_common::test_offsets_mapping, test_special_tokens_mask,
    test_pretokenized_inputs"""
    with pytest.raises(OptionError, match=f"{name} is True; supported: None, False"):
        own("a", **{name: True})
    assert own("a", **{name: False}) == own("a")


@pytest.mark.refused("batches are padded on the left, as generation wants it")
def test_the_side_of_padding(tiny_folder: Path, peer: Any) -> None:
    """tokenization_utils_base: padding_side is "right" where the files do not say"""
    assert peer.padding_side == "right"
    processor = AutoProcessor.from_pretrained(tiny_folder)
    assert processor.tokenizer.padding_side == "left"
    processor.tokenizer.padding_side = "right"
    assert processor(text=["a", "b c"]).attention_mask[0].tolist() == [1, 0]
    with pytest.raises(UsageError, match="padding_side"):
        processor.tokenizer.padding_side = "top"


@pytest.mark.refused("tokens are tensors where nobody says what they are to be")
def test_tensors_by_default(tiny_folder: Path) -> None:
    """processing_utils: a call without return_tensors gives lists there"""
    processor = AutoProcessor.from_pretrained(tiny_folder)
    assert isinstance(processor(text="a").input_ids, torch.Tensor)
    assert isinstance(processor(text="a", return_tensors=None).input_ids, list)


@pytest.mark.refused("a vocabulary that grows needs a model that grows with it")
def test_tokens_are_not_added(own: Any) -> None:
    """test_tokenization_common::test_add_tokens"""
    assert not hasattr(own, "add_tokens")


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture
def inputs(processor: Qwen2_5_VLProcessor) -> ModelInputs:
    return processor(
        text="<|image_pad|> a cat", images=Image.new("RGB", (56, 56)), return_tensors="pt"
    )


def test_an_item_is_taken_out(inputs: ModelInputs) -> None:
    """test_feature_extraction_common: BatchFeature.pop"""
    mask = inputs.attention_mask
    assert inputs.pop("attention_mask") is mask
    assert "attention_mask" not in inputs
    with pytest.raises(KeyError):
        inputs["attention_mask"]


def test_an_item_is_added(inputs: ModelInputs) -> None:
    """recipes: inputs["labels"] = inputs["input_ids"].clone()"""
    inputs["labels"] = inputs["input_ids"].clone()
    assert inputs.labels is inputs["labels"]
    assert "labels" in dict(**inputs)


def test_items_are_updated(inputs: ModelInputs) -> None:
    """test_feature_extraction_common: BatchFeature.update, data, keys"""
    inputs.update({"a": 1}, b=2)
    assert (inputs.data["a"], inputs["b"]) == (1, 2)
    assert list(inputs.keys())[-2:] == ["a", "b"]
    del inputs["a"]
    assert "a" not in inputs.data


def test_the_kind_of_a_mapping_is_made_of_a_mapping(inputs: ModelInputs) -> None:
    """trainer::_prepare_input: type(data)({key: …})"""
    again = type(inputs)(dict(inputs.items()))
    assert list(again) == list(inputs)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies(inputs: ModelInputs, copied: Any) -> None:
    """test_feature_extraction_common: BatchFeature in workers of a data loader"""
    again = copied(inputs)
    assert torch.equal(again.pixel_values, inputs.pixel_values)
    assert again.media == inputs.media
    again["labels"] = 1
    assert "labels" not in inputs


def test_labels_reach_the_model(tiny_folder: Path, inputs: ModelInputs) -> None:
    """recipes: model(**inputs).loss"""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    without = model(**inputs)
    inputs["labels"] = inputs["input_ids"].clone()
    assert without.loss is None
    assert model(**inputs).loss > 0


def test_all_inputs_reach_generation(tiny_folder: Path, inputs: ModelInputs) -> None:
    """docs image_text_to_text: model.generate(**inputs), mm_token_type_ids included"""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    ids = model.generate(**inputs, max_new_tokens=2)
    assert ids.shape[1] == inputs.input_ids.shape[1] + 2

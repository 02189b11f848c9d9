"""What transformers' own tests ask of the processor, in our words.

The peer is tests/models/qwen2_5_vl/test_processing_qwen2_5_vl.py with
tests/test_processing_common.py of transformers; each docstring names the test there.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen25vl import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLImageProcessor
from qwen25vl.errors import MediaSizeError, OptionError, UsageError
from qwen25vl.inputs import ModelInputs

RANDOM = np.random.default_rng(5)
PICTURE = Image.fromarray(RANDOM.integers(0, 255, (30, 400, 3), dtype=np.uint8))
CLIP = [RANDOM.integers(0, 255, (3, 30, 400), dtype=np.uint8)] * 8
SMALL = {"patch_size": 4, "max_pixels": 56 * 56, "min_pixels": 28 * 28}
MEDIA = {"images": (PICTURE, "<|image_pad|>"), "videos": (CLIP, "<|video_pad|>")}
PIXELS = {"images": "pixel_values", "videos": "pixel_values_videos"}
KINDS = ["images", "videos"]
GROUPS = {"images": "images_kwargs", "videos": "videos_kwargs"}
PARTS = {"images": "image_processor", "videos": "video_processor"}
NEGATIVE = {"do_rescale": True, "rescale_factor": -1}


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return Qwen2_5_VLProcessor.from_pretrained(tiny_folder, **SMALL)


@pytest.fixture
def processor(loaded: Qwen2_5_VLProcessor) -> Qwen2_5_VLProcessor:
    """One that a test may change."""
    image, video = loaded.image_processor.changed({}), loaded.video_processor.changed({})
    parts = {"image_processor": image, "video_processor": video}
    return with_parts(loaded, tokenizer=copy.copy(loaded.tokenizer), **parts)


def texts(kind: str, count: int = 1) -> list[str]:
    slot = MEDIA[kind][1]
    return [f"lower newer {slot}", f" {slot} upper older longer string"][:count]


def call(processor: Qwen2_5_VLProcessor, kind: str, count: int = 1, **options: Any) -> ModelInputs:
    media = [MEDIA[kind][0]] * count
    options = {"return_tensors": "pt", **options}
    return processor(text=texts(kind, count), **{kind: media}, **options)


def is_dark(inputs: ModelInputs, kind: str) -> bool:
    """Whether levels were multiplied by a negative factor."""
    return bool(inputs[PIXELS[kind]][0].mean() <= 0)


def with_parts(processor: Qwen2_5_VLProcessor, **changes: Any) -> Qwen2_5_VLProcessor:
    """The same processor, built from its parts."""
    names = ("image_processor", "tokenizer", "video_processor")
    parts = {name: getattr(processor, name) for name in names} | changes
    return Qwen2_5_VLProcessor(**parts, chat_template=processor.chat_template)


def test_json_of_a_processor(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_processor_to_json_string"""
    values = json.loads(processor.to_json_string())
    assert values["image_processor"]["patch_size"] == 4
    assert values["video_processor"]["size"] == {"shortest_edge": 784, "longest_edge": 3136}


def test_saved_files_are_named(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    """test_processing_common::test_processor_from_and_save_pretrained (the files)"""
    saved = processor.save_pretrained(tmp_path)
    assert isinstance(json.loads(Path(saved[0]).read_text(encoding="utf-8")), dict)
    assert sorted(map(str, tmp_path.iterdir())) == sorted(saved)


def test_saved_settings_load_again(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    """test_processing_common::test_processor_from_and_save_pretrained (the values)"""
    processor.save_pretrained(tmp_path)
    assert Qwen2_5_VLProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


@pytest.mark.parametrize("part", ["image_processor", "video_processor"])
def test_saved_parts_load_again(processor: Qwen2_5_VLProcessor, tmp_path: Path, part: str) -> None:
    """test_processing_common::test_processor_from_and_save_pretrained (repr of the parts)"""
    processor.save_pretrained(tmp_path)
    again = Qwen2_5_VLProcessor.from_pretrained(tmp_path)
    assert repr(getattr(again, part)) == repr(getattr(processor, part))


def test_a_processor_of_parts_is_the_same(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::get_processor, prepare_components"""
    assert with_parts(processor).to_dict() == processor.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_the_tokenizer_count(
    processor: Qwen2_5_VLProcessor, tiny_folder: Path, kind: str
) -> None:
    """test_processing_common::test_tokenizer_defaults_preserved_by_kwargs (and _video)"""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, max_length=167, padding="max_length")
    assert call(with_parts(processor, tokenizer=tokenizer), kind).input_ids.shape[-1] == 167


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_a_part_count(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_image_processor_defaults_preserved_by_image_kwargs, …_video…"""
    part = getattr(processor, PARTS[kind]).changed(NEGATIVE)
    assert is_dark(call(with_parts(processor, **{PARTS[kind]: part}), kind), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_call_goes_before_the_tokenizer(
    processor: Qwen2_5_VLProcessor, tiny_folder: Path, kind: str
) -> None:
    """test_processing_common::test_kwargs_overrides_default_tokenizer_kwargs (and _video)"""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, padding="longest")
    inputs = call(
        with_parts(processor, tokenizer=tokenizer), kind, max_length=162, padding="max_length"
    )
    assert inputs.input_ids.shape[-1] == 162


@pytest.mark.parametrize("kind", KINDS)
def test_the_call_goes_before_the_settings(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_kwargs_overrides_default_image_processor_kwargs (and video)"""
    assert not is_dark(call(processor, kind, rescale_factor=1), kind)
    assert is_dark(call(processor, kind, **NEGATIVE), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_options_side_by_side(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_unstructured_kwargs (and _video)"""
    inputs = call(processor, kind, **NEGATIVE, padding="max_length", max_length=176)
    assert is_dark(inputs, kind)
    assert inputs.input_ids.shape[-1] == 176


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_padded_to_its_longest(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_unstructured_kwargs_batched (and _video)"""
    inputs = call(processor, kind, 2, **NEGATIVE, padding="longest", max_length=176)
    assert is_dark(inputs, kind)
    assert len(inputs.input_ids[0]) == len(inputs.input_ids[1]) < 176


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_given_twice(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_doubly_passed_kwargs (and _video)"""
    with pytest.raises(ValueError, match="do_rescale is given twice"):
        call(processor, kind, **{GROUPS[kind]: NEGATIVE}, do_rescale=True)


@pytest.mark.parametrize("kind", KINDS)
def test_options_by_kind(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_structured_kwargs_nested (and _from_dict, _video)"""
    options = {
        "common_kwargs": {"return_tensors": "pt"},
        GROUPS[kind]: NEGATIVE,
        "text_kwargs": {"padding": "max_length", "max_length": 176},
    }
    inputs = processor(text=texts(kind), **{kind: [MEDIA[kind][0]]}, **options)
    assert is_dark(inputs, kind)
    assert inputs.input_ids.shape[-1] == 176


def test_padding_given_twice(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_overlapping_text_image_kwargs_handling"""
    with pytest.raises(ValueError, match="padding is given twice"):
        call(processor, "images", padding="max_length", text_kwargs={"padding": "do_not_pad"})


def test_sizes_of_a_call(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_qwen2_5_vl::test_kwargs_overrides_custom_image_processor_kwargs"""
    assert call(processor, "images", max_pixels=56 * 56 * 4).pixel_values.shape[0] == 612
    assert call(processor, "images").pixel_values.shape[0] == 100


@pytest.mark.parametrize("key", ["num_image_tokens", "num_image_patches"])
def test_numbers_of_tokens(processor: Qwen2_5_VLProcessor, key: str) -> None:
    """test_processing_qwen2_5_vl::test_get_num_vision_tokens"""
    found = processor._get_num_multimodal_tokens(image_sizes=[(100, 100), (300, 100), (500, 30)])
    assert key in found
    assert len(found[key]) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_tokens_are_those_of_a_call(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_get_num_multimodal_tokens_matches_processor_call"""
    sizes: dict[str, Any] = {"image_sizes": [(30, 400)], "video_sizes": [(8, 30, 400)]}
    found = processor._get_num_multimodal_tokens(**sizes)
    wanted = {"images": found.num_image_tokens, "videos": found.num_video_tokens}[kind]
    number = {"images": processor.image_token_id, "videos": processor.video_token_id}[kind]
    assert [(call(processor, kind).input_ids == number).sum()] == wanted


def test_names_of_all_inputs(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_model_input_names"""
    text = f"a {processor.image_token} b {processor.video_token}"
    inputs = processor(text=text, images=PICTURE, videos=CLIP, return_tensors="pt")
    assert set(inputs) == set(processor.model_input_names)


def test_a_call_without_anything(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_processor_with_multiple_inputs (nothing given)"""
    with pytest.raises(ValueError, match="neither text nor images nor videos"):
        processor()


@pytest.mark.parametrize("kind", KINDS)
def test_media_without_text(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """test_processing_common::test_image_processor_defaults (and video)"""
    media = MEDIA[kind][0]
    alone = processor(**{kind: media}, return_tensors="pt")
    part = getattr(processor, PARTS[kind])(media, return_tensors="pt")
    assert part.keys() <= alone.keys()
    assert all(torch.equal(alone[key], part[key]) for key in part)


@pytest.mark.parametrize("options", [{}, {"padding": "max_length", "max_length": 20}])
def test_text_without_media(processor: Qwen2_5_VLProcessor, options: dict[str, Any]) -> None:
    """test_processing_common::test_tokenizer_defaults"""
    both = processor(text=["lower newer"], return_tensors="pt", **options)
    alone = processor.tokenizer(["lower newer"], return_tensors="pt", **options)
    assert torch.equal(both.input_ids, alone.input_ids)
    assert torch.equal(both.attention_mask, alone.attention_mask)


def test_decoding_is_the_tokenizers(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_tokenizer_decode_defaults"""
    ids = [[1, 4, 5, 8, 1, 0, 8], [3, 4, 3, 1, 1, 8, 9]]
    assert processor.batch_decode(ids) == processor.tokenizer.batch_decode(ids)
    assert processor.decode(ids[0]) == processor.tokenizer.decode(ids[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [0, 2])
def test_slots_and_media_must_fit(processor: Qwen2_5_VLProcessor, kind: str, wrong: int) -> None:
    """test_processing_common::test_processor_text_has_no_visual, validate_inputs"""
    with pytest.raises(ValueError, match="slots for"):
        processor(text=texts(kind), **{kind: [MEDIA[kind][0]] * wrong or None})


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_inside_a_picture(processor: Qwen2_5_VLProcessor, side: str) -> None:
    """test_processing_qwen2_vl::test_special_mm_token_truncation: an error, as there"""
    with pytest.raises(ValueError, match="would lose tokens of a picture"):
        call(processor, "images", truncation=True, padding=True, max_length=20, padding_side=side)


def test_a_cut_behind_a_picture(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_qwen2_vl::test_special_mm_token_truncation: what fits is not touched"""
    whole = call(processor, "images", 2, padding=True)
    cut = call(processor, "images", 2, truncation=None, padding=True)
    assert torch.equal(whole.input_ids, cut.input_ids)
    text = f"{processor.image_token} and much more"
    ids = processor(text=text, images=PICTURE, truncation=True, max_length=26).input_ids
    assert ids.shape[-1] == 26


@pytest.mark.refused("the official layout, which every version reads, has chat_template.json")
def test_a_saved_template(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    """test_processing_common::test_chat_template_save_loading: chat_template.jinja is written"""
    processor.chat_template = "test template"
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.json").is_file()
    assert not (tmp_path / "chat_template.jinja").is_file()


def test_a_saved_template_loads_again(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    """test_processing_common::test_chat_template_save_loading (the template)"""
    processor.chat_template = "test template"
    processor.save_pretrained(tmp_path)
    again = Qwen2_5_VLProcessor.from_pretrained(tmp_path)
    assert again.chat_template == again.tokenizer.chat_template == "test template"


def test_variables_of_a_template(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_chat_template_jinja_kwargs"""
    template = "{{ flag }}{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "hi"}]
    text = processor.apply_chat_template(messages, chat_template=template, flag="seen ")
    assert text == "seen hi"
    ids = processor.apply_chat_template(
        messages, chat_template=template, flag="<|im_end|>", tokenize=True
    )
    assert processor.tokenizer.eos_token_id not in ids[0], "a variable is text, too"


@pytest.mark.refused("an argument of a wrong kind is a UsageError, which is a ValueError")
@pytest.mark.parametrize("name", ["image_processor", "tokenizer"])
def test_a_part_of_another_kind(processor: Qwen2_5_VLProcessor, name: str) -> None:
    """test_processing_common: a part of another kind is refused (TypeError there, UsageError
    here)"""
    with pytest.raises(UsageError, match=f"{name} is dict"):
        with_parts(processor, **{name: {}})


@pytest.mark.refused("sound is not for this model")
def test_sound_is_refused(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_apply_chat_template_audio"""
    with pytest.raises(OptionError, match="audio"):
        processor(text="a", audio=[0.0])


@pytest.mark.refused("a size that no bound allows has no right answer")
def test_a_thin_picture_within_a_small_bound(tiny_folder: Path) -> None:
    """test_processing_qwen2_5_vl: 400×30 pixels within 3136 give a grid above the bound there"""
    processor = Qwen2_5_VLProcessor.from_pretrained(tiny_folder)
    with pytest.raises(MediaSizeError, match="the smallest size is 196×28"):
        processor.image_processor(PICTURE, min_pixels=784, max_pixels=3136)


@pytest.mark.refused("an option that does not exist is an error, not a warning")
def test_an_unknown_option(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_args_overlap_kwargs: unknown options are ignored with a warning
    there"""
    with pytest.raises(OptionError, match="did you mean max_length"):
        call(processor, "images", maxlength=10)


def test_image_processors_of_another_checkpoint(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::prepare_components: without a video_processor one is derived"""
    image = Qwen2VLImageProcessor(min_pixels=784, max_pixels=7840)
    built = Qwen2_5_VLProcessor(image_processor=image, tokenizer=processor.tokenizer)
    assert dict(built.video_processor.size) == dict(image.size)

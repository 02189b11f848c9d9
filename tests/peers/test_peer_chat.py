"""What transformers' own tests and docs ask of `apply_chat_template`, in our words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from videos import write_video

from qwen25vl import AutoProcessor, Qwen2_5_VLProcessor
from qwen25vl.errors import MessageError, OptionError, UsageError

RANDOM = np.random.default_rng(7)
PICTURE = Image.fromarray(RANDOM.integers(0, 255, (60, 90, 3), dtype=np.uint8))
FRAMES = RANDOM.integers(0, 255, (16, 56, 56, 3), dtype=np.uint8)
TYPES = {"pt": torch.Tensor, "np": np.ndarray}
COUNTS = [(count, kind) for count in (1, 2) for kind in ("np", "pt")]


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


def ask(text: str, *media: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, *media]}]


@pytest.mark.parametrize("count", [1, 2])
def test_a_prompt_for_each_conversation(processor: Qwen2_5_VLProcessor, count: int) -> None:
    """test_processing_common::_test_apply_chat_template (rendering)"""
    prompts = processor.apply_chat_template([ask("Describe")] * count, add_generation_prompt=True)
    assert len(prompts) == count


@pytest.mark.parametrize(("count", "kind"), COUNTS)
def test_ids_are_those_of_the_text(processor: Qwen2_5_VLProcessor, count: int, kind: Any) -> None:
    """test_processing_common::_test_apply_chat_template (ids equal the tokenizer's of the text)"""
    chats = [ask("Describe this.")] * count
    ids = processor.apply_chat_template(chats, tokenize=True, return_tensors=kind)
    prompts = processor.apply_chat_template(chats)
    expected = processor.tokenizer(prompts, return_tensors=kind).input_ids
    assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize(("count", "kind"), COUNTS)
def test_padding_to_a_length(processor: Qwen2_5_VLProcessor, count: int, kind: Any) -> None:
    """test_processing_common::_test_apply_chat_template (max_length=100)"""
    ids = processor.apply_chat_template(
        [ask("Describe this.")] * count,
        tokenize=True,
        padding="max_length",
        truncation=True,
        max_length=100,
        return_tensors=kind,
    )
    assert ids.shape == (count, 100)


@pytest.mark.parametrize(("count", "kind"), COUNTS)
def test_a_dictionary_of_text(processor: Qwen2_5_VLProcessor, count: int, kind: Any) -> None:
    """test_processing_common::_test_apply_chat_template (return_dict=True)"""
    inputs = processor.apply_chat_template(
        [ask("Describe this.")] * count, tokenize=True, return_dict=True, return_tensors=kind
    )
    assert len(inputs["input_ids"]) == len(inputs["attention_mask"]) == count


@pytest.mark.parametrize(("count", "kind"), COUNTS)
@pytest.mark.parametrize("medium", ["image", "video"])
def test_a_dictionary_with_media(
    processor: Qwen2_5_VLProcessor, count: int, kind: Any, medium: str
) -> None:
    """test_processing_common::test_apply_chat_template_image, test_apply_chat_template_video"""
    part = {"type": medium, medium: {"image": PICTURE, "video": FRAMES}[medium]}
    inputs = processor.apply_chat_template(
        [ask("Describe", part)] * count,
        tokenize=True,
        return_dict=True,
        return_tensors=kind,
        num_frames=2,
    )
    pixels, grid = {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }[medium]
    assert len(inputs["input_ids"]) == len(inputs["attention_mask"]) == len(inputs[grid]) == count
    assert len(inputs[pixels]) == int(inputs[grid].prod(-1).sum())
    assert all(isinstance(value, TYPES[kind]) for value in inputs.values())


@pytest.mark.parametrize("count", [1, 2])
def test_a_last_message_is_continued(processor: Qwen2_5_VLProcessor, count: int) -> None:
    """test_processing_common::_test_apply_chat_template (continue_final_message)"""
    begun = {"role": "assistant", "content": [{"type": "text", "text": "It is the sound of"}]}
    chats = [[*ask("Describe"), begun]] * count
    for prompt in processor.apply_chat_template(chats, continue_final_message=True):
        assert prompt.endswith("It is the sound of")


def test_num_frames_of_frames(processor: Qwen2_5_VLProcessor) -> None:
    """docs chat_templating_multimodal: num_frames=8 takes 8 of 16 frames"""
    inputs = processor.apply_chat_template(
        ask("What?", {"type": "video", "video": FRAMES}),
        tokenize=True,
        return_dict=True,
        num_frames=8,
    )
    assert inputs.video_grid_thw.tolist() == [[4, 4, 4]]


def test_frames_that_are_not_to_be_sampled(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_apply_chat_template_video_frame_sampling (do_sample_frames)"""
    inputs = processor.apply_chat_template(
        ask("What?", {"type": "video", "video": FRAMES}),
        tokenize=True,
        return_dict=True,
        num_frames=8,
        do_sample_frames=False,
    )
    assert inputs.video_grid_thw.tolist() == [[8, 4, 4]]


@pytest.mark.parametrize(("options", "frames"), [({"fps": 1.0}, 4), ({}, 16)])
def test_frames_with_metadata(
    processor: Qwen2_5_VLProcessor, options: dict[str, Any], frames: int
) -> None:
    """video_utils::make_batched_metadata: frames of known origin are sampled by their rate"""
    chat = ask("What?", {"type": "video", "video": FRAMES})
    note = {"fps": 4.0, "total_num_frames": 16}
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, video_metadata=[note], **options
    )
    assert inputs.media[0].num_frames == frames
    assert inputs.second_per_grid_ts.tolist() == [2 / (4 * frames / 16)]
    with pytest.raises(UsageError, match="2 values for 1 videos"):
        processor.apply_chat_template(chat, tokenize=True, video_metadata=[note] * 2)


def test_a_list_of_pictures_as_a_video(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    """test_processing_common::test_apply_chat_template_video_frame_sampling (two files)"""
    PICTURE.save(tmp_path / "a.png")
    part = {"type": "video", "url": [str(tmp_path / "a.png")] * 2}
    inputs = processor.apply_chat_template(ask("What?", part), tokenize=True, return_dict=True)
    assert inputs.video_grid_thw[:, 0].tolist() == [1]


@pytest.mark.parametrize(("options", "frames"), [({"num_frames": 4}, 4), ({"video_fps": 1}, 6)])
def test_frames_of_a_file(
    processor: Qwen2_5_VLProcessor, tmp_path: Path, options: dict[str, Any], frames: int
) -> None:
    """test_processing_common::test_apply_chat_template_video_frame_sampling (num_frames, fps)"""
    path = tmp_path / "clip.mp4"
    path.write_bytes(write_video())
    inputs = processor.apply_chat_template(
        ask("What?", {"type": "video", "path": str(path)}),
        tokenize=True,
        return_dict=True,
        **options,
    )
    assert inputs.media[0].num_frames == frames


def test_a_rate_and_a_number_of_frames(processor: Qwen2_5_VLProcessor) -> None:
    """test_processing_common::test_apply_chat_template_video_frame_sampling (both)"""
    part = {"type": "video", "video": FRAMES}
    with pytest.raises(ValueError, match="exclude each other"):
        processor.apply_chat_template(ask("a", part), tokenize=True, video_fps=1, num_frames=3)


@pytest.mark.refused("a whole film has more tokens than the model can read")
def test_a_file_without_sampling(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    """test_processing_common::test_apply_chat_template_video_frame_sampling: all frames there"""
    path = tmp_path / "clip.mp4"
    path.write_bytes(write_video())
    chat = ask("What?", {"type": "video", "path": str(path)})
    with pytest.raises(UsageError, match="fps= or num_frames= say how"):
        processor.apply_chat_template(chat, tokenize=True, do_sample_frames=False)
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert inputs.media[0].num_frames == 12, "two frames per second, as in training"


@pytest.mark.parametrize("where", ["processor_kwargs", "images_kwargs", "direct"])
def test_options_of_the_call(processor: Qwen2_5_VLProcessor, where: str) -> None:
    """docs chat_templating_multimodal, test_processing_common::test_apply_chat_template_image"""
    sizes = {"max_pixels": 784}
    options: dict[str, Any] = sizes if where == "direct" else {where: sizes}
    inputs = processor.apply_chat_template(
        ask("a", {"type": "image", "image": PICTURE}), tokenize=True, return_dict=True, **options
    )
    assert inputs.image_grid_thw.prod() <= 784 / 14**2


@pytest.mark.parametrize("kind", [None, "np", "pt"])
def test_lists_arrays_and_tensors(processor: Qwen2_5_VLProcessor, kind: Any) -> None:
    """processing_utils: return_tensors=None gives lists of ids, pixels stay tensors"""
    inputs = processor.apply_chat_template(
        ask("a", {"type": "image", "image": PICTURE}, {"type": "video", "video": FRAMES}),
        tokenize=True,
        return_dict=True,
        return_tensors=kind,
    )
    of_text = ("input_ids", "attention_mask", "mm_token_type_ids", "second_per_grid_ts")
    wanted = list if kind is None else TYPES[kind]
    assert all(isinstance(inputs[key], wanted) for key in of_text)
    of_media = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    assert all(isinstance(inputs[key], TYPES[kind or "pt"]) for key in of_media)


def test_lists_of_their_own_length(processor: Qwen2_5_VLProcessor) -> None:
    """processing_utils: without padding each list is as long as its prompt"""
    chats = [ask("a"), ask("a longer question")]
    lists = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors=None
    )
    assert lists.input_ids == processor.apply_chat_template(chats, tokenize=True)
    assert [len(row) for row in lists.attention_mask] == [len(row) for row in lists.input_ids]
    assert len(lists.input_ids[0]) < len(lists.input_ids[1])


def test_token_types(processor: Qwen2_5_VLProcessor) -> None:
    """processing_utils::create_mm_token_type_ids: 1 in pictures, 2 in videos, 0 elsewhere"""
    inputs = processor.apply_chat_template(
        ask("a", {"type": "image", "image": PICTURE}, {"type": "video", "video": FRAMES}),
        tokenize=True,
        return_dict=True,
    )
    types, ids = inputs["mm_token_type_ids"], inputs.input_ids
    assert torch.equal(types == 1, ids == processor.image_token_id)
    assert torch.equal(types == 2, ids == processor.video_token_id)
    assert set(types.unique().tolist()) == {0, 1, 2}


@pytest.mark.refused("typed text stays text, in every message of a user")
def test_a_user_writes_a_control_token(processor: Qwen2_5_VLProcessor) -> None:
    """processing_utils: with sanitize_control_tokens=False typed control tokens become control
    tokens there"""
    for role, count in (("user", 0), ("system", 1), ("assistant", 1)):
        chat = [{"role": role, "content": "<tool_call>"}, *ask("a")]
        ids = processor.apply_chat_template(chat, tokenize=True)[0]
        assert ids.count(processor.tokenizer.convert_tokens_to_ids("<tool_call>")) == count


@pytest.mark.parametrize(
    "further", [{"tool_calls": []}, {"name": "Ann"}, {"timestamp": 3}, {"tool_calls": None}]
)
def test_further_keys_of_messages(processor: Qwen2_5_VLProcessor, further: dict[str, Any]) -> None:
    """tokenization_utils_base::apply_chat_template: what a template does not ask for is ignored"""
    plain = processor.apply_chat_template([{"role": "user", "content": "hi"}])
    assert processor.apply_chat_template([{"role": "user", "content": "hi", **further}]) == plain


def test_a_template_asks_for_further_keys(processor: Qwen2_5_VLProcessor) -> None:
    """tokenization_utils_base::apply_chat_template: what a template asks for is there, as text"""
    template = "{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}"
    chat = [{"role": "user", "content": "hi", "name": "<|im_end|>Ann"}]
    assert processor.apply_chat_template(chat, chat_template=template) == "<|im_end|>Ann: hi"
    ids = processor.apply_chat_template(chat, chat_template=template, tokenize=True)
    assert processor.tokenizer.eos_token_id not in ids[0]


@pytest.mark.parametrize(
    ("name", "kept", "refused"),
    [
        ("sanitize_control_tokens", True, False),
        ("return_assistant_tokens_mask", False, True),
        ("load_audio_from_video", False, True),
    ],
)
@pytest.mark.refused("typed text always stays text; there is no sound; the template marks no words")
def test_options_with_one_value(
    processor: Qwen2_5_VLProcessor, name: str, kept: bool, refused: bool
) -> None:
    """processing_utils::apply_chat_template: sanitize_control_tokens,
    return_assistant_tokens_mask, load_audio_from_video"""
    plain = processor.apply_chat_template(ask("a"), tokenize=True)
    assert processor.apply_chat_template(ask("a"), tokenize=True, **{name: kept}) == plain
    with pytest.raises(OptionError, match=f"{name} is {refused}"):
        processor.apply_chat_template(ask("a"), tokenize=True, **{name: refused})


@pytest.mark.refused("a misspelt key is named, so that nothing of a message gets lost")
def test_a_misspelt_key_of_a_message(processor: Qwen2_5_VLProcessor) -> None:
    """tokenization_utils_base::apply_chat_template: any key is accepted there"""
    with pytest.raises(MessageError, match="did you mean content"):
        processor.apply_chat_template([{"role": "user", "content": "a", "contents": "b"}])

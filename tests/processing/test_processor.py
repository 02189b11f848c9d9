"""From messages and media to ModelInputs: slots, sizes and who decides them, padding, files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen25vl import AutoProcessor, Qwen2_5_VLProcessor
from qwen25vl.errors import MessageError, OptionError, UsageError
from qwen25vl.processing.image import ImageSettings

PICTURE = Image.fromarray(np.arange(200 * 300 * 3, dtype=np.uint8).reshape(200, 300, 3))
CLIP = [Image.new("RGB", (112, 84), (40 * i, 0, 0)) for i in range(5)]
SLOT, CLIP_SLOT = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
)


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


def ask(processor: Qwen2_5_VLProcessor, *content: dict[str, Any], **options: Any) -> Any:
    messages = [{"role": "user", "content": list(content)}]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


def test_media_are_reported_in_order(processor: Qwen2_5_VLProcessor) -> None:
    """Boxes are off where nobody knows the size the model saw."""
    inputs = ask(
        processor,
        {"type": "image", "image": PICTURE},
        {"type": "video", "video": CLIP, "sample_fps": 4.0},
    )
    picture, clip = inputs.media
    assert (picture.kind, picture.original_size, picture.model_size) == (
        "image",
        (200, 300),
        (196, 308),
    )
    assert picture.num_tokens == 7 * 11 == int((inputs.input_ids == 151655).sum())
    assert (clip.kind, clip.num_frames, clip.seconds_per_grid) == ("video", 5, 0.5)
    assert inputs.video_grid_thw[0, 0] == 3, "an odd clip repeats its last frame"
    assert inputs.second_per_grid_ts.tolist() == [0.5]
    assert inputs.pixel_values_videos.shape == (int(inputs.video_grid_thw.prod()), 1176)
    assert clip.num_tokens == int((inputs.input_ids == 151656).sum())


def test_the_nearest_word_decides_the_size(tiny_folder: Path) -> None:
    """min_pixels and max_pixels ignored: five trackers have that."""
    processor = AutoProcessor.from_pretrained(tiny_folder, max_pixels=100 * 784)
    item = {"type": "image", "image": PICTURE}
    tokens = [
        ask(AutoProcessor.from_pretrained(tiny_folder), item).media[0].num_tokens,
        ask(processor, item, max_pixels=200 * 784).media[0].num_tokens,
        ask(processor, item | {"max_pixels": 20 * 784}, max_pixels=10 * 784).media[0].num_tokens,
        ask(processor, item | {"resized_height": 56, "resized_width": 84}, max_pixels=10 * 784)
        .media[0]
        .num_tokens,
        ask(processor, item, min_pixels=90 * 784).media[0].num_tokens,
    ]
    assert tokens[0] == tokens[1] == 77
    assert 10 < tokens[2] <= 20
    assert tokens[3] == 6
    assert 90 <= tokens[4] <= 100
    by_size = AutoProcessor.from_pretrained(
        tiny_folder, size={"shortest_edge": 784, "longest_edge": 20 * 784}
    )
    assert ask(by_size, item).media[0].num_tokens <= 20
    with pytest.raises(OptionError, match="size has width"):
        AutoProcessor.from_pretrained(tiny_folder, size={"width": 3})
    assert (
        ask(processor, item | {"max_pixels": 20 * 784}, min_pixels=50 * 784).media[0].num_tokens
        <= 20
    )
    with pytest.raises(UsageError, match="above max_pixels"):
        ask(processor, item, min_pixels=9000, max_pixels=8000)


def test_frame_rate_of_call_and_item(processor: Qwen2_5_VLProcessor) -> None:
    """A second clip's rate moves only its own times; a call's rate is for all that say nothing."""
    clip, other = {"type": "video", "video": CLIP}, {"type": "video", "video": CLIP, "fps": 8.0}
    assert ask(processor, clip, other).second_per_grid_ts.tolist() == [1.0, 0.25]
    assert ask(processor, clip, other, video_fps=1).second_per_grid_ts.tolist() == [2.0, 0.25]
    for fps in (0, -1, float("nan")):
        for content in (clip, {"type": "text", "text": "a rate for no video at all"}):
            with pytest.raises(UsageError, match="fps"):
                ask(processor, content, video_fps=fps)


def test_frames_chosen_elsewhere(processor: Qwen2_5_VLProcessor) -> None:
    """A rate that was lost beside its frames became 24 in silence; contradictions were ignored."""
    frames = torch.zeros(4, 3, 56, 56)
    seen = {
        "fps": 30.0,
        "frames_indices": [0, 10, 20, 30],
        "total_num_frames": 40,
        "video_backend": "torchcodec",
    }
    for metadata in (seen, [seen]):
        inputs = processor(
            text=CLIP_SLOT, videos=[frames], video_metadata=metadata, do_sample_frames=False
        )
        assert inputs.second_per_grid_ts.tolist() == pytest.approx([2 / 3])
    for videos in ([(frames, seen)], (frames, seen)):
        assert processor(
            text=CLIP_SLOT, videos=videos
        ).second_per_grid_ts.tolist() == pytest.approx([2 / 3])
    assert (
        processor(text=CLIP_SLOT * 2, videos=torch.stack([frames, frames])).video_grid_thw.tolist()
        == [[2, 4, 4]] * 2
    )
    with pytest.raises(UsageError, match="fps is '2'"):
        processor(text=CLIP_SLOT, videos=[frames], fps="2")  # type: ignore[arg-type]
    assert (
        processor(
            text=CLIP_SLOT, videos=[frames], video_metadata=[seen], fps=8.0
        ).second_per_grid_ts
        == 0.25
    )
    assert processor(text=CLIP_SLOT, videos=CLIP[:4]).video_grid_thw[0, 0] == 2, (
        "a flat list of pictures is one video"
    )
    for options, message in (
        ({"video_metadata": [seen, seen]}, "video_metadata has 2 values for 1 videos"),
        ({"video_metadata": [{"frames_indices": [0]}]}, "without fps"),
        ({"do_sample_frames": True, "fps": 1.0}, "needs to know their own rate"),
        ({"videos": ["a.mp4"], "do_sample_frames": False}, "needs frames"),
        ({"videos": ["a.mp4"], "video_metadata": [seen]}, "not a video file"),
        ({"text": [1]}, "expected a rendered prompt"),
        ({"text": None, "videos": None}, "neither text nor images nor videos"),
    ):
        with pytest.raises(UsageError, match=message):
            processor(**{"text": CLIP_SLOT, "videos": [frames]} | options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(processor: Qwen2_5_VLProcessor, side: Any) -> None:
    """Left by default, as generation wants it; the rows are what they are alone."""
    conversations = [
        [{"role": "user", "content": "Hi"}],
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}],
            }
        ],
    ]
    inputs = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, padding_side=side
    )
    for row, messages in enumerate(conversations):
        (alone,) = processor.apply_chat_template(messages, tokenize=True)
        assert inputs.input_ids[row][inputs.attention_mask[row].bool()].tolist() == alone
    assert inputs.attention_mask[0, 0 if side == "left" else -1] == 0
    assert [item.conversation for item in inputs.media] == [1]
    with pytest.raises(UsageError, match="padding=True"):
        processor.apply_chat_template(
            conversations, tokenize=True, padding=False, return_tensors="pt"
        )


def test_text_with_media_beside_it(processor: Qwen2_5_VLProcessor) -> None:
    """The official README's way; more media than slots or fewer is an error with counts."""
    inputs = processor(
        text=[f"{SLOT}{CLIP_SLOT}", f"x{SLOT}"], images=[PICTURE, PICTURE], videos=[CLIP], fps=[4.0]
    )
    assert [(item.kind, item.conversation) for item in inputs.media] == [
        ("image", 0),
        ("video", 0),
        ("image", 1),
    ]
    assert inputs.second_per_grid_ts.tolist() == [0.5]
    assert processor(text=SLOT, images=PICTURE).image_grid_thw.tolist() == [[1, 14, 22]]
    tensor = torch.stack(
        [torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() for frame in CLIP]
    )
    given = processor(text=CLIP_SLOT, videos=[tensor], fps=2.0)
    assert given.video_grid_thw.tolist() == [[3, 6, 8]], (
        "frames that another resizer made whole keep their size"
    )
    for images, message in (
        ([PICTURE], "0 slots for pictures in the text, but 1"),
        (None, "1 slots for pictures in the text, but 0"),
    ):
        with pytest.raises(MessageError, match=message):
            processor(text="x" if images else SLOT, images=images)
    with pytest.raises(UsageError, match="2 values for 1 videos"):
        processor(text=CLIP_SLOT, videos=[CLIP], fps=[1.0, 2.0])
    with pytest.raises(MessageError, match="has no content"):
        ask(processor, {"type": "image"})


def test_inputs_are_a_mapping_with_attributes(processor: Qwen2_5_VLProcessor) -> None:
    """`generate(**inputs)`, `.to(device)` and `.input_ids` all work on one object."""
    inputs = ask(processor, {"type": "image", "image": PICTURE})
    of_text = ["input_ids", "attention_mask", "mm_token_type_ids"]
    assert list(inputs) == [*of_text, "pixel_values", "image_grid_thw"]
    assert "second_per_grid_ts" not in inputs
    half = inputs.to(device="cpu", dtype=torch.bfloat16)
    assert half.pixel_values.dtype == torch.bfloat16
    assert half.input_ids.dtype == torch.int64
    assert half.media == inputs.media
    assert inputs.to(torch.bfloat16)["pixel_values"].dtype == torch.bfloat16
    with pytest.raises(KeyError):
        inputs["media"]


def test_decode_takes_several_sequences_too(processor: Qwen2_5_VLProcessor) -> None:
    """What `generate` returns is a batch; int() of a list told nobody."""
    ids = torch.tensor([processor.tokenizer.encode("Hi there")])
    assert processor.batch_decode(ids) == [processor.decode(ids[0])] == ["Hi there"]
    for batch in (ids, ids.tolist(), list(ids)):
        assert processor.decode(batch) == ["Hi there"]


def test_wrong_options(processor: Qwen2_5_VLProcessor) -> None:
    """Nothing is ever ignored."""
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(UsageError, match="return_tensors"):
        processor.apply_chat_template(messages, tokenize=True, return_tensors="tf")
    with pytest.raises(UsageError, match="padding_side"):
        processor.apply_chat_template(messages, tokenize=True, padding_side="top")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="padding is"):
        processor.apply_chat_template(messages, tokenize=True, padding="max_length")
    with pytest.raises(UsageError, match="the same option"):
        processor.apply_chat_template(messages, tokenize=True, video_fps=1, fps=2)
    with pytest.raises(TypeError):
        processor.apply_chat_template(messages, truncate=True)  # type: ignore[call-arg]


def test_saving_and_newer_files(tiny_folder: Path, tmp_path: Path) -> None:
    """What is saved loads again here; newer saves with other file names load too."""
    processor = AutoProcessor.from_pretrained(tiny_folder, max_pixels=50 * 784)
    processor.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert again.image_processor == processor.image_processor
    assert again.chat_template == processor.chat_template
    assert again.video_options == processor.video_options

    newer = tmp_path / "newer"
    shutil.copytree(tmp_path / "saved", newer)
    (newer / "chat_template.json").unlink()
    (newer / "preprocessor_config.json").unlink()
    (newer / "chat_template.jinja").write_text(processor.chat_template)
    size = {"shortest_edge": 784, "longest_edge": 10 * 784}
    config = {"image_processor": {"size": size}, "video_processor": {"size": size, "fps": 1.0}}
    (newer / "processor_config.json").write_text(json.dumps(config))
    loaded = AutoProcessor.from_pretrained(newer)
    assert loaded.image_processor.max_pixels == 10 * 784
    assert (loaded.video_options.fps, loaded.video_options.max_pixels) == (1.0, 10 * 784)
    AutoProcessor.from_pretrained(newer, max_pixels=7 * 784).save_pretrained(tmp_path / "again")
    again = AutoProcessor.from_pretrained(tmp_path / "again")
    assert again.image_processor.max_pixels == again.video_options.max_pixels == 7 * 784, (
        "went back to the file's"
    )
    assert again.chat_template == processor.chat_template
    (newer / "chat_template.jinja").unlink()
    with pytest.warns(UserWarning, match="no chat template; that of the released models is used"):
        assert AutoProcessor.from_pretrained(newer).chat_template == processor.chat_template


def test_explicit_sizes_count_or_are_refused(tiny_folder: Path) -> None:
    """min_pixels=0 was taken for "not given", and `size` or the checkpoint decided."""
    size = {"shortest_edge": 4 * 784, "longest_edge": 50 * 784}
    settings = AutoProcessor.from_pretrained(tiny_folder, size=size).image_processor
    assert (settings.min_pixels, settings.max_pixels) == (4 * 784, 50 * 784)
    settings = AutoProcessor.from_pretrained(
        tiny_folder, size=size, min_pixels=1, max_pixels=784
    ).image_processor
    assert (settings.min_pixels, settings.max_pixels) == (1, 784)
    for wrong in ({"min_pixels": 0}, {"max_pixels": 0}, {"min_pixels": -1}, {"min_pixels": False}):
        for given in (wrong, wrong | {"size": size}, {"size": size | dict.fromkeys(
            ["shortest_edge" if "min_pixels" in wrong else "longest_edge"],
            next(iter(wrong.values()))
        )}):  # fmt: skip
            with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
                AutoProcessor.from_pretrained(tiny_folder, **given)
    processor = AutoProcessor.from_pretrained(tiny_folder)
    with pytest.raises(UsageError, match="min_pixels is 0"):
        ask(processor, {"type": "image", "image": PICTURE, "min_pixels": 0})
    with pytest.raises(UsageError, match="min_pixels is 0"):
        ask(processor, {"type": "image", "image": PICTURE}, min_pixels=0)


def test_sizes_of_0_in_a_checkpoint_are_refused() -> None:
    """A size of 0 in preprocessor_config.json stood for the default without a word."""
    for wrong in ({"size": {"shortest_edge": 0}}, {"size": {"min_pixels": 0}}, {"min_pixels": 0}):
        with pytest.raises(UsageError, match="min_pixels is 0"):
            ImageSettings.from_dict(wrong)

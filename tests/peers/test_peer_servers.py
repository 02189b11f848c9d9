"""What vLLM's tests and Qwen's own pages ask of the processor, in our words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen25vl import AutoProcessor, Qwen2_5_VLProcessor

SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
CLIP_SLOT = "<|vision_start|><|video_pad|><|vision_end|>"
PICTURE = Image.new("RGB", (1300, 876), "red")
BOUNDS: list[dict[str, Any]] = [
    {"min_pixels": 64**2, "max_pixels": 512**2},
    {"size": {"shortest_edge": 64**2, "longest_edge": 512**2}},
]


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.mark.parametrize(("options", "tokens"), [({}, 1426), (BOUNDS[0], 330), (BOUNDS[1], 330)])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("at_loading", [True, False])
def test_bounds(
    tiny_folder: Path, options: dict[str, Any], tokens: int, count: int, at_loading: bool
) -> None:
    """vllm test_qwen2_vl.py::test_processor_override"""
    processor = AutoProcessor.from_pretrained(tiny_folder, **(options if at_loading else {}))
    inputs = processor(
        text=SLOT * count,
        images=[PICTURE] * count,
        return_tensors="pt",
        **({} if at_loading else options),
    )
    number = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert (inputs.input_ids == number).sum() == tokens * count
    assert inputs.pixel_values.shape == (4 * tokens * count, 1176)


@pytest.mark.parametrize("most", [1280, 1283])
@pytest.mark.parametrize("name", ["pixels", "size"])
def test_no_picture_has_more_tokens_than_the_largest(
    processor: Qwen2_5_VLProcessor, most: int, name: str
) -> None:
    """vllm test_qwen2_vl.py::test_get_image_size_with_most_features"""
    low, high = 28 * 28, most * 28 * 28
    options: dict[str, Any] = {"min_pixels": low, "max_pixels": high}
    if name == "size":
        options = {"size": {"shortest_edge": low, "longest_edge": high}}
    for size in ((3000, 2000), (1300, 876), (400, 30)):
        inputs = processor(text=SLOT, images=Image.new("RGB", size), **options)
        assert int(inputs.image_grid_thw.prod()) // 4 <= most


@pytest.mark.parametrize("fps", [1.0, 30.0])
def test_seconds_per_grid(processor: Qwen2_5_VLProcessor, fps: float) -> None:
    """vllm test_qwen2_vl.py::test_qwen2_5_vl_video_fps_to_second_per_grid_ts"""
    frames = np.zeros((32, 56, 56, 3), np.uint8)
    note = {
        "fps": fps,
        "duration": 32 / fps,
        "total_num_frames": 32,
        "frames_indices": list(range(32)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    inputs = processor(text=CLIP_SLOT, videos=[(frames, note)])
    wanted = processor.video_processor.temporal_patch_size / fps
    assert inputs.second_per_grid_ts.tolist() == pytest.approx([wanted])


@pytest.mark.parametrize("count", [1, 3])
def test_text_and_pictures_of_the_readme(processor: Qwen2_5_VLProcessor, count: int) -> None:
    """Qwen2.5-VL README: text=, images=, videos=None, padding=True, return_tensors="pt" """
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    texts = [processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)]
    inputs = processor(
        text=texts * count,
        images=[PICTURE.resize((112, 84))] * count,
        videos=None,
        padding=True,
        return_tensors="pt",
    ).to("cpu")
    assert len(inputs.input_ids) == len(inputs.image_grid_thw) == count


@pytest.mark.parametrize("kind", ["list", "tensor"])
def test_videos_of_the_readme(processor: Qwen2_5_VLProcessor, kind: str) -> None:
    """Qwen2.5-VL README, cookbook video_understanding: **video_kwargs of process_vision_info"""
    frames = [Image.new("RGB", (112, 84))] * 4
    tensor = torch.zeros(4, 3, 84, 112)
    video: Any = frames if kind == "list" else tensor
    video_kwargs: dict[str, Any] = {"do_sample_frames": False, "fps": [4.0]}
    inputs = processor(
        text=[CLIP_SLOT], images=None, videos=[video], padding=True, return_tensors="pt",
        **video_kwargs,
    )  # fmt: skip
    assert inputs.video_grid_thw.tolist() == [[2, 6, 8]]
    assert inputs.second_per_grid_ts.tolist() == [0.5]


def test_the_prompt_of_the_agent_cookbook(processor: Qwen2_5_VLProcessor) -> None:
    """cookbook mobile_agent: <tool_call> in the system's text, rendered or tokenised at once"""
    call = '<tool_call>\n{"name": "f"}\n</tool_call>'
    chat = [
        {"role": "system", "content": f"Answer in {call}."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": call},
        {"role": "user", "content": "ok"},
    ]
    direct = processor.apply_chat_template(chat, tokenize=True)
    rendered = processor(text=processor.apply_chat_template(chat), return_tensors=None)
    assert direct == rendered.input_ids
    number = processor.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert direct[0].count(number) == 2


def test_a_left_padded_batch_of_the_readme(processor: Qwen2_5_VLProcessor) -> None:
    """Qwen2.5-VL README, batch inference: processor.tokenizer.padding_side = "left" """
    processor.tokenizer.padding_side = "left"
    inputs = processor(text=["a", "b c d"], padding=True, return_tensors="pt")
    assert inputs.attention_mask[:, 0].tolist() == [0, 1]


def test_pictures_by_position(processor: Qwen2_5_VLProcessor) -> None:
    """docs processors: processor(images, text, videos) by position"""
    small = PICTURE.resize((56, 56))
    by_name = processor(text=SLOT, images=small)
    assert torch.equal(processor(small, SLOT).pixel_values, by_name.pixel_values)
    clip = np.zeros((4, 56, 56, 3), np.uint8)
    assert processor(None, CLIP_SLOT, [clip]).video_grid_thw.tolist() == [[2, 4, 4]]

"""What transformers' own tests ask of the processor of videos, in our words.

The peer is tests/models/qwen2_vl/test_video_processing_qwen2_vl.py with
tests/test_video_processing_common.py of transformers; each docstring names the test there.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen25vl import AutoVideoProcessor, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.processing.image import smart_resize

SETTINGS: dict[str, Any] = {
    "do_resize": True,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
    "temporal_patch_size": 2,
    "patch_size": 14,
    "min_pixels": 20 * 20,
    "max_pixels": 100 * 100,
    "merge_size": 2,
}
RANDOM = np.random.default_rng(4)
SIZES = [(30, 70), (41, 52), (79, 33)]
ARRAYS = [RANDOM.integers(0, 256, (8, *size, 3), dtype=np.uint8) for size in SIZES]
FORMS: dict[str, list[Any]] = {
    "pil": [[Image.fromarray(frame) for frame in array] for array in ARRAYS],
    "numpy": ARRAYS,
    "torch": [torch.from_numpy(array).permute(0, 3, 1, 2) for array in ARRAYS],
    "nested": [list(array) for array in ARRAYS],
}
HUGE = {"longest_edge": 768 * 28 * 28 * 100, "shortest_edge": 400}
NOTE = {"duration": 2.0, "total_num_frames": 8, "fps": 4}


@dataclass
class Note:
    """As transformers' VideoMetadata."""

    total_num_frames: int = 8
    fps: float = 4
    duration: float = 2.0


@pytest.fixture
def processor() -> Qwen2VLVideoProcessor:
    return Qwen2VLVideoProcessor(**SETTINGS)


def expected_rows(sizes: list[tuple[int, int]], num_frames: int = 8) -> int:
    rows = 0
    for height, width in sizes:
        size = smart_resize(height, width, 28, SETTINGS["min_pixels"], SETTINGS["max_pixels"])
        rows += num_frames // 2 * (size[0] // 14) * (size[1] // 14)
    return rows


def with_size(size: dict[str, int], **options: Any) -> Qwen2VLVideoProcessor:
    settings = {key: value for key, value in SETTINGS.items() if "_pixels" not in key}
    return Qwen2VLVideoProcessor(**settings, size=size, **options)


@pytest.mark.parametrize(
    "name", ["do_resize", "size", "do_normalize", "image_mean", "image_std", "do_convert_rgb"]
)
def test_attributes(processor: Qwen2VLVideoProcessor, name: str) -> None:
    """test_video_processor_properties"""
    assert getattr(processor, name) is not None


def test_settings_of_a_dictionary() -> None:
    """test_video_processor_from_dict_with_kwargs (as it is)"""
    made = Qwen2VLVideoProcessor.from_dict(SETTINGS)
    assert made.size == {"shortest_edge": 400, "longest_edge": 10000}


def test_a_size_beside_the_settings() -> None:
    """test_video_processor_from_dict_with_kwargs (size where the settings have no bounds)"""
    settings = {key: value for key, value in SETTINGS.items() if "_pixels" not in key}
    size = {"shortest_edge": 1000, "longest_edge": 2000}
    assert Qwen2VLVideoProcessor.from_dict(settings, size=size).size == size


@pytest.mark.refused("what is said last counts: a change goes before the dictionary's bounds")
def test_a_size_against_the_settings() -> None:
    """test_video_processor_from_dict_with_kwargs: the dictionary's min_pixels win there"""
    size = {"shortest_edge": 1000, "longest_edge": 2000}
    assert Qwen2VLVideoProcessor.from_dict(SETTINGS, size=size).size == size


@pytest.mark.refused("a bound below one visual token can never be kept")
def test_a_bound_below_one_token() -> None:
    """test_video_processor_from_dict_with_kwargs: longest_edge=200 is accepted there"""
    with pytest.raises(UsageError, match="one visual token alone takes 784"):
        Qwen2VLVideoProcessor(size={"shortest_edge": 100, "longest_edge": 200})


@pytest.mark.parametrize("key", SETTINGS)
def test_json_of_the_settings(processor: Qwen2VLVideoProcessor, key: str) -> None:
    """test_to_json_string, test_video_processor_to_json_string"""
    assert json.loads(processor.to_json_string())[key] == SETTINGS[key]


def test_a_json_file_loads_again(processor: Qwen2VLVideoProcessor, tmp_path: Path) -> None:
    """test_video_processor_to_json_file"""
    processor.to_json_file(tmp_path / "settings.json")
    again = Qwen2VLVideoProcessor.from_json_file(tmp_path / "settings.json")
    assert again.to_dict() == processor.to_dict()


def test_saved_settings_load_again(processor: Qwen2VLVideoProcessor, tmp_path: Path) -> None:
    """test_video_processor_from_and_save_pretrained"""
    (saved,) = processor.save_pretrained(tmp_path)
    assert isinstance(json.loads(Path(saved).read_text(encoding="utf-8")), dict)
    assert Qwen2VLVideoProcessor.from_json_file(saved).to_dict() == processor.to_dict()


def test_a_checkpoint_says_how(tiny_folder: Path) -> None:
    """test_video_processor_save_load_with_autovideoprocessor"""
    made = AutoVideoProcessor.from_pretrained(tiny_folder, use_fast=True)
    assert made == Qwen2_5_VLProcessor.from_pretrained(tiny_folder).video_processor


def test_no_settings_at_all() -> None:
    """test_init_without_params"""
    size = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
    assert Qwen2VLVideoProcessor().size == size


@pytest.mark.parametrize("name", ["do_resize", "do_rescale", "do_normalize"])
def test_none_is_kept(name: str, tmp_path: Path) -> None:
    """test_video_processor_explicit_none_preserved"""
    made = Qwen2VLVideoProcessor(**{**SETTINGS, name: None})
    assert made.to_dict()[name] is None
    (saved,) = made.save_pretrained(tmp_path)
    assert getattr(Qwen2VLVideoProcessor.from_json_file(saved), name) is None


@pytest.mark.parametrize("form", FORMS)
def test_one_video(processor: Qwen2VLVideoProcessor, form: str) -> None:
    """test_call_pil, test_call_numpy, test_call_pytorch, test_nested_input (not batched)"""
    found = processor(FORMS[form][0], return_tensors="pt")
    assert found.pixel_values_videos.shape == (expected_rows(SIZES[:1]), 1176)


@pytest.mark.parametrize("form", FORMS)
def test_several_videos(processor: Qwen2VLVideoProcessor, form: str) -> None:
    """test_call_pil, test_call_numpy, test_call_pytorch, test_nested_input (batched)"""
    found = processor(FORMS[form], return_tensors="pt")
    assert found.pixel_values_videos.shape == (expected_rows(SIZES), 1176)
    assert len(found.video_grid_thw) == len(SIZES)


def test_forms_are_equal(processor: Qwen2VLVideoProcessor) -> None:
    """test_nested_input"""
    first, *others = (processor(FORMS[form]).pixel_values_videos for form in FORMS)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("videos", [ARRAYS[0], ARRAYS], ids=["one", "several"])
def test_no_sampling(processor: Qwen2VLVideoProcessor, videos: Any) -> None:
    """test_call_sample_frames (do_sample_frames=False: num_frames has no effect)"""
    processor.do_sample_frames = False
    sizes = SIZES if videos is ARRAYS else SIZES[:1]
    assert len(processor(videos, num_frames=3).pixel_values_videos) == expected_rows(sizes)


@pytest.mark.parametrize("videos", [ARRAYS[0], ARRAYS], ids=["one", "several"])
def test_sampling_by_number(processor: Qwen2VLVideoProcessor, videos: Any) -> None:
    """test_call_sample_frames (do_sample_frames=True, num_frames=4)"""
    processor.do_sample_frames = True
    sizes = SIZES if videos is ARRAYS else SIZES[:1]
    found = processor(videos, num_frames=4)
    assert len(found.pixel_values_videos) == expected_rows(sizes, 4)
    assert [list(item.frame_numbers) for item in found.media] == [[0, 2, 4, 6]] * len(sizes)


@pytest.mark.parametrize("note", [NOTE, Note()], ids=["mapping", "object"])
@pytest.mark.parametrize("videos", [ARRAYS[0], ARRAYS], ids=["one", "several"])
def test_sampling_by_rate(processor: Qwen2VLVideoProcessor, videos: Any, note: Any) -> None:
    """test_call_sample_frames (fps=3 of 4 frames per second)"""
    processor.do_sample_frames = True
    sizes = SIZES if videos is ARRAYS else SIZES[:1]
    found = processor(videos, fps=3, video_metadata=[[note]] * len(sizes))
    assert len(found.pixel_values_videos) == expected_rows(sizes, 6)


def test_sampling_by_rate_without_knowing_it(processor: Qwen2VLVideoProcessor) -> None:
    """test_call_sample_frames (ValueError without metadata)"""
    with pytest.raises(ValueError, match="give video_metadata="):
        processor(ARRAYS[0], fps=3, do_sample_frames=True)


def test_more_frames_than_there_are(processor: Qwen2VLVideoProcessor) -> None:
    """test_call_sample_frames (ValueError for 10 of 8 frames)"""
    with pytest.raises(ValueError, match="10 is more than the 8 frames"):
        processor(ARRAYS[0], num_frames=10, do_sample_frames=True)


def test_a_temporal_patch_of_three() -> None:
    """test_num_frames_equal_temporal_patch_size_plus_two"""
    size = {"longest_edge": 5 * 28 * 28, "shortest_edge": 28 * 28}
    settings = {key: value for key, value in SETTINGS.items() if "_pixels" not in key}
    settings |= {"temporal_patch_size": 3, "size": size, "do_sample_frames": False}
    frames = list(RANDOM.integers(0, 256, (5, 28, 28, 3), dtype=np.uint8))
    found = Qwen2VLVideoProcessor(**settings)(frames, return_tensors="pt")
    assert found.pixel_values_videos.shape == (8, 3 * 3 * 14 * 14)
    assert found.video_grid_thw.tolist() == [[2, 2, 2]]


def test_older_names_of_the_bounds(processor: Qwen2VLVideoProcessor, tmp_path: Path) -> None:
    """test_bc_min_max_pixels"""
    processor.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    bounds = {"max_pixels": 56 * 56, "min_pixels": 28 * 28}
    again = Qwen2VLVideoProcessor.from_pretrained(tmp_path, **bounds)
    found = again([np.zeros((8, 80, 80, 3), np.uint8)] * 5, return_tensors="pt")
    assert found.pixel_values_videos.shape == (320, 1176)


def capped_rows(num_frames: int, side: int, size: dict[str, int], tokens: int) -> int:
    budget = int(tokens * 28 * 28 * 0.9)
    most = max(
        min(size["longest_edge"], budget * 2 // num_frames), int(size["shortest_edge"] * 1.05)
    )
    height, width = smart_resize(side, side, 28, size["shortest_edge"], most)
    return num_frames // 2 * (height // 14) * (width // 14)


FRAMES = RANDOM.integers(0, 256, (8, 256, 256, 3), dtype=np.uint8)


@pytest.mark.parametrize("shortest", [400, 40000])
def test_a_cap_on_dense_videos(shortest: int) -> None:
    """test_cap_pixels_per_frame_bounds_dense_videos, …_floors_at_min_pixels"""
    size = {**HUGE, "shortest_edge": shortest}
    capped = with_size(size, cap_pixels_per_frame=True, max_video_tokens=128)(FRAMES)
    rows = len(capped.pixel_values_videos)
    assert rows == capped_rows(8, 256, size, 128)
    assert rows < len(with_size(size)(FRAMES).pixel_values_videos)


def test_a_cap_that_does_not_bind() -> None:
    """test_cap_pixels_per_frame_noop_when_not_binding"""
    capped = with_size(HUGE, cap_pixels_per_frame=True)(FRAMES)
    assert capped.video_grid_thw.tolist() == with_size(HUGE)(FRAMES).video_grid_thw.tolist()


def test_a_cap_of_one_call() -> None:
    """test_cap_pixels_per_frame_call_time_override"""
    processor = with_size(HUGE, max_video_tokens=128)
    capped = processor(FRAMES, cap_pixels_per_frame=True)
    assert len(capped.pixel_values_videos) == capped_rows(8, 256, HUGE, 128)
    assert len(capped.pixel_values_videos) < len(processor(FRAMES).pixel_values_videos)


@pytest.mark.refused("the default is not about to change, so there is no warning of it")
def test_a_warning_of_the_missing_cap(recwarn: pytest.WarningsRecorder) -> None:
    """test_cap_pixels_per_frame_unset_warns_and_false_is_silent"""
    with_size(HUGE)(FRAMES)
    with_size(HUGE, cap_pixels_per_frame=False)(FRAMES)
    assert not recwarn.list


@pytest.mark.refused("a clip that alone would fill the model's context is made smaller")
def test_a_clip_of_the_whole_context() -> None:
    """video_processing_qwen2_vl: without cap_pixels_per_frame nothing bounds a clip there"""
    processor = with_size(HUGE)
    bounded = processor.get_num_of_video_patches(768, 1080, 1920, {})
    assert bounded // 4 <= 0.9 * 128000
    free = processor.get_num_of_video_patches(768, 1080, 1920, {"cap_pixels_per_frame": False})
    assert free // 4 > 128000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting(processor: Qwen2VLVideoProcessor, dtype: torch.dtype) -> None:
    """test_cast_dtype_device"""
    found = processor(ARRAYS[0])
    found["input_ids"] = torch.tensor([[1, 2]])
    half = found.to("cpu", dtype)
    assert half.pixel_values_videos.dtype == dtype
    assert half.input_ids.dtype == torch.int64


def test_instances_share_nothing() -> None:
    """test_override_instance_attributes_does_not_affect_other_instances"""
    first, second = Qwen2VLVideoProcessor(), Qwen2VLVideoProcessor()
    size, mean = deepcopy(second.size), list(second.image_mean)
    first.size["longest_edge"] = -1
    first.image_mean[0] = -1
    assert second.size == size
    assert list(second.image_mean) == mean


@pytest.mark.refused("an option that does not exist is an error, not a warning")
def test_an_unknown_option(processor: Qwen2VLVideoProcessor) -> None:
    """test_video_processor_preprocess_arguments"""
    with pytest.raises(OptionError, match="extra_argument"):
        processor(ARRAYS[0], extra_argument=True)  # type: ignore[call-arg]


def test_where_frames_come_from(processor: Qwen2VLVideoProcessor) -> None:
    """video_utils::VideoMetadata, with return_metadata=True"""
    found = processor(
        ARRAYS[0], num_frames=4, do_sample_frames=True, video_metadata=NOTE, return_metadata=True
    )
    (note,) = found["video_metadata"]
    assert (note.total_num_frames, note.fps, note.duration) == (8, 4, 2)
    assert (note.width, note.height, note.frames_indices) == (70, 30, [0, 2, 4, 6])
    (item,) = found.media
    assert (item.num_source_frames, item.source_fps) == (8, 4)


@pytest.mark.parametrize("frames", [4, 5])
def test_numbers_of_patches(processor: Qwen2VLVideoProcessor, frames: int) -> None:
    """video_processing_qwen2_vl::get_num_of_video_patches against a call"""
    found = processor(ARRAYS[0][:frames])
    number = processor.get_num_of_video_patches(frames, *SIZES[0], {})
    assert number == len(found.pixel_values_videos)


def test_frames_keep_their_size(processor: Qwen2VLVideoProcessor) -> None:
    """video_processing_qwen2_vl::_preprocess with do_resize=False"""
    clip = np.zeros((2, 112, 140, 3), np.uint8)
    assert processor(clip, do_resize=False).video_grid_thw.tolist() == [[1, 8, 10]]


@pytest.mark.parametrize(
    ("size", "grid"), [((84, 112), [2, 6, 8]), ((224, 224), [2, 16, 16]), ((80, 80), [2, 6, 6])]
)
@pytest.mark.parametrize("form", ["pil", "arrays", "array"])
def test_frames_of_a_prompt(
    tiny_folder: Path, size: tuple[int, int], grid: list[int], form: str
) -> None:
    """test_modeling_qwen2_5_vl::test_small_model_integration_test_with_video: frames that came from
    qwen-vl-utils as a list were enlarged to 128 tokens each"""
    processor = Qwen2_5_VLProcessor.from_pretrained(tiny_folder)
    array = np.zeros((4, *size, 3), np.uint8)
    pictures = [Image.fromarray(frame) for frame in array]
    video: Any = {"pil": pictures, "arrays": list(array), "array": array}[form]
    inputs = processor(text="<|video_pad|>", videos=[video], fps=2.0)
    assert inputs.video_grid_thw.tolist() == [grid]


def test_the_own_bound_of_a_list_of_frames(tiny_folder: Path) -> None:
    """qwen-vl-utils README: a message's max_pixels gives the same grid on both ways"""
    processor = Qwen2_5_VLProcessor.from_pretrained(tiny_folder)
    frames = [Image.new("RGB", (1120, 840))] * 4
    part = {"type": "video", "video": frames, "max_pixels": 112 * 84}
    chat = [{"role": "user", "content": [part]}]
    direct = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    resized = [Image.new("RGB", (112, 84))] * 4
    beside = processor(text=processor.apply_chat_template(chat), videos=[resized])
    assert direct.video_grid_thw.tolist() == beside.video_grid_thw.tolist() == [[2, 6, 8]]


def test_settings_of_a_video_file_stay(tiny_folder: Path, tmp_path: Path) -> None:
    """configurations: what videos alone are given is saved, and does not become the pictures'"""
    processor = Qwen2_5_VLProcessor.from_pretrained(tiny_folder)
    processor.video_processor.max_pixels = 50 * 784
    processor.video_processor.fps = 1.0
    processor.save_pretrained(tmp_path)
    again = Qwen2_5_VLProcessor.from_pretrained(tmp_path)
    assert again.video_options == processor.video_options
    assert again.image_processor == processor.image_processor

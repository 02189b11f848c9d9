"""What transformers' own tests ask of the processor of pictures, in our words.

The peer is tests/models/qwen2_vl/test_image_processing_qwen2_vl.py with
tests/test_image_processing_common.py of transformers; each docstring names the test there.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen25vl import (
    AutoImageProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLImageProcessorPil,
)
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.processing.image import smart_resize

SETTINGS: dict[str, Any] = {
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 1280,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
RANDOM = np.random.default_rng(3)
SIDE, NUM_PICTURES = 308, 3  # upstream 1024 and 7
ARRAYS = list(RANDOM.integers(0, 256, (NUM_PICTURES, SIDE, SIDE, 3), dtype=np.uint8))
FORMS = {
    "pil": [Image.fromarray(array) for array in ARRAYS],
    "numpy": ARRAYS,
    "torch": [torch.from_numpy(array).permute(2, 0, 1) for array in ARRAYS],
}
GRID = [1, 22, 22]


@pytest.fixture
def processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(**SETTINGS)


@pytest.mark.parametrize(
    "name",
    "do_normalize image_mean image_std do_resize min_pixels max_pixels do_convert_rgb patch_size "
    "temporal_patch_size merge_size size do_rescale rescale_factor resample".split(),
)
def test_attributes(processor: Qwen2VLImageProcessor, name: str) -> None:
    """test_image_processor_properties"""
    assert getattr(processor, name) is not None


def test_settings_of_a_dictionary() -> None:
    """test_image_processor_from_dict_with_kwargs (as it is)"""
    made = Qwen2VLImageProcessor.from_dict(SETTINGS)
    assert (made.min_pixels, made.max_pixels) == (56 * 56, 28 * 28 * 1280)


def test_settings_of_a_dictionary_with_changes() -> None:
    """test_image_processor_from_dict_with_kwargs (with min_pixels, max_pixels)"""
    made = Qwen2VLImageProcessor.from_dict(SETTINGS, min_pixels=256 * 256, max_pixels=640 * 640)
    assert (made.min_pixels, made.max_pixels) == (256 * 256, 640 * 640)
    assert dict(made.size) == {"shortest_edge": 256 * 256, "longest_edge": 640 * 640}


def test_a_best_size() -> None:
    """test_select_best_resolution"""
    assert smart_resize(561, 278, factor=28) == smart_resize(561, 278, 28) == (560, 280)


@pytest.mark.parametrize("form", FORMS)
def test_one_picture(processor: Qwen2VLImageProcessor, form: str) -> None:
    """test_call_pil, test_call_numpy, test_call_pytorch (not batched)"""
    found = processor([FORMS[form][0]], return_tensors="pt")
    assert found.pixel_values.shape == (22 * 22, 1176)
    assert found.image_grid_thw.tolist() == [GRID]


@pytest.mark.parametrize("form", FORMS)
def test_several_pictures(processor: Qwen2VLImageProcessor, form: str) -> None:
    """test_call_pil, test_call_numpy, test_call_pytorch (batched)"""
    found = processor([[picture] for picture in FORMS[form]], return_tensors="pt")
    assert found.pixel_values.shape == (NUM_PICTURES * 22 * 22, 1176)
    assert found.image_grid_thw.tolist() == [GRID] * NUM_PICTURES


@pytest.mark.parametrize("form", FORMS)
def test_nesting_changes_nothing(processor: Qwen2VLImageProcessor, form: str) -> None:
    """test_nested_input"""
    pictures = FORMS[form]
    flat = processor(pictures, return_tensors="pt")
    for nested in ([pictures[:2], pictures[2:]], [[picture] for picture in pictures]):
        again = processor(nested, return_tensors="pt")
        assert torch.equal(again.pixel_values, flat.pixel_values)
        assert torch.equal(again.image_grid_thw, flat.image_grid_thw)


def test_forms_are_equal(processor: Qwen2VLImageProcessor) -> None:
    """test_call_pil against test_call_numpy and test_call_pytorch"""
    pil, array, tensor = (processor(FORMS[form]).pixel_values for form in FORMS)
    assert torch.equal(pil, array)
    assert torch.equal(pil, tensor)


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_an_array_of_pictures(processor: Qwen2VLImageProcessor, kind: Any) -> None:
    """test_fast_is_faster_than_slow (a tensor of four dimensions as input)"""
    found = processor(kind(np.stack(ARRAYS)), return_tensors="pt")
    assert torch.equal(found.pixel_values, processor(ARRAYS).pixel_values)


@pytest.mark.parametrize("key", SETTINGS)
def test_json_of_the_settings(processor: Qwen2VLImageProcessor, key: str) -> None:
    """test_image_processor_to_json_string"""
    assert json.loads(processor.to_json_string())[key] == SETTINGS[key]


def test_a_json_file_loads_again(processor: Qwen2VLImageProcessor, tmp_path: Path) -> None:
    """test_image_processor_to_json_file"""
    processor.to_json_file(tmp_path / "settings.json")
    again = Qwen2VLImageProcessor.from_json_file(tmp_path / "settings.json")
    assert again.to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    "kind",
    [
        Qwen2VLImageProcessor,
        Qwen2VLImageProcessorFast,
        Qwen2VLImageProcessorPil,
        AutoImageProcessor,
    ],
)
def test_saved_settings_load_again(kind: Any, tmp_path: Path) -> None:
    """test_image_processor_from_and_save_pretrained, test_save_load_fast_slow(_auto),
    test_image_processor_save_load_with_autoimageprocessor"""
    processor = Qwen2VLImageProcessorFast(**SETTINGS)
    (saved,) = processor.save_pretrained(tmp_path)
    assert isinstance(json.loads(Path(saved).read_text(encoding="utf-8")), dict)
    assert kind.from_pretrained(tmp_path, use_fast=True).to_dict() == processor.to_dict()


def test_no_settings_at_all() -> None:
    """test_init_without_params: the class's own bounds, not those of the official files"""
    assert Qwen2VLImageProcessor().max_pixels == 28 * 28 * 1280


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting(processor: Qwen2VLImageProcessor, dtype: torch.dtype) -> None:
    """test_cast_dtype_device (floats)"""
    found = processor(ARRAYS[0])
    assert found.pixel_values.dtype == torch.float32
    assert found.to(dtype).pixel_values.dtype == found.to("cpu", dtype).pixel_values.dtype == dtype


def test_casting_in_the_wrong_order(processor: Qwen2VLImageProcessor) -> None:
    """test_cast_dtype_device (TypeError)"""
    with pytest.raises(TypeError, match="the device comes before the dtype"):
        processor(ARRAYS[0]).to(torch.bfloat16, "cpu")


def test_ids_are_not_cast(processor: Qwen2VLImageProcessor) -> None:
    """test_cast_dtype_device (with input_ids from `update`)"""
    found = processor(ARRAYS[0])
    found.update({"input_ids": torch.tensor([[1, 2, 3]])})
    half = found.to(torch.float16)
    assert half.pixel_values.dtype == torch.float16
    assert half.input_ids.dtype == torch.int64


def test_instances_share_nothing() -> None:
    """test_override_instance_attributes_does_not_affect_other_instances"""
    first, second = Qwen2VLImageProcessor(), Qwen2VLImageProcessor()
    size, mean = deepcopy(second.size), list(second.image_mean)
    first.size["longest_edge"] = -1
    first.image_mean[0] = -1
    assert second.size == size
    assert list(second.image_mean) == mean


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "max_pixels", 20 * 784),
        lambda p: p.size.__setitem__("longest_edge", 20 * 784),
        lambda p: setattr(p.size, "longest_edge", 20 * 784),
        lambda p: setattr(p, "size", {"shortest_edge": 784, "longest_edge": 20 * 784}),
    ],
)
def test_bounds_may_be_changed(processor: Qwen2VLImageProcessor, change: Any) -> None:
    """test_override_instance_attributes…, docs: processor.image_processor.size = …"""
    change(processor)
    assert processor(ARRAYS[0]).image_grid_thw.prod() <= 20 * 4


@pytest.mark.parametrize(("shape", "number"), [((100, 100), 64), ((300, 100), 176)])
def test_numbers_of_patches(
    processor: Qwen2VLImageProcessor, shape: tuple[int, int], number: int
) -> None:
    """test_get_num_patches_without_images"""
    assert processor.get_number_of_image_patches(*shape, {}) == number


def test_numbers_of_patches_under_other_settings(processor: Qwen2VLImageProcessor) -> None:
    """test_get_num_patches_without_images (images_kwargs)"""
    assert processor.get_number_of_image_patches(100, 100, {"patch_size": 28}) == 16
    assert processor.get_number_of_image_patches(300, 300, {"max_pixels": 784}) == 4


def test_steps_are_left_out(processor: Qwen2VLImageProcessor) -> None:
    """image_processing_backends: do_resize, do_rescale and do_normalize may be False"""
    levels = processor(ARRAYS[0], do_rescale=False, do_normalize=False).pixel_values
    assert (levels.min(), levels.max()) == (0, 255)
    scaled = processor(ARRAYS[0], do_normalize=False).pixel_values
    assert torch.equal(scaled, levels * (1 / 255))
    kept = processor(ARRAYS[0][:56, :84], do_resize=False, min_pixels=30 * 784)
    assert kept.image_grid_thw.tolist() == [[1, 4, 6]]
    with pytest.raises(UsageError, match="multiples of 28"):
        processor(ARRAYS[0][:50, :84], do_resize=False)


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_floats_are_taken_as_they_are(processor: Qwen2VLImageProcessor, form: str) -> None:
    """image_processing_backends: pictures that were rescaled before, with do_rescale=False"""
    picture = FORMS[form][0]
    scaled = picture / 255 if form == "torch" else picture.astype(np.float32) / 255
    kept = deepcopy(scaled)
    found = processor(scaled, do_rescale=False).pixel_values
    assert (found - processor(picture).pixel_values).abs().max() < 1e-4
    assert (scaled == kept).all(), "the picture that was given stays as it was"


@pytest.mark.refused("a picture has 1 to 4 known channels; the fourth is transparency")
def test_four_channels(processor: Qwen2VLImageProcessor) -> None:
    """test_call_numpy_4_channels (skipped upstream)"""
    array = np.concatenate([ARRAYS[0], ARRAYS[0][..., :1]], axis=-1)
    assert processor(array).pixel_values.shape == (22 * 22, 1176)


@pytest.mark.refused("an option that does not exist is an error, not a warning")
def test_an_unknown_option(processor: Qwen2VLImageProcessor) -> None:
    """test_image_processor_preprocess_arguments"""
    with pytest.raises(OptionError, match="extra_argument"):
        processor(ARRAYS[0], extra_argument=True)  # type: ignore[call-arg]


@pytest.mark.refused("pictures are resized as in training: bicubic")
def test_another_filter(processor: Qwen2VLImageProcessor) -> None:
    """image_processing_backends: any resample"""
    with pytest.raises(ValueError, match="only 3"):
        processor(ARRAYS[0], resample=2)


@pytest.mark.refused("pictures are prepared on the CPU; `.to` moves the result")
def test_another_device(processor: Qwen2VLImageProcessor) -> None:
    """image_processing_backends: device="cuda" prepares on the GPU"""
    with pytest.raises(OptionError, match="device is 'cuda'"):
        processor(ARRAYS[0], device="cuda")
    assert processor(ARRAYS[0], device="cpu").pixel_values.device.type == "cpu"

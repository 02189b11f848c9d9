"""Options of a processor with values that they cannot have: an error that names the option, from
whichever call they are given to."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor as Theirs

from qwen25vl import (
    AutoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from qwen25vl.ecosystem.encodings import NEUTRAL_TEXT
from qwen25vl.ecosystem.media_processor import NEUTRAL_MEDIA
from qwen25vl.ecosystem.processor_options import OWN, ProcessorOptions
from qwen25vl.errors import ConfigError, MediaSizeError, MediaWarning, UsageError

PICTURE = Image.effect_noise((112, 56), 90).convert("RGB")
FRAMES = np.zeros((4, 56, 84, 3), dtype=np.uint8)
TEXT = "<|image_pad|><|video_pad|> hi"
CHAT = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": PICTURE},
            {"type": "video", "video": FRAMES},
            {"type": "text", "text": "hi"},
        ],
    }
]
WRONG: tuple[Any, ...] = (
    "x", -1, float("nan"), [[]], {"height": 5}, object(), b"x", np.array([1.0, 2.0]),
    torch.tensor([1, 2]),
)  # fmt: skip
FINE = {("rescale_factor", -1)}
OTHER_NAMES = {"num_frames": "nframes", "size": "shortest_edge"}
NAMES = sorted({*ProcessorOptions.__annotations__, "return_tensors"})


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


def doors(processor: Qwen2_5_VLProcessor) -> dict[str, Callable[..., Any]]:
    def chat(**options: Any) -> Any:
        return processor.apply_chat_template(CHAT, tokenize=True, return_dict=True, **options)

    return {
        "call": lambda **o: processor(text=TEXT, images=PICTURE, videos=[FRAMES], **o),
        "media": lambda **o: processor(images=PICTURE, videos=[FRAMES], **o),
        "chat": chat,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_is_told_by_name(processor: Qwen2_5_VLProcessor, name: str) -> None:
    """Switches took anything for True, size=448 was a TypeError from inside, num_frames=0 and
    everything about texts were passed over where there was nothing to apply them to."""
    said = f"{name}|{OTHER_NAMES.get(name, name)}"
    for door, call in doors(processor).items():
        for value in WRONG:
            if (name, value if isinstance(value, int) else None) in FINE:
                continue
            message = ""
            try:
                call(**{name: value})
            except UsageError as error:
                message = str(error)
            assert re.search(said, message), f"{door} with {name}={value!r}: {message}"


@pytest.mark.parametrize(
    "name", ["patch_size", "merge_size", "temporal_patch_size", "max_frames", "max_video_tokens"]
)
@pytest.mark.parametrize("value", [0, "14", 14.0, True])
def test_numbers_are_whole(processor: Qwen2_5_VLProcessor, name: str, value: Any) -> None:
    """merge_size=True was 1."""
    for call in doors(processor).values():
        with pytest.raises(UsageError, match=f"{name} is {value!r}; it must be a whole number"):
            call(**{name: value})
    expected = Qwen2VLVideoProcessor(**{name: 28})
    assert Qwen2VLVideoProcessor(**{name: np.int64(28)}).to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    "values",
    [
        {"size": 448}, {"size": "448"}, {"size": []}, {"size": {"height": 56, "width": 56}},
        {"patch_size": "14"}, {"patch_size": 1.5}, {"merge_size": 0}, {"merge_size": -1},
        {"merge_size": True}, {"temporal_patch_size": -1}, {"do_resize": 1}, {"do_resize": "no"},
        {"do_rescale": "x"}, {"do_normalize": [1]}, {"do_convert_rgb": 5}, {"image_mean": 1},
        {"image_mean": "x"}, {"image_std": True}, {"image_std": {"a": 1}}, {"rescale_factor": "x"},
        {"rescale_factor": True}, {"min_pixels": "14"}, {"max_pixels": [1]}, {"max_pixels": True},
        {"do_resize": False}, {"image_mean": 0.5}, {"image_std": 0.5},
        {"image_mean": (0.1, 0.2, 0.3)},
        {"do_normalize": False}, {"do_rescale": False}, {"merge_size": 1}, {"patch_size": 28},
        {"size": {"shortest_edge": 3136, "longest_edge": 100000}}, {"temporal_patch_size": 1},
    ],
    ids=str,
)  # fmt: skip
def test_pictures_as_in_transformers(values: dict[str, Any]) -> None:
    """What it takes is taken, with the same pixels; what it refuses is refused, and by name."""
    ours = [Qwen2VLImageProcessor, lambda **_: Qwen2VLImageProcessor()]
    calls: list[dict[str, Any]] = [{}, values]
    try:
        expected = Theirs()(PICTURE, return_tensors="pt", **values)
    except Exception:  # of many kinds, most of them a TypeError in a class of its own
        for make, options in zip(ours, calls, strict=True):
            with pytest.raises(UsageError, match=next(iter(values))):
                make(**values)(PICTURE, **options)
        return
    for make, options in zip(ours, calls, strict=True):
        found = make(**values)(PICTURE, return_tensors="pt", **options)
        assert torch.equal(found.image_grid_thw, expected["image_grid_thw"])
        torch.testing.assert_close(found.pixel_values, expected["pixel_values"])


def test_a_size_of_transformers(processor: Qwen2_5_VLProcessor) -> None:
    """image_processor.size is an object with attributes there."""
    size = Theirs(size={"shortest_edge": 4 * 784, "longest_edge": 50 * 784}).size
    made = Qwen2VLImageProcessor(size=size)
    assert (made.min_pixels, made.max_pixels) == (4 * 784, 50 * 784)


@pytest.mark.parametrize(
    ("name", "value"), [("do_resize", "x"), ("patch_size", 0), ("image_std", [0])]
)
def test_attributes_are_told_where_they_are_used(name: str, value: Any) -> None:
    """An attribute may be set to anything."""
    part = Qwen2VLImageProcessor()
    setattr(part, name, value)
    with pytest.raises(ConfigError, match=f"{name} is"):
        part(PICTURE)


def test_a_size_is_looked_at_where_it_is_set() -> None:
    """processor.size = {…} made a plain dict of it, without attributes."""
    part = Qwen2VLImageProcessor()
    part.size = {"shortest_edge": 784, "longest_edge": 7840}  # type: ignore[assignment]
    assert (part.min_pixels, part.size.longest_edge) == (784, 7840)
    with pytest.raises(UsageError, match="size is 448"):
        part.size = 448  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 448), ("patch_size", "14"), ("do_resize", 2), ("model_max_length", "x"),
     ("padding_side", "top"), ("padding", "x"), ("max_frames", 1), ("max_decoded_pixels", 0)],
)  # fmt: skip
def test_loading_with_a_wrong_value(tiny_folder: Path, name: str, value: Any) -> None:
    """model_max_length="x" failed in a comparison, long after it was given."""
    with pytest.raises(UsageError, match=f"{name} is {value!r}"):
        AutoProcessor.from_pretrained(tiny_folder, **{name: value})


def test_every_option_is_looked_at() -> None:
    """A new option must not be accepted with any value."""
    assert {*NEUTRAL_MEDIA, *NEUTRAL_TEXT, *OWN} <= {*NAMES, "use_fast"}


def test_the_limit_of_decoding_holds_without_a_text(tiny_folder: Path, tmp_path: Path) -> None:
    """The processor's max_decoded_pixels reached pictures beside a text only."""
    large = Image.new("RGB", (400, 300))
    large.save(tmp_path / "large.jpg")
    processor = AutoProcessor.from_pretrained(tiny_folder, max_decoded_pixels=400 * 300 - 1)
    for call in (processor, processor.image_processor, processor.image_processor.preprocess):
        with pytest.raises(MediaSizeError, match="at most 119999 are decoded"):
            call(images=large)
        with pytest.warns(MediaWarning, match="decoded at 1/2"):
            call(images=str(tmp_path / "large.jpg"))
    processor.max_decoded_pixels = 400 * 300
    assert processor.image_processor.max_decoded_pixels == 400 * 300
    assert processor(images=large).image_grid_thw.tolist() == [[1, 22, 28]]
    for wrong in (0, 1.5, "many"):
        with pytest.raises(UsageError, match="max_decoded_pixels is"):
            processor.image_processor.max_decoded_pixels = wrong

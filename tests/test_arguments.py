"""Numbers of any type, and option names that are nearly right."""

import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwen25vl
from qwen25vl import GenerationConfig
from qwen25vl.arguments import nearest_name, plain_number, refuse_unknown, whole_number
from qwen25vl.ecosystem.auto import AutoModelForImageTextToText
from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.video import VideoOptions


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3), (-2.5, -2.5), (np.int64(3), 3), (np.uint8(3), 3), (np.float32(0.5), 0.5),
        (np.array(3), 3), (torch.tensor(3), 3), (torch.tensor(0.5), 0.5), (Fraction(1, 2), 0.5),
        (10**400, 10**400),
    ],
)  # fmt: skip
def test_numbers(value: Any, number: float) -> None:
    """What numpy and torch return is a number;
    json.dump and comparisons later want Python's own."""
    read = plain_number(value)
    assert (read, type(read)) == (number, type(number))


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.bool_(True),
        np.array([3]),
        torch.tensor([3]),
        math.nan,
        np.inf,
        "3",
        None,
        Decimal(3),
        1j,
        [3],
    ],
)
def test_what_is_no_number(value: Any) -> None:
    """True as a count of 1, and a text where none is expected, are mistakes."""
    assert plain_number(value) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3), (" -3 ", -3), ("2.0", 2.0), (".5", 0.5), ("1e3", 1000.0), ("1_000", None),
     ("nan", None), ("", None), ("0x10", None), ("1e999", None), ("٣", 3)],
)  # fmt: skip
def test_numbers_as_texts(text: str, number: float | None) -> None:
    """float() alone takes "nan", "inf" and "1_000"."""
    assert plain_number(text, from_text=True) == number


def test_whole_numbers() -> None:
    """An index computed with / is a float, and probably a mistake."""
    assert whole_number(np.int64(4)) == 4
    assert whole_number(4.0) is None
    assert whole_number(np.float32(4)) is None


def test_options_made_by_numpy() -> None:
    """len() of an array's axis, or a draw of numpy's generator, was refused as no whole number."""
    config = GenerationConfig(
        max_new_tokens=np.int64(4), top_k=np.uint8(3), seed=np.int32(7),
        temperature=np.float32(0.5), eos_token_id=[np.int64(1), 2], pad_token_id=np.int64(0),
    )  # fmt: skip
    assert config == GenerationConfig(
        max_new_tokens=4, top_k=3, seed=7, temperature=0.5, eos_token_id=(1, 2), pad_token_id=0
    )
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert GenerationConfig(eos_token_id=np.int64(5)).eos_token_id == (5,)
    for bad in (
        {"max_new_tokens": np.True_},
        {"top_k": np.float64(2)},
        {"temperature": np.nan},
        {"seed": "7"},
    ):
        with pytest.raises(UsageError, match=next(iter(bad))):
            GenerationConfig(**bad)


def test_sizes_and_rates_made_by_numpy() -> None:
    """They reach Python's own arithmetic, and JSON when they are saved."""
    settings = ImageSettings().with_budget(np.int64(784), np.float32(100352))
    assert (settings.min_pixels, settings.max_pixels) == (784, 100352)
    assert (
        type(settings.max_pixels)
        is type(ImageSettings(max_pixels=np.int64(9999)).max_pixels)
        is int
    )
    size = ImageSettings().model_size(56, 56, resized_height=np.int64(84), resized_width=112.0)  # type: ignore[arg-type]
    assert size == (84, 112)
    options = VideoOptions(fps=np.float32(0.5), max_frames=np.int64(8), video_end=np.float64(2))
    assert [type(value) for value in (options.fps, options.max_frames, options.video_end)] == [
        float,
        int,
        float,
    ]
    for bad in ({"fps": True}, {"nframes": np.float32(4.5)}, {"max_pixels": np.True_}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            VideoOptions(**bad)


def test_nearest_names() -> None:
    """The name that other libraries use for an option is nearer than one that looks alike."""
    assert nearest_name("max_tokens", ["max_pixels", "max_new_tokens"]) == "max_new_tokens"
    assert nearest_name("temprature", ["temperature"]) == "temperature"
    assert nearest_name("colour", ["temperature"]) is None
    with pytest.raises(OptionError, match="no option 'colour'; known are a, b"):
        refuse_unknown(["a", "colour"], ["a", "b"])


@pytest.fixture(scope="module")
def vlm(tiny_folder: Path) -> qwen25vl.VisionLanguageModel:
    return qwen25vl.load(tiny_folder)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"max_tokens": 3}, "max_new_tokens"),
        ({"max_completion_tokens": 3}, "max_new_tokens"),
        ({"stop": "x"}, "stop_strings"),
        ({"temprature": 1}, "temperature"),
        ({"image": "a.png"}, "images"),
        ({"max_pixel": 9999}, "max_pixels"),
        ({"system_prompt": "x"}, "system"),
    ],
)
def test_every_question_names_what_was_meant(
    vlm: qwen25vl.VisionLanguageModel, options: dict[str, Any], hint: str
) -> None:
    """`generate` said what was meant, all others only that it was wrong."""
    pipe = qwen25vl.pipeline("image-text-to-text", vlm.model, vlm.processor)
    doors = [vlm.ask, vlm.stream]
    if hint not in ("images", "system"):
        doors.append(vlm.chat().stream)
        doors.append(
            lambda question, **wrong: pipe([{"role": "user", "content": question}], **wrong)
        )
    for door in doors:
        with pytest.raises(OptionError, match=f"did you mean {hint}\\?"):
            door("?", **options)
    assert not vlm.chat().turns


def test_every_other_door_names_what_was_meant(tiny_folder: Path) -> None:
    """Python's own TypeError names nothing; it is still one."""
    processor: Any = Qwen2_5_VLProcessor.from_pretrained(tiny_folder)
    picture = Image.new("RGB", (56, 56))
    load: Any = qwen25vl.load
    pipeline: Any = qwen25vl.pipeline
    chat: Any = qwen25vl.VisionLanguageModel.chat
    processor_class: Any = Qwen2_5_VLProcessor
    auto_class: Any = AutoModelForImageTextToText
    model_class: Any = qwen25vl.Qwen2_5_VLForConditionalGeneration
    doors: list[tuple[Any, str]] = [
        (lambda: load(tiny_folder, maxpixels=3), "max_pixels"),
        (lambda: load(tiny_folder, quantise="int4"), "quantize"),
        (lambda: auto_class.from_pretrained(tiny_folder, dtyp="auto"), "dtype"),
        (lambda: model_class.from_pretrained(tiny_folder, devicemap=0), "device_map"),
        (lambda: processor_class.from_pretrained(tiny_folder, max_pixel=9), "max_pixels"),
        (lambda: pipeline("image-text-to-text", modell="a"), "model"),
        (lambda: processor(text="a", image=picture), "images"),
        (lambda: processor.apply_chat_template([], tokenise=True), "tokenize"),
        (lambda: chat(None, sytem="x"), "system"),
    ]
    for door, hint in doors:
        with pytest.raises(OptionError, match=f"did you mean {hint}\\?") as caught:
            door()
        assert isinstance(caught.value, TypeError)

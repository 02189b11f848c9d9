"""The objects that a processor is made of: their settings, and what of them is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen25vl import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from qwen25vl.errors import CheckpointError, ConfigError, OptionError, UsageError
from qwen25vl.processing.prompt_videos import Sampling

IMAGE = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}
NOTE = {"fps": 4.0, "total_num_frames": 9}


@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLVideoProcessor])
def test_settings_are_changed_by_name(kind: Any) -> None:
    """A misspelt name was an attribute that nobody reads."""
    part = kind(**IMAGE)
    part.change({"do_normalize": False, "size": {"longest_edge": 7840}, "device": "cpu"})
    assert (part.do_normalize, part.min_pixels, part.max_pixels) == (False, 3136, 7840)
    with pytest.raises(OptionError, match="did you mean do_normalize"):
        part.change({"do_normalise": True})
    with pytest.raises(OptionError, match="do_pad is True; supported: None, False"):
        part.change({"do_pad": True})


@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLVideoProcessor])
def test_a_low_upper_bound_takes_the_lower_one_down(kind: Any) -> None:
    """A bound of 1000 pixels alone met the checkpoint's 3136 and was refused."""
    part = kind(**IMAGE)
    part.bound(max_pixels=1000)
    assert (part.min_pixels, part.max_pixels) == (1000, 1000)
    part.bound(min_pixels=900)
    assert (part.min_pixels, part.max_pixels) == (900, 1000)
    with pytest.raises(UsageError, match="min_pixels 2000 is above max_pixels 1000"):
        part.bound(min_pixels=2000)


def test_impossible_settings_are_named_where_they_are_used() -> None:
    """An attribute may be set to anything; the error came from inside torch."""
    part = Qwen2VLImageProcessor()
    part.image_mean = 3
    with pytest.raises(ConfigError, match="the settings of Qwen2VLImageProcessor are wrong"):
        _ = part.settings
    part = Qwen2VLImageProcessor()
    part.rescale_factor = 0
    with pytest.raises(ConfigError, match="rescale_factor is 0"):
        _ = part.settings


@pytest.mark.parametrize(
    ("video", "stated"),
    [
        ({}, {}),
        ({"fps": 1.0}, {}),
        ({"max_pixels": 7840}, {"max_pixels": 7840}),
        ({"size": {"longest_edge": 7840}}, {"max_pixels": 7840}),
        (
            {"size": {"shortest_edge": 3136, "longest_edge": 7840}},
            {"min_pixels": 3136, "max_pixels": 7840},
        ),
    ],
)
def test_only_what_is_stated_bounds_files(video: dict[str, Any], stated: dict[str, int]) -> None:
    """The bounds of pictures are those of frames given one by one, but not of video files, which
    qwen-vl-utils gives from 128 to 768 tokens a frame."""
    part = Qwen2VLVideoProcessor.from_files(IMAGE, video)
    assert part.stated_bounds() == stated
    assert part.min_pixels == 3136
    options = part.options()
    assert (options.min_pixels, options.max_pixels, options.fps) == (
        stated.get("min_pixels"),
        stated.get("max_pixels"),
        video.get("fps"),
    )


def test_what_a_folder_must_say_of_videos() -> None:
    """A folder that said nothing of videos said the pictures' bounds of them once it was saved."""
    usual = Qwen2VLVideoProcessor.from_files(IMAGE, {})
    assert usual.stated(IMAGE) is None
    usual.fps = 1.0
    saved = usual.stated(IMAGE) or {}
    assert saved["fps"] == 1.0
    assert not saved.keys() & {"size", "min_pixels", "max_pixels"}
    usual.max_pixels = 7840
    again = Qwen2VLVideoProcessor.from_files(IMAGE, usual.stated(IMAGE) or {})
    assert again.options() == usual.options()


@pytest.mark.parametrize(("cap", "total"), [(None, None), (True, 90316800), (False, 1 << 53)])
def test_a_share_of_the_context(cap: bool | None, total: int | None) -> None:
    """90 % of 128,000 tokens of 28×28 pixels."""
    part = Qwen2VLVideoProcessor(cap_pixels_per_frame=cap)
    assert part.context_pixels() == 90316800
    assert part.options().total_pixels == total


def test_who_decides_on_sampling() -> None:
    """The call, else the processor; a processor's False means that files are still sampled."""
    part = Qwen2VLVideoProcessor()
    assert part.sampling({}).do_sample_frames is None
    assert part.sampling({"do_sample_frames": False}).do_sample_frames is False
    part.do_sample_frames = True
    assert part.sampling({"num_frames": 4}) == Sampling(None, 4, True, None, 4, 768)


@pytest.mark.parametrize(("rate", "count"), [(4.0, 8), (2.0, 4), (0.5, 4), (100.0, 8)])
def test_frames_at_a_rate(rate: float, count: int) -> None:
    """An even number of 9 frames at 4 per second, at least 4."""
    assert Sampling(do_sample_frames=True).frames_at(rate, NOTE) == count
    assert Sampling(max_frames=6).frames_at(100.0, NOTE) == 6
    with pytest.raises(UsageError, match="without fps or total_num_frames"):
        Sampling().frames_at(rate, {"fps": 4.0})


def test_options_of_one_video() -> None:
    """Files are sampled, frames only where that is asked for."""
    assert Sampling(num_frames=4).options_of(True, None, None) == {"fps": None, "nframes": 4}
    assert Sampling(num_frames=4).options_of(False, 2.0, None) == {"sample_fps": 2.0}
    sampled = Sampling(do_sample_frames=True).options_of(False, 2.0, NOTE)
    assert sampled == {"sample_fps": 4.0, "nframes": 4}
    for sampling, is_file in ((Sampling(num_frames=4), True), (Sampling(None, 4, True), False)):
        with pytest.raises(UsageError, match="exclude each other"):
            sampling.options_of(is_file, 2.0, None)


def test_a_tokenizer_keeps_what_it_is_made_of(tiny_folder: Path) -> None:
    """The parts that the core uses are those of the ecosystem's class, too."""
    tokenizer = Qwen2Tokenizer.from_pretrained(tiny_folder, model_max_length=9)
    assert tokenizer.encode_ordinary("<|im_end|>") == tokenizer.encode("<|im_end|>", control=False)
    assert tokenizer.token_bytes(9707) == b"Hello"
    assert tokenizer("a " * 20, truncation=True).input_ids == tokenizer.encode("a " * 20)[:9]
    assert tokenizer.get_vocab()["Hello"] == tokenizer.convert_tokens_to_ids("Hello") == 9707
    with pytest.raises(CheckpointError):
        Qwen2Tokenizer.from_folder(tiny_folder / "nothing")

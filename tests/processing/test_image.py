"""Sizes and pixels against transformers and against an independent
implementation of its torchvision backend."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import hf_processors_rs
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as reference_smart_resize,
)

from qwen25vl import AutoProcessor
from qwen25vl.errors import ConfigError, MediaSizeError, UsageError
from qwen25vl.processing.image import ImageSettings, patchify, resize, smart_resize

TOKEN = 28 * 28
BUDGETS = [
    (1, TOKEN),
    (TOKEN, TOKEN),
    (TOKEN, 4 * TOKEN),
    (4 * TOKEN, 4 * TOKEN),
    (4 * TOKEN, 5 * TOKEN),
    (1000, 1000),
    (4 * TOKEN, 64 * TOKEN),
    (64 * TOKEN, 64 * TOKEN),
    (50176, 50176),
    (100000, 100000),
    (4 * TOKEN, 256 * TOKEN),
    (256 * TOKEN, 256 * TOKEN),
    (256 * TOKEN, 1280 * TOKEN),
    (128 * TOKEN, 768 * TOKEN),
    (128 * TOKEN, int(1.05 * 128 * TOKEN)),
    (4 * TOKEN, 1280 * TOKEN),
    (512 * 512, 512 * 512),
    (4 * TOKEN, 16384 * TOKEN),
    (1280 * TOKEN, 16384 * TOKEN),
    (3, 12845056),
]
SIDES = range(32, 1025, 32)
SIZES = [
    *itertools.product(range(1, 65), repeat=2),
    *itertools.product(SIDES, SIDES),
    (1, 1024),
    (1024, 5),
    (5600, 28),
]


def as_frames(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(("min_pixels", "max_pixels"), BUDGETS)
def test_smart_resize_is_the_references_or_a_refusal(min_pixels: int, max_pixels: int) -> None:
    """A side of 0 for thin pictures, or another rounding than the one the
    weights were trained with."""
    budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    for height, width in SIZES:
        is_thin = max(height, width) > 200 * min(height, width)
        expected = (0, 0) if is_thin else reference_smart_resize(height, width, **budget)
        try:
            size = smart_resize(height, width, **budget)
        except MediaSizeError:
            assert is_thin or (min(expected) == 28 and math.prod(expected) > max_pixels), (
                height,
                width,
            )
            continue
        assert size == expected, (height, width)
        assert min(size) >= 28, (height, width)
        assert size[0] % 28 == size[1] % 28 == 0, (height, width)


def test_smart_resize_refusals_say_what_was_given() -> None:
    """Bare ValueErrors deep inside a batch: nobody knows which picture it was."""
    with pytest.raises(MediaSizeError, match=r"strip\.png of 201×1 pixels"):
        smart_resize(1, 201, name="strip.png")
    with pytest.raises(MediaSizeError, match="within max_pixels=3136"):
        smart_resize(28, 5600, min_pixels=784, max_pixels=3136)
    with pytest.raises(MediaSizeError, match="empty"):
        smart_resize(0, 10)


@pytest.mark.parametrize(
    ("min_pixels", "max_pixels"),
    [(0, 1000), (-1, 1000), (1000, 783), (2000, 1999), (1, math.nan), ("1", 1000)],
)
def test_impossible_budgets_are_misuse(min_pixels: int, max_pixels: int) -> None:
    """Budgets that no size meets gave sizes that ignored them."""
    with pytest.raises(UsageError):
        smart_resize(100, 100, min_pixels=min_pixels, max_pixels=max_pixels)


def test_factor_follows_the_settings() -> None:
    """28 hard-coded: a model with other patches gets sizes that it can not cut."""
    settings = ImageSettings(patch_size=16, merge_size=1, min_pixels=256)
    assert settings.model_size(40, 100) == (32, 96)
    assert settings.model_size(40, 100, resized_height=64, resized_width=70) == (64, 64)


PARITY_SIZES = [(224, 224), (28, 28), (1, 1), (10, 1500), (333, 517), (1036, 1036), (700, 29),
                (64, 640), (57, 1023),
                (480, 640)]  # fmt: skip
PICTURES = [(size, mode) for mode in ("RGB", "L") for size in PARITY_SIZES]
PICTURES += zip(PARITY_SIZES, ["P", "1", "CMYK"] * 4, strict=False)


@pytest.mark.parametrize(("size", "mode"), PICTURES)
def test_pixel_values_equal_the_torchvision_backend(size: tuple[int, int], mode: str) -> None:
    """Resizing in float or with Pillow is up to 19 levels off; another order of float operations
    moves last bits."""
    channels = {"RGB": 3, "CMYK": 4}.get(mode, 1)
    values = noise(*size, channels, seed=sum(size))
    picture = Image.fromarray(
        values if channels > 1 else values[..., 0], mode if channels > 1 else "L"
    )
    picture = picture.convert(mode) if mode in ("P", "1") else picture
    settings = ImageSettings(max_pixels=1280 * TOKEN)
    expected = hf_processors_rs.AutoImageProcessor.from_dict(settings.to_dict())(picture)

    frames = as_frames(picture.convert("RGB"))
    patches, grid = patchify(resize(frames, *settings.model_size(*size)), settings)
    assert patches.dtype == torch.float32
    assert grid == tuple(expected["image_grid_thw"][0])
    assert np.array_equal(patches.numpy(), expected["pixel_values"])


@pytest.mark.parametrize(
    ("num_frames", "temporal"), [(1, 2), (2, 2), (5, 2), (3, 1), (5, 3), (7, 3)]
)
def test_patchify_order_equals_a_plain_loop(num_frames: int, temporal: int) -> None:
    """A transposed axis still has the right shape; only the order of FACTS tells."""
    settings = ImageSettings(patch_size=2, merge_size=2, temporal_patch_size=temporal, min_pixels=1)
    frames = torch.randint(0, 256, (num_frames, 3, 8, 12), dtype=torch.uint8)
    patches, grid = patchify(frames, settings)
    assert grid == (-(-num_frames // temporal), 4, 6)

    mean, std = torch.tensor(settings.image_mean) * 255, torch.tensor(settings.image_std) * 255
    values = (frames.float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    rows = []
    for t, block_y, block_x, y, x in itertools.product(
        range(grid[0]), range(2), range(3), range(2), range(2)
    ):
        times = [min(t * temporal + i, num_frames - 1) for i in range(temporal)]
        top, left = (block_y * 2 + y) * 2, (block_x * 2 + x) * 2
        rows.append(values[times, :, top : top + 2, left : left + 2].transpose(0, 1).flatten())
    assert torch.allclose(patches, torch.stack(rows), rtol=0, atol=1e-6)


def test_patchify_takes_any_memory_layout() -> None:
    """Pictures arrive channels-last as a permuted view; a reshape of memory would scramble them."""
    frames = torch.randint(0, 256, (3, 3, 56, 84), dtype=torch.uint8)
    views = [frames.contiguous(memory_format=torch.channels_last), frames.repeat(2, 1, 1, 1)[:3]]
    expected, _ = patchify(frames, ImageSettings())
    assert all(torch.equal(patchify(view, ImageSettings())[0], expected) for view in views)


def test_patchify_refuses_sides_that_are_no_whole_tokens() -> None:
    """Cutting silently drops the right and lower edge."""
    with pytest.raises(UsageError, match="multiples of 28"):
        patchify(torch.zeros(1, 3, 42, 56, dtype=torch.uint8), ImageSettings())


def test_frames_resize_as_if_alone() -> None:
    """A clip's frames must not depend on how many are resized together."""
    frames = torch.from_numpy(
        np.stack([noise(90, 120, seed=i).transpose(2, 0, 1) for i in range(5)])
    )
    together = resize(frames, 56, 84)
    assert torch.equal(together, torch.cat([resize(frame[None], 56, 84) for frame in frames]))


def test_settings_read_both_spellings_of_the_budget() -> None:
    """Budgets under `size` were ignored, so pictures came out sixteen times too large."""
    new = ImageSettings.from_dict(
        {"size": {"shortest_edge": 3136, "longest_edge": 1003520}, "min_pixels": None}
    )
    old = ImageSettings.from_dict({"min_pixels": 3136, "max_pixels": 1003520})
    assert new == old == ImageSettings.from_dict(old.to_dict())
    assert (new.min_pixels, new.max_pixels) == (3136, 1003520)


def test_one_sided_budgets() -> None:
    """A low max_pixels alone met the checkpoint's min_pixels and was refused; a huge min_pixels
    alone raised max_pixels in silence and blew a thumbnail up until memory ended."""
    settings = ImageSettings()
    assert settings.with_budget(max_pixels=1568).min_pixels == 1568
    assert settings.with_budget() == settings
    for low, high in ((4000, 3000), (20_000_000, None)):
        with pytest.raises(UsageError, match=f"min_pixels {low} is above"):
            settings.with_budget(low, high)
    with pytest.raises(UsageError, match="max_pixels is 0"):
        settings.with_budget(max_pixels=0)
    with pytest.raises(UsageError, match="max_pixels is -3"):
        settings.with_budget(max_pixels=-3)


@pytest.mark.parametrize(
    "values",
    [{"patch_size": 0}, {"merge_size": 1.5}, {"image_std": [0.2, 0.2, 0]}, {"image_mean": [0.5]},
     {"resample": 2}, {"rescale_factor": 0}],
)  # fmt: skip
def test_impossible_settings_are_refused(values: dict[str, object]) -> None:
    """A setting that is read and not followed gives worse answers without a word."""
    with pytest.raises(ConfigError):
        ImageSettings.from_dict(values)


@pytest.mark.parametrize("size", ["56", math.nan, -560, 56.5, True])
def test_sizes_of_another_kind_are_misuse(size: Any) -> None:
    """Texts failed in arithmetic, NaN and negative sizes were called an empty picture,
    True was one pixel."""
    settings = ImageSettings()
    with pytest.raises(UsageError, match="resized_height"):
        settings.model_size(56, 56, resized_height=size, resized_width=56)
    if size != 56.5:  # an area may be anything
        with pytest.raises(UsageError, match="max_pixels"):
            settings.with_budget(max_pixels=size)
    assert settings.model_size(9, 9, resized_height=np.int64(56), resized_width=np.int32(84)) == (
        56,
        84,
    )
    assert settings.with_budget(max_pixels=np.int64(5000)).to_dict()["max_pixels"] == 5000


@pytest.mark.parametrize(
    "values",
    [
        {"min_pixels": "a"},
        {"image_mean": 3},
        {"size": 5},
        {"image_std": ["a"]},
        {"rescale_factor": "b"},
    ],
)
def test_damaged_settings_of_a_folder(values: dict[str, Any], tmp_path: Path) -> None:
    """A damaged file was called misuse, or ended in a traceback."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="damaged") as caught:
        AutoProcessor.from_pretrained(tmp_path)
    assert caught.value.exit_code == 1

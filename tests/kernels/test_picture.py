"""Resizing and cutting frames, compiled and in torch: equal to the bit."""

import itertools

import numpy as np
import pytest
import torch

from qwen25vl.kernels.pictures import cut, cut_in_torch, resize

SIDES = (1, 2, 5, 28, 57, 333, 1023)
MEAN, DEVIATION = torch.tensor([122.7, 116.7, 104.1]), torch.tensor([68.5, 66.6, 70.3])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Frames [T, 3, H, W] as pictures lie in memory, black and white for odd seeds: those overshoot
    the most."""
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(
        values if seed % 2 == 0 else np.where(values > 127, 255, 0).astype(np.uint8)
    ).movedim(3, 1)


def in_torch(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        frames, size=(height, width), mode="bicubic", antialias=True
    )


@pytest.mark.usefixtures("isa")
def test_resize_equals_torch() -> None:
    """A weight rounded otherwise, or one axis before the other, moves single levels; edges and
    single pixels too."""
    for number, (height, width) in enumerate(itertools.product(SIDES, SIDES)):
        frames = noise(1 + number % 2, height, width, 3, seed=number)
        for size in ((28, 56), (height, 41), (29, width), (7 * number % 300 + 1, 300 - 5 * number)):
            assert torch.equal(resize(frames, *size), in_torch(frames, *size)), (frames.shape, size)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [(28, 5600), (5600, 28), (1400, 1400)])
def test_extreme_sizes_equal_torch(size: tuple[int, int]) -> None:
    """Weights that reach over hundreds of pixels ran behind the end of a row."""
    for given in ((9, 1800), (1800, 9), (3, 3)):
        frames = noise(1, *given, 3, seed=1)
        assert torch.equal(resize(frames, *size), in_torch(frames, *size)), given
        assert torch.equal(
            resize(in_torch(frames, *size), *given), in_torch(in_torch(frames, *size), *given)
        ), given


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("patch", "merge", "temporal"),
    [(14, 2, 2), (2, 2, 3), (16, 1, 2), (17, 3, 1), (5, 2, 2), (33, 1, 2), (8, 4, 4)],
)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
def test_patches_equal_the_twins(patch: int, merge: int, temporal: int, num_frames: int) -> None:
    """Frames in each other's places, a last frame that is not repeated, patches wider than a
    register."""
    sizes = {"patch": patch, "merge": merge, "temporal": temporal}
    for rows, columns in ((1, 1), (2, 3), (5, 1)):
        size = rows * patch * merge, columns * patch * merge
        for given in (size, (90, 61), (13, 200)):
            frames = noise(num_frames, *given, 3, seed=rows + given[0])
            expected = cut_in_torch(in_torch(frames, *size), MEAN, DEVIATION, **sizes)
            assert torch.equal(cut(frames, size, MEAN, DEVIATION, **sizes), expected)
            halves = cut(frames, size, MEAN, DEVIATION, **sizes, dtype=torch.bfloat16)
            assert torch.equal(halves, expected.bfloat16())


@pytest.mark.usefixtures("isa")
def test_threads_and_memory_layouts_change_nothing() -> None:
    """A band that another thread begins, or frames that lie plane by plane."""
    frames, sizes = noise(3, 301, 403, 3), {"patch": 14, "merge": 2, "temporal": 2}
    expected = cut_in_torch(in_torch(frames, 252, 336), MEAN, DEVIATION, **sizes)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3, 7, 40):
            torch.set_num_threads(number)
            for layout in (frames, frames.contiguous(), frames.repeat(2, 1, 1, 1)[3:]):
                assert torch.equal(cut(layout, (252, 336), MEAN, DEVIATION, **sizes), expected)
                assert torch.equal(resize(layout, 100, 90), in_torch(frames, 100, 90))
    finally:
        torch.set_num_threads(threads)

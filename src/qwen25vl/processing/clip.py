"""A clip: chosen frames at model size, and the rate they were chosen at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from qwen25vl.memory import require_bytes
from qwen25vl.processing.image import resize, smart_resize
from qwen25vl.processing.video_options import FRAME_MULTIPLE, VideoOptions

FRAME_MIN_PIXELS = 128 * 28 * 28
FRAME_MAX_PIXELS = 768 * 28 * 28
CLIP_MAX_PIXELS = int(128000 * 28 * 28 * 0.9)


@dataclass(frozen=True)
class Clip:
    """The chosen frames at model size, uint8 [T, 3, h, w].

    original_size: (height, width) as given, upright. source_fps, num_source_frames: of the video
    they were chosen from; numbers: theirs in it.
    """

    frames: torch.Tensor
    sampled_fps: float
    original_size: tuple[int, int]
    source_fps: float
    num_source_frames: int
    numbers: Sequence[int]

    @property
    def model_size(self) -> tuple[int, int]:
        return self.frames.shape[-2], self.frames.shape[-1]

    def seconds_per_grid(self, temporal_patch_size: int = 2) -> float:
        return temporal_patch_size / self.sampled_fps


def frame_size(
    height: int,
    width: int,
    num_frames: int,
    options: VideoOptions,
    factor: int = 28,
    name: str = "a video",
) -> tuple[int, int]:
    """The model size (height, width) of each of the frames.
    Raises MediaSizeError as `smart_resize` does."""
    if options.do_resize is False:
        return height, width
    if options.resized_height is not None and options.resized_width is not None:
        return smart_resize(options.resized_height, options.resized_width, factor=factor, name=name)
    low = options.min_pixels or min(FRAME_MIN_PIXELS, options.max_pixels or FRAME_MIN_PIXELS)
    share = (options.total_pixels or CLIP_MAX_PIXELS) / num_frames * FRAME_MULTIPLE
    limit = max(min(FRAME_MAX_PIXELS, share), int(low * 1.05))
    high = min(options.max_pixels or limit, limit)
    return smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high, name=name)


def given_frame_size(
    height: int,
    width: int,
    num_frames: int,
    options: VideoOptions,
    bounds: tuple[int, int],
    factor: int,
    name: str,
) -> tuple[int, int]:
    """As `frame_size`, of frames that are given one by one: within the bounds of a picture.

    bounds: fewest and most pixels, where the options name none. Frames are made smaller where the
    clip alone would fill the model's context.
    """
    if options.do_resize is False:
        return height, width
    if options.resized_height is not None and options.resized_width is not None:
        return smart_resize(options.resized_height, options.resized_width, factor, name=name)
    low = options.min_pixels or min(bounds[0], options.max_pixels or bounds[0])
    high = max(options.max_pixels or bounds[1], low)
    share = (options.total_pixels or CLIP_MAX_PIXELS) * FRAME_MULTIPLE // num_frames
    high = min(high, max(share, int(low * 1.05)))
    return smart_resize(height, width, factor, low, high, name=name)


def resize_all(
    frames: Iterable[torch.Tensor], count: int, size_of: Callable[[int, int], tuple[int, int]],
    name: str,
) -> tuple[torch.Tensor, tuple[int, int]]:  # fmt: skip
    """Frames uint8 [3, H, W], one by one, into one uint8 [T, 3, h, w]; also their original size.

    size_of: the model size for an original height and width.

    The first frame decides; a file's later frames may change size, as streams do.
    """
    clip, original_size = torch.empty(0, dtype=torch.float32, device="cpu"), (0, 0)
    for position, frame in enumerate(frames):
        if position == 0:
            original_size = (frame.shape[-2], frame.shape[-1])
            size = size_of(*original_size)
            needed = count * 3 * size[0] * size[1] * (1 + 4)  # the frames and their patches
            require_bytes(
                needed,
                torch.device("cpu"),
                f"{name} at {size[1]}×{size[0]} pixels × {count} frames",
            )
            # as pictures lie in memory
            interleaved = torch.empty(count, *size, 3, dtype=torch.uint8, device="cpu")
            clip = interleaved.permute(0, 3, 1, 2)
        clip[position] = resize(frame[None], clip.shape[-2], clip.shape[-1])[0]
    return clip, original_size

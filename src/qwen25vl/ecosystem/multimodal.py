"""How many tokens pictures and videos take, as servers ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen25vl.ecosystem.image_processor import Qwen2VLImageProcessor, picture_options
from qwen25vl.ecosystem.video_processor import Qwen2VLVideoProcessor


@dataclass
class MultiModalData:
    """Numbers of visual tokens and patches, one for each picture or video; also by key."""

    num_image_tokens: list[int] | None = None
    num_video_tokens: list[int] | None = None
    num_image_patches: list[int] | None = None

    def __contains__(self, key: str) -> bool:
        return vars(self).get(key) is not None

    def __getitem__(self, key: str) -> list[int] | None:
        found: list[int] | None = vars(self)[key]
        return found


def count_tokens(
    images: Qwen2VLImageProcessor,
    videos: Qwen2VLVideoProcessor,
    image_sizes: Sequence[Sequence[int]] | None,
    video_sizes: Sequence[Sequence[int]] | None,
    options: Mapping[str, Any],
) -> MultiModalData:
    """image_sizes: (height, width) of each; video_sizes: (frames, height, width) of each."""
    found = MultiModalData()
    if image_sizes is not None:
        merge = images.changed(picture_options(options)).merge_size ** 2
        patches = [
            images.get_number_of_image_patches(height, width, options)
            for height, width in image_sizes
        ]
        found.num_image_patches = patches
        found.num_image_tokens = [number // merge for number in patches]
    if video_sizes is not None:
        merge = videos.changed(picture_options(options)).merge_size ** 2
        patches = [
            videos.get_num_of_video_patches(frames, height, width, options)
            for frames, height, width in video_sizes
        ]
        found.num_video_tokens = [number // merge for number in patches]
    return found

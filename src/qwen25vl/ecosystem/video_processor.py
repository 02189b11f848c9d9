"""The ecosystem's processor of videos: clips to patches, and how many there will be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from qwen25vl.arguments import refuse_unknown
from qwen25vl.ecosystem.encodings import Tensors, with_tensors
from qwen25vl.ecosystem.media_processor import EDGES, MediaOptions, MediaProcessor, as_written
from qwen25vl.ecosystem.processor_files import find_folder, read_preparations
from qwen25vl.errors import UsageError
from qwen25vl.inputs import MediaItem, ModelInputs
from qwen25vl.processing.clip import given_frame_size
from qwen25vl.processing.collate import join, join_grids
from qwen25vl.processing.prepare import prepare_video
from qwen25vl.processing.prompt_videos import Sampling, given_videos
from qwen25vl.processing.video_options import VideoOptions
from qwen25vl.single_file import official

CONTEXT_SHARE = 0.9  # of the tokens of the context, for one video
NO_LIMIT = 1 << 53
BOUNDS = {"size", "min_pixels", "max_pixels"}
RELEASED = {edge: official.PREPROCESSOR[key] for key, edge in EDGES}  # bounds of pictures


class VideoCallOptions(MediaOptions, total=False):
    """What a call for videos may change."""

    fps: Any
    num_frames: int | None
    min_frames: int | None
    max_frames: int | None
    do_sample_frames: bool | None
    video_metadata: Any
    return_metadata: bool | None
    cap_pixels_per_frame: bool | None
    max_video_tokens: int | None


@dataclass(frozen=True)
class VideoMetadata:
    """The origin of a clip's frames: the rate and number of frames of the video, which of them were
    taken, and their size."""

    total_num_frames: int
    fps: float | None
    width: int
    height: int
    duration: float | None
    frames_indices: list[int]


class Qwen2VLVideoProcessor(MediaProcessor):
    """Call it with videos. Its attributes are those of video_preprocessor_config.json.

    do_sample_frames: whether fps or num_frames of a call choose among frames that are given one by
    one; files are always sampled. cap_pixels_per_frame: True shares 90 % of `max_video_tokens`
    among the frames, False does not bound them, None bounds a clip that alone would fill the
    model's context.
    """

    default_size: ClassVar[Mapping[str, int]] = {
        "shortest_edge": 128 * 28 * 28,
        "longest_edge": 28 * 28 * 768,
    }
    type_key: ClassVar[str] = "video_processor_type"
    file_name: ClassVar[str] = "video_preprocessor_config.json"
    model_input_names: ClassVar[list[str]] = ["pixel_values_videos", "video_grid_thw"]
    names: ClassVar[tuple[str, ...]] = (
        *MediaProcessor.names, "fps", "num_frames", "min_frames", "max_frames", "do_sample_frames",
        "return_metadata", "cap_pixels_per_frame", "max_video_tokens",
    )  # fmt: skip

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = 4
    max_frames: int | None = 768
    do_sample_frames: bool | None = False
    return_metadata: bool | None = False
    cap_pixels_per_frame: bool | None = None
    max_video_tokens: int = 128000
    unstated: Mapping[str, int] | None = None
    """Edges of the size that no one asked for: those of pictures, which do not bound files."""

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **options: Any) -> Self:
        """Read a checkpoint's file, or how it prepares pictures if it says nothing of videos; as in
        `Qwen2VLImageProcessor`."""
        folder, changes = find_folder(name_or_folder, options)
        return cls.from_files(*read_preparations(folder), **changes)

    @classmethod
    def from_files(cls, image: Mapping[str, Any], video: Mapping[str, Any], **changes: Any) -> Self:
        """From what a checkpoint says of videos, or else of pictures, with changes."""
        own = {key: value for key, value in (video or image).items() if key not in BOUNDS}
        made = cls.from_dict(own | {key: image[key] for key in BOUNDS if key in image})
        bounds_of_pictures = made.size
        size = {**(video.get("size") or {})}
        for key, edge in EDGES:
            size.setdefault(edge, size.pop(key, None))
            size[edge] = size[edge] if video.get(key) is None else video[key]
        given = {edge: as_written(edge, value) for edge, value in size.items() if value is not None}
        if video.get("size") and given == bounds_of_pictures == RELEASED:
            size = dict.fromkeys(size)  # a save copied them: nobody chose them for videos
        made.unstated = {edge: made.size[edge] for _, edge in EDGES if size[edge] is None}
        made.change({"size": size})
        made.change(changes)
        return made

    def options(self) -> VideoOptions:
        """The same for the code that computes."""
        bounds = self.stated_bounds()
        total = None
        if self.cap_pixels_per_frame is not None:
            total = self.context_pixels() if self.cap_pixels_per_frame else NO_LIMIT
        frames: dict[str, Any] = {"min_frames": self.min_frames, "max_frames": self.max_frames}
        frames = {
            key: value
            for key, value in frames.items()
            if value != getattr(Qwen2VLVideoProcessor, key)
        }
        rate = {"fps": self.fps, "nframes": self.num_frames}
        resizing = {"do_resize": None if self.do_resize else False, "total_pixels": total}
        return VideoOptions().override({**bounds, **frames, **rate, **resizing})

    def stated_bounds(self) -> dict[str, int]:
        """min_pixels and max_pixels where somebody asked for them."""
        return {
            key: self.size[edge]
            for key, edge in EDGES
            if self.size[edge] != (self.unstated or {}).get(edge)
        }

    def stated(self, image: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a folder must say of videos beside what it says of pictures; None for nothing."""
        values = {key: value for key, value in self.to_dict().items() if key not in BOUNDS}
        usual = type(self).from_files(image, {}).to_dict()
        if not self.stated_bounds() and all(usual[key] == value for key, value in values.items()):
            return None
        return {**values, **self.stated_bounds()}

    def context_pixels(self) -> int:
        """The pixels of one video that `max_video_tokens` allow, counted per temporal patch."""
        return int(self.max_video_tokens * (self.patch_size * self.merge_size) ** 2 * CONTEXT_SHARE)

    def sampling(self, options: Mapping[str, Any]) -> Sampling:
        """What a call says of the frames to take."""
        is_asked = options.get("do_sample_frames")
        return Sampling(
            options.get("fps"),
            options.get("num_frames"),
            (self.do_sample_frames or None) if is_asked is None else is_asked,
            options.get("video_metadata"),
            self.min_frames,
            self.max_frames,
        )

    def __call__(
        self, videos: Any, *, return_tensors: Tensors = None, **options: Unpack[VideoCallOptions]
    ) -> ModelInputs:
        """pixel_values_videos [N, 1176] and video_grid_thw [videos, 3] of one video or a list of
        them; a flat list of pictures is one video.

        options: other values of the attributes for this call, and video_metadata (see `Sampling`).
        return_metadata adds a list of VideoMetadata. Raises MediaError, UsageError.
        """
        refuse_unknown(options, VideoCallOptions.__annotations__)
        given = dict(options)
        calls = ("fps", "num_frames", "video_metadata")
        own = self.changed({key: value for key, value in given.items() if key not in calls})
        settings, frames = own.settings, own.options()
        parts = given_videos(videos, own.sampling(given), None)
        if not parts:
            raise UsageError("videos is empty; expected at least one video")
        prepared = [
            prepare_video(part.source, frames.override(part.options), settings) for part in parts
        ]
        items = [each.item for each in prepared]
        inputs = ModelInputs(
            pixel_values_videos=join(prepared, is_joined=True),
            video_grid_thw=join_grids(prepared),
            media=items,
        )
        inputs = with_tensors(inputs, return_tensors)
        if own.return_metadata:
            inputs["video_metadata"] = [describe(item) for item in items]
        return inputs

    preprocess = __call__

    def get_num_of_video_patches(
        self,
        num_frames: int,
        height: int,
        width: int,
        videos_kwargs: Mapping[str, Any] | None = None,
    ) -> int:
        """How many patches so many frames of this size become, given one by one."""
        known = VideoCallOptions.__annotations__.keys() - {"fps", "num_frames", "video_metadata"}
        given = {key: value for key, value in (videos_kwargs or {}).items() if key in known}
        own = self.changed(given)
        settings = own.settings
        bounds = settings.min_pixels, settings.max_pixels
        size = given_frame_size(
            height, width, num_frames, own.options(), bounds, settings.factor, "a video"
        )
        grid = [side // settings.patch_size for side in size]
        return -(-num_frames // settings.temporal_patch_size) * grid[0] * grid[1]


class AutoVideoProcessor:
    """The name under which code for transformers loads a Qwen2VLVideoProcessor."""

    from_pretrained = Qwen2VLVideoProcessor.from_pretrained


def describe(item: MediaItem) -> VideoMetadata:
    """The origin of a clip's frames in the ecosystem's form."""
    height, width = item.original_size
    numbers, total, fps = item.frame_numbers, item.num_source_frames, item.source_fps
    duration = total / fps if fps else None
    return VideoMetadata(total, fps, width, height, duration, list(numbers))

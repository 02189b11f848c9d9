"""The media room: from the messages of a request to patches.

`resolve` reads what a request names into memory and holds it against the limits; after it, no part
of a message names an address or a file any more. `prepare` has one part decoded in a process of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from qwen25vl.processing.clip import CLIP_MAX_PIXELS
from qwen25vl.processing.messages import Part
from qwen25vl.processing.prepare import Preparation, Prepared
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media.bounds import MediaBounds
from qwen25vl.serving.media.door import Door
from qwen25vl.serving.media.faults import refuse
from qwen25vl.serving.media.job import job_of
from qwen25vl.serving.media.medium import Medium
from qwen25vl.serving.media.parcel import read_bytes
from qwen25vl.serving.media.pool import WorkerPool
from qwen25vl.serving.media.prepared import count, number, open_prepared
from qwen25vl.serving.media.resolving import Asked, Tally, read_wanted
from qwen25vl.serving.media.shapes import Wanted, find_media
from qwen25vl.serving.media.source_reader import OpenFile, SourceReader
from qwen25vl.serving.settings import MediaLimits

if TYPE_CHECKING:
    from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor

VIDEO_TIMES = 10  # a clip may take so many times as long as a picture
PREVIEW_PIXELS = 1 << 20


@dataclass(frozen=True)
class PageSize:
    """A page of a document: its number, from 1, and its (height, width) in points."""

    number: int
    height: float
    width: float


class MediaRoom:
    """dtype: of the patches. open_file: reads files that clients have uploaded, by their id."""

    def __init__(
        self,
        limits: MediaLimits,
        processor: Qwen2_5_VLProcessor,
        dtype: torch.dtype,
        *,
        open_file: OpenFile | None = None,
    ) -> None:
        self.limits = limits
        self.how = server_preparation(limits, processor, dtype)
        pictures, videos = self.how.pictures, self.how.videos
        total = min(CLIP_MAX_PIXELS, videos.total_pixels or CLIP_MAX_PIXELS)
        self.bounds = MediaBounds(pictures.max_pixels, total, limits.max_frames)
        self.reader = SourceReader(
            limits, Door(limits.allowed_domains, limits.fetch_seconds), open_file
        )
        self.pool = WorkerPool(
            limits.num_workers, limits.worker_bytes, keeps_documents=limits.keeps_documents
        )

    async def start(self) -> None:
        """Raises Qwen25VLError where no process can be started."""
        await self.pool.start()

    async def close(self) -> None:
        await self.pool.close()

    async def resolve(
        self,
        messages: Sequence[Any],
        *,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Any] | None = None,
        root: str = "messages",
    ) -> list[Any]:
        """The messages of a request with a `Medium` in the place of every source, in the order in
        which they stand; each page of a document is a picture.

        root: what the request calls its messages, for errors. Raises ApiError.
        """
        call = Asked(mm_processor_kwargs, media_io_kwargs)
        found = find_media(messages, root)
        tally = Tally(self.limits)
        for wanted in wanted_in(found):
            tally.announce(wanted)
        return [await self.fill(message, call, tally) for message in found]

    async def fill(self, value: Any, call: Asked, tally: Tally) -> Any:
        """A message, or a part with a content of its own, with its media read."""
        if not isinstance(value, dict):
            return value
        filled = dict(value)
        for key in ("content", "output"):
            if isinstance(content := filled.get(key), list):
                parts: list[Any] = []
                for part in content:
                    if isinstance(part, Wanted):
                        parts += await read_wanted(self, part, call, tally)
                    else:
                        parts.append(await self.fill(part, call, tally))
                filled[key] = parts
        return filled

    async def prepare(self, part: Part) -> Prepared:
        """The patches of one part of resolved messages, with the bits that `prepare_part` gives.
        Raises ApiError; cancelling it ends the work on it."""
        medium = part.source
        if not isinstance(medium, Medium):
            raise refuse("url", "image", "messages", "a picture or video that was not read")
        seconds = self.limits.worker_seconds
        seconds *= VIDEO_TIMES if medium.form in ("clip", "frames") else 1
        job = job_of("prepare", medium, seconds, options=dict(part.options), how=self.how)
        settings = self.how.clips if medium.form in ("clip", "frames") else self.how.pictures
        width = 3 * settings.temporal_patch_size * settings.patch_size**2
        return await self.pool.run(
            job,
            medium,
            partial(
                open_prepared,
                medium=medium,
                dtype=self.how.dtype,
                width=width,
                merge_size=settings.merge_size,
            ),
        )

    async def measure_pages(
        self, data: bytes, pages: Any = None, *, max_pages: int | None = None, param: str = "file"
    ) -> list[PageSize]:
        """The chosen pages of a PDF document, all without a choice ("1,3-5", 2, [1, 4]).
        Raises ApiError."""
        medium = Medium("page", (data,), param)
        most = self.limits.max_pages if max_pages is None else max_pages
        job = job_of("measure", medium, self.limits.worker_seconds, pages=pages, max_pages=most)
        return await self.pool.run(job, medium, open_sizes)

    async def render_pages(
        self, data: bytes, pages: Any = None, *, max_pixels: int = PREVIEW_PIXELS
    ) -> list[bytes]:
        """The chosen pages of a PDF document as PNG files. Each page has the time of a picture.
        Raises ApiError."""
        medium = Medium("page", (data,), "file")
        files: list[bytes] = []
        for page in await self.measure_pages(data, pages):
            asked = {"pages": page.number, "max_pixels": max_pixels}
            job = job_of("render", medium, self.limits.worker_seconds, **asked)
            files += await self.pool.run(job, medium, open_files)
        return files


def server_preparation(
    limits: MediaLimits, processor: Qwen2_5_VLProcessor, dtype: torch.dtype
) -> Preparation:
    """The processor's settings within the server's limits."""
    pictures, clips = processor.image_processor.settings, processor.video_processor.settings
    videos = processor.video_processor.options()
    most = min(limits.max_frames, videos.max_frames or limits.max_frames)
    videos = videos.override({"max_frames": most})
    if limits.max_pixels is not None:
        pictures = pictures.with_budget(None, min(limits.max_pixels, pictures.max_pixels))
        clips = clips.with_budget(None, min(limits.max_pixels, clips.max_pixels))
        frame = min(limits.max_pixels, videos.max_pixels or limits.max_pixels)
        videos = videos.override({"max_pixels": frame})
    how = Preparation(pictures, clips, videos, limits.max_decoded_pixels, dtype)
    return replace(how, max_source_frames=limits.max_source_frames)


def wanted_in(value: Any) -> list[Wanted]:
    """All media of messages, in order."""
    if isinstance(value, Wanted):
        return [value]
    if isinstance(value, list):
        return [wanted for each in value for wanted in wanted_in(each)]
    if isinstance(value, dict):
        inner = (value.get(key) for key in ("content", "output"))
        return [wanted for each in inner for wanted in wanted_in(each)]
    return []


def open_sizes(header: dict[str, Any], descriptor: int, offset: int, length: int) -> list[PageSize]:
    sizes = []
    for page, (height, width) in zip(header["numbers"], header["sizes"], strict=True):
        sizes.append(PageSize(count(page), number(height) or 0.0, number(width) or 0.0))
    return sizes


def open_files(header: dict[str, Any], descriptor: int, offset: int, length: int) -> list[bytes]:
    files = []
    lengths = [count(value) for value in header["lengths"]]
    if sum(lengths) != length:
        raise ValueError("files of other lengths than stated")
    for each in lengths:
        files.append(read_bytes(descriptor, each, offset))
        offset += each
    return files


__all__ = ["ApiError", "MediaRoom", "PageSize"]

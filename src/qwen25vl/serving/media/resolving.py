"""One medium of a request: read, told apart by its content, checked, made parts of a message."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media.bounds import (
    MediaBounds,
    call_options,
    check_mapping,
    check_options,
    check_together,
    frame_rate,
    known_options,
    read_detail,
    wrong,
)
from qwen25vl.serving.media.faults import refuse
from qwen25vl.serving.media.medium import Form, Medium, Noun, code_of
from qwen25vl.serving.media.shapes import Wanted
from qwen25vl.serving.media.source_reader import (
    SourceReader,
    fragment,
    is_clip,
    is_document,
    is_picture,
    refuse_content,
    what_is,
)
from qwen25vl.serving.settings import MediaLimits


class Page(Protocol):
    @property
    def number(self) -> int: ...


class Room(Protocol):
    """What reading needs of the media room."""

    limits: MediaLimits
    bounds: MediaBounds
    reader: SourceReader

    def measure_pages(
        self, data: bytes, pages: Any = None, *, max_pages: int | None = None, param: str = "file"
    ) -> Awaitable[Any]: ...


@dataclass(frozen=True)
class Asked:
    """What a request says of all its media."""

    processor: Mapping[str, Any] | None
    io: Mapping[str, Any] | None


class Tally:
    """How many pictures, videos and pages a request has, against the limits."""

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        self.announced = {"image": 0, "video": 0, "file": 0}
        self.counts = {"image": 0, "video": 0, "file": 0}

    def announce(self, wanted: Wanted) -> None:
        """Before anything is read: what calls itself a picture may be a document, and counts as
        one of both until it is known."""
        self.announced[wanted.noun] += 1
        most = {"image": self.limits.max_images, "video": self.limits.max_videos}
        most["file"] = self.limits.max_images + self.limits.max_videos + self.limits.max_pages
        self.check(wanted.noun, self.announced[wanted.noun], most[wanted.noun], wanted.param)

    def add(self, noun: Noun, number: int, param: str) -> None:
        self.counts[noun] += number
        most = {"image": self.limits.max_images, "video": self.limits.max_videos}
        most["file"] = self.limits.max_pages
        self.check(noun, self.counts[noun], most[noun], param)

    def check(self, noun: Noun, number: int, limit: int, param: str) -> None:
        if number > limit:
            word = {"image": "pictures", "video": "videos", "file": "pages of documents"}[noun]
            text = f"the request has more than {limit} {word}, which this server allows"
            raise ApiError(400, text, param=param, code=code_of("many", noun))

    @property
    def pages_left(self) -> int:
        return self.limits.max_pages - self.counts["file"]


async def read_wanted(
    room: Room, wanted: Wanted, call: Asked, tally: Tally
) -> list[dict[str, Any]]:
    """The parts that a medium becomes: one, or one for each page. Raises ApiError."""
    contents = await room.reader.read(wanted)
    where, content = wanted.param, what_is(contents[0])
    if wanted.are_frames or len(contents) > 1 or is_single_frame(wanted):
        check_frames(contents, where)
        options = clip_options(room, wanted, call, len(contents))
        return [part_of("frames", contents, "video", options, wanted, tally)]
    if is_document(content):
        check_bytes(contents[0], room.limits.max_pdf_bytes, "file", where)
        return await read_document(room, wanted, contents[0], call, tally)
    if wanted.noun == "video" or (wanted.noun == "file" and is_clip(content)):
        if not is_clip(content) and not is_picture(content):
            raise refuse_content(content, wanted.noun, where)
        check_bytes(contents[0], room.limits.max_video_bytes, "video", where)
        options = clip_options(room, wanted, call, None)
        return [part_of("clip", contents, "video", options, wanted, tally)]
    if not is_picture(content):
        raise refuse_content(content, wanted.noun, where)
    check_bytes(contents[0], room.limits.max_image_bytes, "image", where)
    options = picture_options(room, wanted, call)
    return [part_of("picture", contents, "image", options, wanted, tally)]


def is_single_frame(wanted: Wanted) -> bool:
    """Whether this is data:video/jpeg of one frame."""
    source = wanted.sources[0][0][:64].lstrip().lower()
    return wanted.noun == "video" and source.startswith("data:video/jpeg")


def part_of(
    form: Form,
    contents: list[bytes],
    kind: Noun,
    options: Mapping[str, Any],
    wanted: Wanted,
    tally: Tally,
) -> dict[str, Any]:
    tally.add(kind, 1, wanted.param)
    return {"type": kind, kind: Medium(form, tuple(contents), wanted.param), **options}


def check_frames(contents: list[bytes], where: str) -> None:
    for number, content in enumerate(contents):
        if not is_picture(what_is(content)):
            text = f"frame {number + 1} of the video is in no format that this server reads"
            raise refuse("format", "video", where, text)


def check_bytes(data: bytes, limit: int, noun: Noun, where: str) -> None:
    if len(data) > limit:
        word = {"image": "picture", "video": "video", "file": "document"}[noun]
        text = f"the {word} is larger than this server allows, {limit >> 20} MiB"
        raise refuse("bytes", noun, where, text)


def picture_options(room: Room, wanted: Wanted, call: Asked) -> dict[str, Any]:
    """The nearest word counts: the part's own, then its `detail`, then the request's."""
    param = wanted.param
    own = known_options(wanted.options, "image")
    detail = read_detail(wanted.detail, f"{param}.detail")
    near = own if detail is None else {"max_pixels": min(detail, room.bounds.max_pixels), **own}
    far = call_options(call.processor, "image", "mm_processor_kwargs")
    near = check_options(near, room.bounds, param)
    far = check_options(far, room.bounds, "mm_processor_kwargs")
    return merge(far, near, param)


def merge(far: Mapping[str, Any], near: Mapping[str, Any], param: str) -> dict[str, Any]:
    """A bound of the request that a part's own excludes is dropped."""
    merged = {**far, **near}
    for low, high in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
        if low in merged and high in merged and merged[low] > merged[high]:
            dropped = low if high in near else high
            if dropped in near:
                raise wrong(f"{param}.{low}", f"{low} is above {high}")
            del merged[dropped]
    return merged


def clip_options(room: Room, wanted: Wanted, call: Asked, count: int | None) -> dict[str, Any]:
    """count: how many frames came; None of a file."""
    param = wanted.param
    detail = read_detail(wanted.detail, f"{param}.detail")
    near = dict(wanted.options)
    if detail is not None:
        near = {"max_pixels": min(detail, room.bounds.max_pixels), **near}
    near = check_options(near, room.bounds, param)
    far = call_options(call.processor, "video", "mm_processor_kwargs")
    far = check_options(far, room.bounds, "mm_processor_kwargs")
    if count is None:
        stated = check_mapping(call.io, "media_io_kwargs").get("video")
        stated = call_options(stated, "video", "media_io_kwargs.video")
        far = {**check_options(stated, room.bounds, "media_io_kwargs.video"), **far}
    elif rate := frame_rate(call.io, call.processor, count):
        rate = check_options(rate, room.bounds, "media_io_kwargs.video")
        far = {name: value for name, value in far.items() if name not in ("fps", "nframes")} | rate
    if near.keys() & {"fps", "nframes"}:
        far = {name: value for name, value in far.items() if name not in ("fps", "nframes")}
    if {"fps", "nframes"} <= far.keys():
        del far["nframes"]
    merged = merge(far, near, param)
    check_together(merged, param)
    return merged


async def read_document(
    room: Room, wanted: Wanted, data: bytes, call: Asked, tally: Tally
) -> list[dict[str, Any]]:
    """Each page as a picture."""
    param, pages = wanted.param, wanted.pages
    if pages is None:
        words = fragment(wanted.sources[0][0]).split("&")
        stated = [word[5:] for word in words if word.startswith("page=")]
        pages = stated[0] if stated else None
    if tally.pages_left < 1:
        tally.add("file", 1, param)
    sizes = await room.measure_pages(data, pages, max_pages=tally.pages_left, param=param)
    tally.add("file", len(sizes), param)
    options = picture_options(room, replace(wanted), call)
    contents = (data,)
    return [
        {"type": "image", "image": Medium("page", contents, param, page.number), **options}
        for page in sizes
    ]

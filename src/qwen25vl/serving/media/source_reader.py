"""The bytes of a medium, from wherever the request says they are, and what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.util import find_spec

from qwen25vl.processing.content import PDF, Content, identify, identify_text
from qwen25vl.serving.media.door import MAX_URL, Door, DoorError
from qwen25vl.serving.media.encoded import (
    MAX_EXPANSION,
    Base64Error,
    TooLongError,
    decode_base64,
    split_data_url,
)
from qwen25vl.serving.media.faults import WORDS, refuse
from qwen25vl.serving.media.folder import RefusedPathError, TooLargeError, fragment_of, read_file
from qwen25vl.serving.media.medium import Noun
from qwen25vl.serving.media.shapes import Wanted
from qwen25vl.serving.settings import MediaLimits

PICTURES = ("JPEG", "PNG", "WebP", "GIF", "BMP")
CLIPS = (
    "an MP4 or QuickTime video",
    "a QuickTime video",
    "a Matroska or WebM video",
    "an AVI video",
    "an MPEG video",
)
OpenFile = Callable[[str], Awaitable[bytes | None]]
"""The content of an uploaded file by its id; None where there is none."""


class SourceReader:
    """open_file: reads files that were uploaded; without it, none can be named."""

    def __init__(self, limits: MediaLimits, door: Door, open_file: OpenFile | None) -> None:
        self.limits, self.door, self.open_file = limits, door, open_file
        self.root = None if limits.allowed_path is None else limits.allowed_path.resolve()

    def max_bytes(self, noun: Noun) -> int:
        """Of a file that may turn out to be anything, the most of all."""
        limits = self.limits
        if noun == "image":
            return max(limits.max_image_bytes, limits.max_pdf_bytes)
        if noun == "video":
            return limits.max_video_bytes
        return max(limits.max_image_bytes, limits.max_video_bytes, limits.max_pdf_bytes)

    async def read(self, wanted: Wanted) -> list[bytes]:
        """The file, or each frame. Raises ApiError."""
        sources = list(wanted.sources)
        noun, where = wanted.noun, wanted.param
        if wanted.key == "file_id":
            return [await self.read_uploaded(sources[0][0], noun, where)]
        frames = None if wanted.are_frames else split_frames(sources[0][0], noun)
        if frames is not None:
            if frames.count(",") >= self.limits.max_frames:
                raise refuse("large", noun, where, self.too_many_frames())
            sources = [(frame, where) for frame in frames.split(",") if frame.strip()]
        if len(sources) > self.limits.max_frames:
            raise refuse("large", noun, where, self.too_many_frames())
        are_encoded = frames is not None
        left = self.max_bytes(noun)
        contents = []
        for source, place in sources:
            each = await (
                self.read_base64(source, noun, place, left)
                if are_encoded
                else self.read_one(source, noun, place, left)
            )
            if not each:
                raise refuse("empty", noun, place, f"the {WORDS[noun]} is empty")
            left -= len(each)
            contents.append(each)
        if not contents:
            raise refuse("empty", noun, where, f"the {WORDS[noun]} has no frames")
        return contents

    def too_many_frames(self) -> str:
        return f"the video has more frames than this server allows, {self.limits.max_frames}"

    async def read_uploaded(self, name: str, noun: Noun, where: str) -> bytes:
        content = None if self.open_file is None else await self.open_file(name)
        if content is None:
            raise refuse("missing", noun, where, "there is no uploaded file with this id")
        if len(content) > self.max_bytes(noun):
            raise self.too_large(noun, where)
        return content

    async def read_one(self, source: str, noun: Noun, where: str, max_bytes: int) -> bytes:
        if len(source) > MAX_EXPANSION * max_bytes + MAX_URL:  # before any copy is made
            raise self.too_large(noun, where)
        text = source.strip()
        scheme = text[:8].lower()
        if scheme.startswith("data:"):
            try:
                text = split_data_url(text)[1]
            except Base64Error:
                raise self.not_base64(noun, where) from None
        elif scheme.startswith(("http://", "https://")):
            return await self.download(text, noun, where, max_bytes)
        elif scheme.startswith("file://"):
            return await self.read_local(text, noun, where, max_bytes)
        elif "://" in text[:32] or not text:
            known = "data:…;base64,…"
            raise refuse("url", noun, where, f"addresses of this kind are not read; send {known}")
        else:
            return await self.read_plain(text, noun, where, max_bytes)
        return await self.read_base64(text, noun, where, max_bytes)

    async def read_plain(self, text: str, noun: Noun, where: str, max_bytes: int) -> bytes:
        """Base64 that nothing announces; anything else may have been meant as a path."""
        try:
            content = await decode_base64(text, max_bytes)
        except Base64Error:
            content = b""
        except TooLongError:
            raise self.too_large(noun, where) from None
        if identify(content) is None:
            text = f"expected data:…;base64,… or the base64 of a {WORDS[noun]}"
            raise refuse("url", noun, where, text)
        return content

    async def read_base64(self, text: str, noun: Noun, where: str, max_bytes: int) -> bytes:
        try:
            return await decode_base64(text, max_bytes)
        except Base64Error:
            raise self.not_base64(noun, where) from None
        except TooLongError:
            raise self.too_large(noun, where) from None

    async def download(self, url: str, noun: Noun, where: str, max_bytes: int) -> bytes:
        if not self.door.allowed:
            text = "this server fetches nothing from the network; send data:…;base64,…"
            raise refuse("url", noun, where, text)
        try:
            return await self.door.fetch(url, max_bytes)
        except DoorError as error:
            text = f"the {WORDS[noun]} is not fetched: {error.text}"
            raise refuse(error.fault, noun, where, text) from None

    async def read_local(self, url: str, noun: Noun, where: str, max_bytes: int) -> bytes:
        if self.root is None:
            text = "this server reads no local files; send data:…;base64,…"
            raise refuse("url", noun, where, text)
        try:
            return await asyncio.to_thread(read_file, url, self.root, max_bytes)
        except RefusedPathError:
            text = "there is no such file in the folder that this server may read"
            raise refuse("missing", noun, where, text) from None
        except TooLargeError:
            raise self.too_large(noun, where) from None

    def not_base64(self, noun: Noun, where: str) -> Exception:
        return refuse("base64", noun, where, f"the {WORDS[noun]} is not valid base64")

    def too_large(self, noun: Noun, where: str) -> Exception:
        limit = f"{self.max_bytes(noun) >> 20} MiB"
        text = f"the {WORDS[noun]} is larger than this server allows, {limit}"
        return refuse("bytes", noun, where, text)


def split_frames(source: str, noun: Noun) -> str | None:
    """The frames of data:video/jpeg;base64,FRAME,FRAME,… with commas between them, None for any
    other source."""
    if noun != "video" or not source[:64].lstrip().lower().startswith("data:"):
        return None
    head, _, payload = source.strip().partition(",")
    if not head.lower().startswith("data:video/jpeg") and "," not in payload:
        return None
    return payload if ";base64" in head.lower() else None


def fragment(url: str) -> str:
    """What stands behind # in an address, where `page=3-7` may be."""
    text = url.strip()
    if text[:8].lower().startswith(("http://", "https://")):
        return text.partition("#")[2]
    return fragment_of(text) if text[:7].lower() == "file://" else ""


def what_is(data: bytes) -> Content | None:
    return identify(data) or identify_text(data)


def is_picture(content: Content | None) -> bool:
    if content is None:
        return False
    if content.picture == "HEIC":
        return find_spec("pillow_heif") is not None
    return content.picture in PICTURES


def is_clip(content: Content | None) -> bool:
    return content is not None and content.words in CLIPS


def is_document(content: Content | None) -> bool:
    return content is PDF


def refuse_content(content: Content | None, noun: Noun, where: str) -> Exception:
    """Bytes of a kind that is not read, or not in this place."""
    word = {"image": "picture", "video": "video", "file": "file"}[noun]
    if content is None:
        return refuse("format", noun, where, f"the {word} is in no format that this server knows")
    known = ", ".join(PICTURES) if noun == "image" else "MP4, MOV, WebM, Matroska, AVI, MPEG, GIF"
    text = f"the {word} is {content.words}; this server reads {known}"
    return refuse("unsupported" if content.picture else "format", noun, where, text)

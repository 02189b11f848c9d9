"""From the inputs to the requests, one after the other, each when it is its turn."""

from __future__ import annotations

import asyncio
import io
import json
import mimetypes
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen25vl.documents.backends import Backend
from qwen25vl.documents.contents import count_frames, needs_png, unlock
from qwen25vl.documents.failures import Failure, InputError, of_system
from qwen25vl.documents.files import SMALL_BYTES, check_file
from qwen25vl.documents.inputs import Source
from qwen25vl.documents.items import Attachment, Item, attachments_in, digest_of, key_of
from qwen25vl.documents.plan import Plan
from qwen25vl.documents.request_lines import (
    Request,
    attach,
    find_fault,
    read_openai,
    read_parquet,
    read_requests,
)
from qwen25vl.documents.results import slot_of
from qwen25vl.processing.content import PDF, Content, identify, identify_text

PILLOW = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
PIXELS_PER_POINT = 2.0


@dataclass(frozen=True)
class Seen:
    """A file or bytes as they are before anything is decoded. pixels: as the header of a picture
    states, None where it does not."""

    data: bytes
    digest: str
    content: Content | None
    pixels: int | None


class ItemReader:
    """column: of parquet files, the one with the pictures. password: of encrypted documents."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        column: str | None = None,
        password: str | None = None,
    ) -> None:
        self.plan, self.backend, self.column, self.password = plan, backend, column, password

    async def read(self, source: Source) -> AsyncIterator[Item]:
        """All requests of one input."""
        if source.kind == "file":
            async for item in self.read_file(source.name, source.path or Path(source.name)):
                yield item
        elif source.kind == "memory":
            async for item in self.read_content(source.name, source.content):
                yield item
        elif source.kind == "messages":
            yield await self.read_body(self.request_of(source), Path())
        else:
            async for item in self.read_rows(source):
                yield item

    def request_of(self, source: Source) -> Request:
        """Messages, a request, or the content of one question."""
        content = source.content
        if isinstance(content, list):
            content = {"messages": content}
        if "messages" not in content and "content" in content:
            question = next(iter(self.plan.questions.values()), "")
            content = {"messages": self.plan.messages(question, list(content["content"]))}
        custom_id = content.get("custom_id")
        body = {name: value for name, value in content.items() if name != "custom_id"}
        if not isinstance(body.get("messages"), list):
            failure = Failure("refused", f"{source.name} is no request: it has no messages")
            return Request(source.name, custom_id, failure=failure)
        return Request(source.name, custom_id, body)

    async def read_rows(self, source: Source) -> AsyncIterator[Item]:
        path = source.path or Path(source.name)
        rows: Iterator[Request]
        if source.kind == "parquet":
            rows = read_parquet(path, source.name, self.column)
        elif source.kind == "openai":
            rows = read_openai(path, source.name)
        else:
            rows = read_requests(path, source.name)
        while (request := await asyncio.to_thread(next, rows, None)) is not None:
            if request.content is None:
                yield await self.read_body(request, path.parent)
            else:
                async for item in self.read_content(request.name, request.content):
                    yield item

    async def read_body(self, request: Request, folder: Path) -> Item:
        """A request that somebody else has written."""
        slot = slot_of(request.name, None, None, request.custom_id)
        failure, body = request.failure, dict(request.body or {})
        if failure is None and (fault := find_fault({"body": body})):
            failure = Failure("refused", f"{request.name}: {fault[1]}", 400, fault[0])
        if failure is None:
            try:
                body = await asyncio.to_thread(attach, body, folder, request.name)
            except InputError as error:
                failure = error.failure
        fields = dict(self.plan.fields)
        if body.get("max_completion_tokens") is not None:
            fields.pop("max_tokens", None)
        body = {**fields, **body}
        text = len(json.dumps(body, default=lambda _: ""))
        pictures = sum(self.picture_bytes(None) for _ in attachments_in(body))
        return Item(
            key_of(self.plan.identity, body, slot), slot, request.name, body,
            custom_id=request.custom_id, num_bytes=text + pictures, failure=failure,
            is_json=self.plan.is_json or "response_format" in body,
            must_be_json=self.plan.must_be_json and "response_format" in body,
        )  # fmt: skip

    async def read_file(self, name: str, path: Path) -> AsyncIterator[Item]:
        try:
            is_small = check_file(path).st_size <= SMALL_BYTES
            seen = look_at(path) if is_small else await asyncio.to_thread(look_at, path)
        except OSError as error:
            yield self.failed(name, of_system(error, name))
            return
        async for item in self.ask_about(name, seen, path, path.name):
            yield item

    async def read_content(self, name: str, data: bytes) -> AsyncIterator[Item]:
        """Requests about what is in memory."""
        is_small = len(data) <= SMALL_BYTES
        seen = look_at(data) if is_small else await asyncio.to_thread(look_at, data)
        async for item in self.ask_about(name, seen, data, None):
            yield item

    async def ask_about(
        self, name: str, seen: Seen, source: Path | bytes, file_name: str | None
    ) -> AsyncIterator[Item]:
        """Requests about a picture, a clip, or the pages of a document."""
        data, digest, content = seen.data, seen.digest, seen.content
        if not data:
            yield self.failed(name, Failure("empty", f"{name} is empty"))
            return
        if content is PDF:
            async for item in self.read_document(name, data, source, digest):
                yield item
            return
        if content is not None and needs_png(content):
            async for item in self.read_frames(name, data, source, digest, content):
                yield item
            return
        if content is not None and (content.picture or content.words.endswith("video")):
            kind = mimetypes.guess_type(file_name or "")[0] or "application/octet-stream"
            attachment = Attachment(source, digest, "image" if content.picture else "video", kind)
            size = len(data) + self.picture_bytes(seen.pixels)
            for item in self.ask(name, None, 1, attachment, size):
                yield item
            return
        content = content or identify_text(data)
        words = content.words if content else "of no format that is known"
        yield self.failed(name, Failure("not a picture", f"{name} is {words}"))

    async def read_frames(
        self, name: str, data: bytes, source: Path | bytes, digest: str, content: Content
    ) -> AsyncIterator[Item]:
        """A picture that has to become PNG; the frames of a TIFF file are pages."""
        try:
            number = await asyncio.to_thread(count_frames, data, content, name)
        except InputError as error:
            yield self.failed(name, error.failure)
            return
        size = self.picture_bytes(None)
        for frame in range(number):
            attachment = Attachment(source, digest, "image", "image/png", frame=frame)
            for item in self.ask(name, frame + 1 if number > 1 else None, 1, attachment, size):
                yield item

    async def read_document(
        self, name: str, data: bytes, source: Path | bytes, digest: str
    ) -> AsyncIterator[Item]:
        try:
            if self.password is not None:
                unlocked = await asyncio.to_thread(unlock, data, self.password, name)
                data, source = unlocked or data, unlocked or source
            sizes = await self.backend.measure(data, name)
        except InputError as error:
            yield self.failed(name, error.failure)
            return
        bytes_of = [self.picture_bytes(page_pixels(size)) for size in sizes]
        if self.plan.pages == "all":
            whole = Attachment(source, digest, "file", "application/pdf")
            for item in self.ask(name, None, len(sizes), whole, len(data) + sum(bytes_of)):
                yield item
            return
        for number, size in enumerate(bytes_of, 1):
            page = Attachment(source, digest, "file", "application/pdf", str(number))
            for item in self.ask(name, number, 1, page, size):
                yield item

    def ask(
        self, name: str, page: int | None, num_pages: int, attachment: Attachment, size: int
    ) -> Iterator[Item]:
        """Each question about a picture or page."""
        plan = self.plan
        for prompt, question in plan.questions.items():
            messages = plan.messages(question, [{"attachment": attachment}])
            body: Mapping[str, Any] = {**plan.fields, "messages": messages}
            slot = slot_of(name, page, prompt, None)
            yield Item(
                key_of(plan.identity, body, slot), slot, name, body, page, num_pages, prompt,
                num_bytes=size, is_json=plan.is_json, must_be_json=plan.must_be_json,
            )  # fmt: skip

    def failed(self, name: str, failure: Failure) -> Item:
        slot = slot_of(name, None, None, None)
        key = key_of([self.plan.identity, failure.kind], {}, slot)
        return Item(key, slot, name, {}, failure=failure)

    def picture_bytes(self, pixels: int | None) -> int:
        """What a picture takes until it is encoded; the most where its size is not known."""
        most = self.backend.max_pixels
        return int(self.backend.bytes_per_pixel * min(most, most if pixels is None else pixels))


def look_at(source: Path | bytes) -> Seen:
    """Raises OSError."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    content = identify(data) if data else None
    is_picture = content is not None and content.picture and not needs_png(content)
    return Seen(data, digest_of(data), content, pixels_of(data) if is_picture else None)


def page_pixels(size: tuple[float, float]) -> int:
    return int(size[0] * size[1] * PIXELS_PER_POINT**2)


def pixels_of(data: bytes) -> int | None:
    """Of a picture as its header states; None where it is of another kind or damaged."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=PILLOW) as picture:
            return picture.width * picture.height
    except Exception:  # whatever a header's reader raises; its decoder will tell it
        return None

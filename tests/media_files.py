"""Pictures, clips and documents for the media room, and rooms that run for one test."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pypdfium2
import torch
from PIL import Image

from qwen25vl.demo import FOLDER, folder_on_disk
from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
from qwen25vl.processing.messages import Part, read_messages
from qwen25vl.processing.prepare import Prepared
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media.room import MediaRoom
from qwen25vl.serving.settings import MediaLimits

T = TypeVar("T")
PROCESSOR = Qwen2_5_VLProcessor.from_pretrained(folder_on_disk(FOLDER))
DTYPE = torch.bfloat16


def drawn(width: int = 84, height: int = 56, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture that no two of which are equal."""
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 4), np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def picture(kind: str = "PNG", mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    file = io.BytesIO()
    drawn(mode=mode, seed=seed).save(file, kind, **options)
    return file.getvalue()


def document(count: int = 3, width: float = 100, height: float = 140) -> bytes:
    """A PDF document of empty pages."""
    made = pypdfium2.PdfDocument.new()
    for _ in range(count):
        made.new_page(width, height)
    file = io.BytesIO()
    made.save(file)
    made.close()
    return file.getvalue()


def drawn_document(count: int = 2) -> bytes:
    """A PDF document whose pages hold a picture each."""
    file = io.BytesIO()
    first, *others = [drawn(120, 90, seed=seed) for seed in range(count)]
    first.save(file, "PDF", save_all=True, append_images=others)
    return file.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{encoded(data)}"


def image_part(data: bytes, **beside: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}, **beside}


def asked(*content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(content)}]


@dataclass(frozen=True)
class Hosted:
    """A room whose processes run, and the event loop that it belongs to."""

    room: MediaRoom
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def parts(self, *content: Any, **options: Any) -> list[Part]:
        """The media of one message, resolved."""
        found = self.run(self.room.resolve(asked(*content), **options))
        return [p for message in read_messages(found) for p in message.parts if p.kind != "text"]

    def prepare(self, part: Part) -> Prepared:
        return self.run(self.room.prepare(part))


@contextmanager
def host(
    runner: asyncio.Runner, limits: MediaLimits | None = None, **options: Any
) -> Iterator[Hosted]:
    room = MediaRoom(limits or MediaLimits(num_workers=1), PROCESSOR, DTYPE, **options)
    runner.run(room.start())
    try:
        yield Hosted(room, runner)
    finally:
        runner.run(room.close())


def unstarted(limits: MediaLimits | None = None, **options: Any) -> MediaRoom:
    """A room without processes, which resolves everything but documents."""
    return MediaRoom(limits or MediaLimits(), PROCESSOR, DTYPE, **options)


def resolved(
    messages: Sequence[Any], limits: MediaLimits | None = None, **options: Any
) -> list[Part]:
    """The media of messages after a room has read them."""
    room = unstarted(limits)
    found = asyncio.run(room.resolve(messages, **options))
    return [p for message in read_messages(found) for p in message.parts if p.kind != "text"]


async def refusal(work: Awaitable[Any]) -> ApiError:
    """The error that this ends with."""
    try:
        result = await work
    except ApiError as error:
        return error
    raise AssertionError(f"nothing was refused: {result!r:.200}")


def refused(messages: Sequence[Any], limits: MediaLimits | None = None, **options: Any) -> ApiError:
    return asyncio.run(refusal(unstarted(limits).resolve(messages, **options)))

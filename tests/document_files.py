"""Folders of drawn pages, inputs that are poison, and a backend that answers at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from qwen25vl.documents.batch import Target, run_job
from qwen25vl.documents.batch_job import JobLimits
from qwen25vl.documents.failures import Failure, InputError
from qwen25vl.documents.inputs import list_inputs
from qwen25vl.documents.items import Item, attachments_in
from qwen25vl.documents.plan import make_plan
from qwen25vl.documents.results import Result

BUSY = Failure("server", "the server failed", 500)
COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SUFFIXES = (".png", ".jpg", ".webp", ".gif", ".bmp")


def page(number: int, side: int = 56) -> Image.Image:
    """A rectangle whose colour and size tell pages apart."""
    picture = Image.new("RGB", (side, side), "white")
    width, height = 8 + number % 7 * 6, 8 + number % 11 * 4
    picture.paste(COLOURS[number % 6], (4, 4, 4 + width, 4 + height))
    return picture


def draw_folder(folder: Path, number: int, num_pages: int = 4) -> int:
    """So many pages in all, of which every twelfth file is a document; the number of files."""
    folder.mkdir(parents=True, exist_ok=True)
    done = files = 0
    while done < number:
        files += 1
        path = folder / f"{files:03}{SUFFIXES[files % 5]}"
        if files % 12 == 0 and number - done >= num_pages:
            pages = [page(done + each) for each in range(num_pages)]
            pages[0].save(path.with_suffix(".pdf"), save_all=True, append_images=pages[1:])
            done += num_pages
        else:
            page(done).save(path)
            done += 1
    return files


def poison(folder: Path) -> dict[str, str]:
    """Ten inputs without an answer, with the kind of each."""
    whole = (folder / "whole.png", folder / "whole.pdf")
    page(1).save(whole[0])
    page(1).save(whole[1])
    png, pdf = whole[0].read_bytes(), whole[1].read_bytes()
    for path in whole:
        path.unlink()
    contents = {
        "a-cut.png": (png[:60], "broken"),
        "b-empty.png": (b"", "empty"),
        "c-text.jpg": (b"I am no picture.", "not a picture"),
        "d-noise.png": (png[:40] + bytes(range(256)), "broken"),
        "e-cut.pdf": (pdf[:200], "broken"),
        "f-empty.pdf": (b"", "empty"),
        "g-bomb.png": (bomb(), "too large"),
        "h-zip.webp": (b"PK\x03\x04" + bytes(40), "not a picture"),
        "i-header.gif": (b"GIF89a", "broken"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "j-loop.png").symlink_to("j-loop.png")
    return {name: kind for name, (_, kind) in contents.items()} | {"j-loop.png": "unreadable"}


def bomb() -> bytes:
    """A PNG whose header states 60000×60000 pixels."""
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    crc = struct.pack(">I", zlib.crc32(chunk))
    data = zlib.compress(bytes(1000))
    body = struct.pack(">I", len(data)) + b"IDAT" + data
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + body + bytes(4)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class EchoBackend:
    """Answers with the digest of what it is shown. behave: by name of an item, what happens in its
    tries, one after the other: a Failure, a text, or seconds that it takes."""

    max_in_flight = 4
    max_pixels = 10_000
    bytes_per_pixel = 15.0

    def __init__(
        self,
        behave: Mapping[str, list[Any]] | None = None,
        num_pages: int = 3,
        seconds: float = 0.03,
    ) -> None:
        self.seconds = seconds
        self.behave = {name: list(each) for name, each in (behave or {}).items()}
        self.num_pages = num_pages
        self.asked: list[str] = []
        self.bodies: list[Mapping[str, Any]] = []
        self.under_way: set[str] = set()
        self.most = 0
        self.company: list[tuple[str, int]] = []

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def measure(self, data: bytes, name: str) -> list[tuple[float, float]]:
        return [(100.0, 100.0)] * self.num_pages

    async def ask(self, item: Item) -> Mapping[str, Any]:
        self.asked.append(item.name)
        self.bodies.append(item.body)
        self.under_way.add(item.name)
        self.most = max(self.most, len(self.under_way))
        try:
            await asyncio.sleep(self.seconds)
            self.company.append((item.name, len(self.under_way)))
            return await self.answer(item)
        finally:
            self.under_way.discard(item.name)

    async def answer(self, item: Item) -> Mapping[str, Any]:
        planned = next((each for name, each in self.behave.items() if name in item.name), [])
        text = ",".join(each.digest[:8] for each in attachments_in(item.body))
        stop_reason = None
        if planned:
            now = planned.pop(0)
            if isinstance(now, Failure):
                raise InputError(now)
            if isinstance(now, float):
                await asyncio.sleep(now)
            elif now == "circles":
                stop_reason = "repetition"
            else:
                text = now
        return completion(text, stop_reason)


def completion(text: str, stop_reason: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": "echo", "usage": usage,
        "choices": [{**choice, "stop_reason": stop_reason}],
    }  # fmt: skip


def work(
    given: list[Any],
    backend: EchoBackend,
    target: Target | None = None,
    limits: JobLimits | None = None,
    **asked: Any,
) -> list[Result]:
    plan = make_plan(identity={"model": "echo"}, **{"ask": "What?", **asked})
    target = Target() if target is None else target
    return list(run_job(list_inputs(given), plan, backend, target, limits or JobLimits()))


def pictures(folder: Path, number: int) -> Path:
    folder.mkdir()
    for each in range(number):
        page(each).save(folder / f"{each:02}.png")
    return folder

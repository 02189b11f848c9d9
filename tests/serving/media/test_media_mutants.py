"""Hostile bytes: each is read or refused in words of ours, and none ends more than itself.

QWEN25VL_MUTANTS=10000 makes as many pictures, a tenth of it clips and half of it documents.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from media_files import Hosted, asked, data_url, encoded, picture, refusal
from media_mutants import clip_seeds, document_seeds, join_png, mutants, picture_seeds
from PIL import Image

from qwen25vl.memory import process_bytes
from qwen25vl.processing.messages import Part, read_messages
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media.medium import Medium

COUNT = int(os.environ.get("QWEN25VL_MUTANTS", "400"))
MAX_GROWTH = 256 << 20
LEAKS = re.compile(r"0x[0-9a-f]{6,}|<_io|object at|/home/|/tmp/|site-packages|Traceback")
MAX_SECONDS = 30.0  # generous: other work may share the processors


@dataclass
class Outcome:
    """What became of many: how often each code, how often a process died, the longest time."""

    codes: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    hangs: int = 0
    longest: float = 0.0


def try_all(hosted: Hosted, files: Iterator[bytes], kind: str) -> Outcome:
    outcome = Outcome()
    holders = {"image": "image_url", "video": "video_url"}
    key = holders.get(kind, "file")

    async def one(data: bytes) -> None:
        start = time.monotonic()
        value = {"file_data": encoded(data)} if key == "file" else {"url": data_url(data)}
        try:
            (message,) = await hosted.room.resolve(asked({"type": key, key: value}))
            for part in (p for m in read_messages([message]) for p in m.parts):
                await hosted.room.prepare(part)
                outcome.codes["read"] += 1
        except ApiError as error:
            note(outcome, error)
        outcome.longest = max(outcome.longest, time.monotonic() - start)

    async def work() -> None:
        waiting: set[asyncio.Task[None]] = set()
        for data in files:
            waiting.add(asyncio.create_task(one(data)))
            if len(waiting) >= 4:
                done, waiting = await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
                for task in done:
                    task.result()
        await asyncio.gather(*waiting)

    hosted.run(work())
    return outcome


def note(outcome: Outcome, error: ApiError) -> None:
    assert error.status == 400
    assert error.code
    assert not LEAKS.search(error.message)
    outcome.codes[error.code] += 1
    outcome.deaths += error.message.endswith("cannot be read")
    outcome.hangs += "longer to read" in error.message


def check(outcome: Outcome, name: str) -> None:
    print(f"\n{name}: {dict(outcome.codes)}, {outcome.deaths} processes died, "
          f"{outcome.hangs} were too slow, {outcome.longest:.2f} s the longest")  # fmt: skip
    assert outcome.longest < MAX_SECONDS


def test_pictures(hosted: Hosted) -> None:
    """A malformed EXIF block was a 500 in vLLM (PR 56576); CVEs began as such bytes."""
    before = process_bytes()["anonymous"]
    outcome = try_all(hosted, mutants(picture_seeds(), COUNT), "image")
    check(outcome, "pictures")
    assert outcome.deaths == 0
    assert outcome.hangs <= COUNT / 1000  # JPEGs of 100 megapixels, where the machine is busy
    assert outcome.codes["read"] > COUNT / 20
    assert sum(outcome.codes.values()) == COUNT
    assert process_bytes()["anonymous"] - before < MAX_GROWTH


def test_clips(hosted: Hosted) -> None:
    """Containers lie about their number of frames, their rate and their size."""
    before = process_bytes()["anonymous"]
    outcome = try_all(hosted, mutants(clip_seeds(), max(COUNT // 10, 9)), "video")
    check(outcome, "clips")
    assert outcome.codes["read"] > 0
    assert process_bytes()["anonymous"] - before < MAX_GROWTH


def test_documents(hosted: Hosted) -> None:
    """PDF is a language of references: to itself, in circles, and to nothing."""
    outcome = try_all(hosted, mutants(document_seeds(), max(COUNT // 2, 200)), "file")
    check(outcome, "documents")
    assert outcome.codes["read"] > 0
    assert outcome.deaths <= COUNT / 100


def png_of(width: int, height: int, bits: int, colours: int, packed: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return join_png([(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")])


def bombs() -> dict[str, bytes]:
    """Small files of large pictures."""
    rows = zlib.compress(bytes(100))
    sides = [(65_535, 65_535), (1 << 20, 1 << 10), (1, (1 << 31) - 1), (20_000, 20_000)]
    files = {f"PNG {w}×{h}": png_of(w, h, 8, 2, rows) for w, h in sides}
    files["PNG of zeros"] = png_of(19_000, 19_000, 1, 0, zlib.compress(bytes(19_000 * 2376), 9))
    files["ribbon"] = png_of(52_800, 44, 1, 0, rows)
    jpeg = picture("JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    files["JPEG"] = jpeg[:at] + struct.pack(">HH", 65_500, 65_500) + jpeg[at + 4 :]
    gif = picture("GIF", "P")
    files["GIF"] = gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]
    bmp = picture("BMP")
    files["BMP"] = bmp[:18] + struct.pack("<ii", 100_000, 100_000) + bmp[26:]
    webp = picture("WEBP", "RGBA", lossless=True)
    at = webp.index(b"VP8L") + 9
    files["WebP"] = webp[:at] + b"\xff\xff\xff\x0f" + webp[at + 4 :]
    return files


@pytest.mark.parametrize("name", bombs())
def test_bombs(name: str, hosted: Hosted) -> None:
    """44 KB of PNG were 1 GB of pixels; refused from the header, no process dies of it."""
    limit = Image.MAX_IMAGE_PIXELS
    data = bombs()[name]
    hosted.prepare(Part("image", source=Medium("picture", (picture(),), "p")))
    before = {worker.number for worker in hosted.room.pool.idle}
    start = time.monotonic()
    part = Part("image", source=Medium("picture", (data,), "p"))
    error = hosted.run(refusal(hosted.room.prepare(part)))
    assert error.status == 400
    assert error.code in ("image_too_large", "invalid_image", "image_parse_error")
    assert time.monotonic() - start < 5
    assert before == {worker.number for worker in hosted.room.pool.idle}
    assert limit == Image.MAX_IMAGE_PIXELS


LIES: dict[str, Any] = {
    "too many pages": lambda: (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type"
        b"/Pages/Kids[2 0 R]/Count 2000000000>>endobj\ntrailer<</Root 1 0 R>>"
    ),
    "a circle": lambda: (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages"
        b"/Kids[2 0 R 2 0 R]/Count 3>>endobj\ntrailer<</Root 1 0 R>>"
    ),
    "a huge page": lambda: page_of(b"[0 0 1e9 1e9]", b""),
    "no size": lambda: page_of(b"[0 0 0 0]", b""),
    "deep brackets": lambda: page_of(b"[0 0 100 100]", b"[" * 200_000),
    "deep states": lambda: page_of(b"[0 0 100 100]", b"q " * 500_000),
    "endless lines": lambda: page_of(b"[0 0 100 100]", b"0 0 m 99 99 l S " * 10_000),
}


def page_of(box: bytes, content: bytes) -> bytes:
    return (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox" + box + b"/Contents 4 0 R>>endobj\n"
        b"4 0 obj<</Length " + str(len(content)).encode() + b">>stream\n" + content
        + b"\nendstream endobj\ntrailer<</Root 1 0 R>>"
    )  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_lying_documents(name: str, hosted: Hosted) -> None:
    """A stated number of pages was believed, and a list of as many made."""
    file = {"file_data": encoded(LIES[name]()), "filename": "a.pdf"}
    start = time.monotonic()

    async def work() -> None:
        (message,) = await hosted.room.resolve(asked({"type": "file", "file": file}))
        for part in message["content"]:
            await hosted.room.prepare(Part("image", source=part["image"]))

    with contextlib.suppress(ApiError):
        hosted.run(work())
    assert time.monotonic() - start < 15

"""The processes that decode: the same bits as here, and no crash, hang or kill that a neighbour
notices."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media_files import (
    DTYPE,
    PROCESSOR,
    Hosted,
    asked,
    data_url,
    document,
    drawn_document,
    host,
    image_part,
    picture,
    refusal,
)
from PIL import Image
from videos import write_video

from qwen25vl.processing.messages import Part, read_messages
from qwen25vl.processing.pdf import read_pages
from qwen25vl.processing.prepare import Prepared, prepare_part
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media import pool
from qwen25vl.serving.media.faults import describe
from qwen25vl.serving.media.medium import Medium
from qwen25vl.serving.media.prepared import open_prepared
from qwen25vl.serving.media.room import MediaRoom
from qwen25vl.serving.settings import MediaLimits

PNG = picture("PNG")
FRAMES = tuple(picture("JPEG", seed=seed) for seed in range(4))


class Deed:
    """What a media process does as soon as it reads its job."""

    def __init__(self, deed: Callable[..., Any], *values: Any) -> None:
        self.deed = deed, values

    def __reduce__(self) -> Any:
        return self.deed


SMALL_GRID = (1, 8, 10)  # of PNG, which the model sees larger than it is


DEEDS = {
    "SIGSEGV": Deed(signal.raise_signal, signal.SIGSEGV),
    "SIGKILL": Deed(signal.raise_signal, signal.SIGKILL),
    "SIGABRT": Deed(signal.raise_signal, signal.SIGABRT),
    "exit": Deed(os._exit, 0),
    "an exception": Deed(int, "x"),
    "memory": Deed(bytearray, 1 << 34),
}
SLEEP = Deed(time.sleep, 60)


def medium(data: bytes = PNG) -> Medium:
    return Medium("picture", (data,), "messages[0].content[0]")


def with_deed(deed: Deed) -> Part:
    return Part("image", source=medium(), options={"max_pixels": deed})


def in_process(part: Part, room: MediaRoom) -> Prepared:
    source: Any = part.source.contents[0]
    if part.source.form == "frames":
        source = list(part.source.contents)
    if part.source.form == "page":
        (source,) = read_pages(source, "document", part.source.page)
    return prepare_part(replace(part, source=source), room.how)


SAME: dict[str, Callable[[], Part]] = {
    **{
        f"{kind} {mode}": lambda kind=kind, mode=mode: Part(  # type: ignore[misc]
            "image", source=medium(picture(kind, mode))
        )
        for kind, mode in (
            ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "CMYK"),
            ("JPEG", "L"), ("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "RGB"),
        )
    },
    "smaller": lambda: Part("image", source=medium(), options={"max_pixels": 28 * 28 * 4}),
    "of a size": lambda: Part(
        "image", source=medium(), options={"resized_height": 112, "resized_width": 56}
    ),
    "a page": lambda: Part(
        "image", source=Medium("page", (drawn_document(2),), "p", 2), options={"max_pixels": 9408}
    ),
    "frames": lambda: Part("video", source=Medium("frames", FRAMES, "f"), options={"fps": 3.0}),
    "an animation": lambda: Part("video", source=Medium("clip", (picture("GIF", "P"),), "g")),
    "a clip": lambda: Part("video", source=Medium("clip", (write_video(),), "c")),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_same_bits_as_here(name: str, hosted: Hosted) -> None:
    """A picture that was prepared elsewhere with other kernels or settings has another answer."""
    part = SAME[name]()
    ours, theirs = in_process(part, hosted.room), hosted.prepare(part)
    assert isinstance(ours.patches, torch.Tensor)
    assert isinstance(theirs.patches, torch.Tensor)
    assert theirs.patches.dtype == DTYPE
    assert torch.equal(ours.patches, theirs.patches)
    assert ours.grid == theirs.grid
    assert replace(ours.item, name=theirs.item.name) == theirs.item
    assert tuple(ours.item.frame_numbers) == tuple(theirs.item.frame_numbers)


def test_digests_tell_pictures_apart(hosted: Hosted) -> None:
    """Equal pixels must find each other's visual tokens, different ones never."""
    same, again, other = (
        hosted.prepare(Part("image", source=medium(data))).item.digest
        for data in (PNG, picture("BMP"), picture("PNG", seed=1))
    )
    assert same == again
    assert other not in (None, same)


@pytest.mark.parametrize("name", DEEDS)
def test_a_crash_is_one_request_s_own(name: str, hosted: Hosted) -> None:
    """One broken picture took the server with it, or gave a 500 to whoever came next."""

    async def work() -> None:
        room = hosted.room
        part = Part("image", source=medium())
        crash, neighbour = await asyncio.gather(
            refusal(room.prepare(with_deed(DEEDS[name]))), room.prepare(part)
        )
        assert (crash.status, crash.code) == (400, "image_parse_error")
        assert crash.param == "messages[0].content[0]"
        assert torch.equal(neighbour.patches, (await room.prepare(part)).patches)

    hosted.run(work())


def test_a_hang_ends_at_its_deadline(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that never returns held its place in line for ever."""
    monkeypatch.setattr(hosted.room, "limits", MediaLimits(worker_seconds=0.2))
    start = time.monotonic()
    error = hosted.run(refusal(hosted.room.prepare(with_deed(SLEEP))))
    assert time.monotonic() - start < 10
    assert (error.status, error.code) == (400, "image_parse_error")
    assert "longer" in error.message
    assert hosted.prepare(Part("image", source=medium())).grid == SMALL_GRID


def test_the_time_of_the_processor_is_limited(hosted: Hosted) -> None:
    """A process that computes is killed by the system, even if the server does not come to it."""
    program = "__import__('qwen25vl.serving.media.worker', fromlist=['x']).limit_time(-1)"
    deed = Deed(eval, f"({program}, sum(range(10**11)))")
    error = hosted.run(refusal(hosted.room.prepare(with_deed(deed))))
    assert (error.status, error.code) == (400, "image_parse_error")


def test_cancelling_frees_the_process(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for a client that had gone went on to its end, and others waited for it."""
    monkeypatch.setattr(hosted.room, "limits", MediaLimits(worker_seconds=50.0))

    async def work(room: MediaRoom) -> float:
        tasks = [asyncio.create_task(room.prepare(with_deed(SLEEP))) for _ in range(2)]
        waiting = asyncio.create_task(room.prepare(Part("image", source=medium())))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        start = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await waiting
        return time.monotonic() - start

    assert hosted.run(work(hosted.room)) < 10


def test_cancelling_while_waiting(hosted: Hosted) -> None:
    """A place in line that was given up was never given to anybody else."""

    async def work(room: MediaRoom) -> None:
        part = Part("image", source=medium())
        for _ in range(20):
            tasks = [asyncio.create_task(room.prepare(part)) for _ in range(6)]
            await asyncio.sleep(0.004)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*[room.prepare(part) for _ in range(6)])
        assert room.pool.num_waiting == 0
        assert len(room.pool.idle) + len(room.pool.abandoned) <= 2

    hosted.run(work(hosted.room))


def test_the_line_is_bounded(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_WAITING", 2)

    async def work() -> list[Any]:
        part = Part("image", source=medium())
        tasks = [hosted.room.prepare(part) for _ in range(8)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = hosted.run(work())
    errors = [result for result in results if isinstance(result, ApiError)]
    assert {error.status for error in errors} == {429}
    assert 0 < len(errors) < 8


def test_a_process_that_ended_while_idle_is_replaced(hosted: Hosted) -> None:
    """The system kills processes where memory is short; the next request paid for it."""
    for worker in hosted.room.pool.idle:
        os.kill(worker.number, signal.SIGKILL)
    time.sleep(0.2)
    assert hosted.prepare(Part("image", source=medium())).grid == SMALL_GRID


def test_a_new_nursery_takes_the_place_of_a_dead_one(hosted: Hosted) -> None:
    """Where the system kills it, all later requests failed."""
    nursery = hosted.room.pool.nursery
    assert nursery.process is not None
    nursery.process.kill()
    nursery.process.wait()
    time.sleep(0.2)
    assert hosted.prepare(Part("image", source=medium())).grid == SMALL_GRID


def test_nothing_is_left_behind(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes outlived their server; one that a hostile picture took over could read the server's
    keys and connections; and 32 MiB of PNG, gigabytes of pixels, had the system kill the server."""
    monkeypatch.setenv("SECRET_KEY", "canary")
    with host(runner, MediaLimits(num_workers=2, worker_bytes=64 << 20)) as two:
        large = Part("image", source=medium(picture_of(4000, 4000)))
        error = two.run(refusal(two.room.prepare(large)))
        assert (error.status, error.code) == (400, "image_too_large")
        assert two.prepare(Part("image", source=medium())).grid == SMALL_GRID
        one = two.room.pool
        numbers = [worker.number for worker in one.idle]
        two.run(refusal(two.room.prepare(with_deed(DEEDS["SIGKILL"]))))
        two.prepare(Part("image", source=medium()))
        numbers += [worker.number for worker in one.idle]
        for number in (one.idle[0].number, one.nursery.process.pid if one.nursery.process else 0):
            assert b"canary" not in Path(f"/proc/{number}/environ").read_bytes()
        links = [path.readlink() for path in Path(f"/proc/{one.idle[0].number}/fd").iterdir()]
        assert len([link for link in links if "socket" in str(link)]) == 1
    assert not [number for number in numbers if Path(f"/proc/{number}").exists()]


def test_a_hundred_faults(hosted: Hosted) -> None:
    """Every fault used to cost something: a descriptor, a process, a place in line."""
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def work() -> None:
        part = Part("image", source=medium())
        expected = (await hosted.room.prepare(part)).patches
        for _ in range(10):
            deeds = [DEEDS["SIGSEGV"], DEEDS["exit"]] * 5
            faults = [refusal(hosted.room.prepare(with_deed(deed))) for deed in deeds]
            found = await asyncio.gather(hosted.room.prepare(part), *faults)
            assert torch.equal(found[0].patches, expected)
            assert {error.code for error in found[1:]} == {"image_parse_error"}

    hosted.run(work())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def picture_of(width: int, height: int, mode: str = "RGBA") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


def answer_of(change: dict[str, Any], length: int | None = None) -> Prepared:
    """What comes of an answer that is right but for some of its keys."""
    header = {
        "shape": [24, 1176], "grid": [1, 4, 6], "original_size": [56, 84], "model_size": [56, 84],
        "num_frames": 1, "seconds_per_grid": None, "source_fps": None, "num_source_frames": 1,
        "frame_numbers": [], "page": None, "page_size": None,
    }  # fmt: skip
    size = 24 * 1176 * 2
    with open(os.memfd_create("answer"), "w+b", buffering=0) as file:  # noqa: PTH123
        file.write(bytes(size))
        return open_prepared(
            header | change, file.fileno(), 0, size if length is None else length,
            medium=medium(), dtype=torch.bfloat16, width=1176, merge_size=2,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "length"),
    [
        ({"grid": [1, 4, 5]}, None),
        ({"grid": [1, 4, -6]}, None),
        ({"grid": [1, 4]}, None),
        ({"grid": None}, None),
        ({"shape": [24, 1175]}, None),
        ({"grid": [1 << 20, 1 << 20, 1]}, None),
        ({}, 24 * 1176 * 2 - 1),
        ({"grid": [2, 4, 6], "shape": [48, 1176]}, 48 * 1176 * 2),
        ({"original_size": [0, 84]}, None),
        ({"original_size": ["a", 84]}, None),
        ({"seconds_per_grid": float("inf")}, None),
        ({"source_fps": True}, None),
        ({"frame_numbers": [-1]}, None),
        ({"page_size": [None, 3.0]}, None),
    ],
)
def test_a_lying_answer_is_refused(change: dict[str, Any], length: int | None) -> None:
    """A process that was taken over could make the server read beyond a buffer."""
    with pytest.raises((ValueError, TypeError, KeyError)):
        answer_of(change, length)


def test_an_honest_answer_is_taken() -> None:
    assert answer_of({}).grid == (1, 4, 6)


@pytest.mark.parametrize(
    "error",
    [
        OSError("cannot identify image file <_io.BytesIO object at 0x7f00aa55cc10>"),
        ValueError("/home/someone/secret.png"),
        SyntaxError("not a TIFF file (header b'II*' not valid)"),
        KeyError("secret"),
        RuntimeError("std::exception at 0x55d0c0ffee"),
    ],
)
def test_texts_of_libraries_stay_inside(error: Exception) -> None:
    """CVE-2026-22778: an address in Pillow's error text was the first step to running code."""
    fault, text = describe(error, "image", b"")
    assert (fault, text) == ("parse", "the picture is cut off or damaged")


def test_pages_and_previews(hosted: Hosted) -> None:
    sizes = hosted.run(hosted.room.measure_pages(document(3, 100, 140), "2-"))
    assert [(size.number, size.height, size.width) for size in sizes] == [
        (2, 140.0, 100.0),
        (3, 140.0, 100.0),
    ]
    files = hosted.run(hosted.room.render_pages(document(3), [1, 3], max_pixels=70 * 100))
    assert len(files) == 2
    assert all(file.startswith(b"\x89PNG") for file in files)
    error = hosted.run(refusal(hosted.room.render_pages(b"%PDF-1.7 nothing")))
    assert (error.status, error.code) == (400, "file_parse_error")
    error = hosted.run(refusal(hosted.room.measure_pages(document(2), 3)))
    assert "page 3" in error.message


def test_from_messages_to_patches(hosted: Hosted) -> None:
    """The whole way, as the server goes it."""
    url = data_url(drawn_document(2), "application/pdf")
    content = [image_part(PNG), {"type": "file", "file": {"file_data": url}}]
    found = hosted.run(hosted.room.resolve(asked(*content, "What is it?")))
    parts = [p for m in read_messages(found) for p in m.parts if p.kind != "text"]
    items = [hosted.prepare(part).item for part in parts]
    assert [item.page for item in items] == [None, 1, 2]
    assert items[1].page_size == (90.0, 120.0)
    assert PROCESSOR.image_processor.settings.factor == 28

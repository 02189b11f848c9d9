"""A request may ask for less than the server's limits, never for more."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from media_files import asked, data_url, encoded, image_part, picture, refusal, refused, resolved
from media_files import unstarted as room_of

from qwen25vl.memory import process_bytes
from qwen25vl.processing.clip import CLIP_MAX_PIXELS
from qwen25vl.serving.settings import MediaLimits

PNG = picture("PNG")
LIMIT = 28 * 28 * 100
LIMITS = MediaLimits(max_pixels=LIMIT, max_frames=8)
CLIP = {"type": "video", "video": [data_url(PNG)] * 2}
PIXELS = {"min_pixels": LIMIT, "max_pixels": LIMIT, "total_pixels": CLIP_MAX_PIXELS}
FRAMES = {"nframes": 8, "min_frames": 8, "max_frames": 8}
RATES = {"fps": 240, "sample_fps": 240, "raw_fps": 240}
IMAGE = {name: PIXELS[name] for name in ("min_pixels", "max_pixels")}
VIDEO = {**PIXELS, **FRAMES, **RATES}
SIDES = {"resized_height": 280, "resized_width": 280}
EXTREMES = [-1, 0, -0.5, 1e308, float("nan"), float("inf"), 1 << 63, 10**400, "", "many", "1" * 50,
            [], {}, [1], True]  # fmt: skip


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_part_s_own(kind: str, name: str) -> None:
    """vLLM PR 51449: 404 bytes that asked for ten million pixels took 700 MiB before the 400."""
    if kind == "image" and name not in IMAGE:
        pytest.skip("no option of pictures")
    part = image_part(PNG) if kind == "image" else CLIP
    limit = VIDEO[name]
    resolved(asked({**part, name: limit}), LIMITS)
    resolved(asked({**part, name: str(limit)}), LIMITS)
    before, start = process_bytes()["peak"], time.monotonic()
    for more in (limit + 1, limit * 1000, str(limit + 1)):
        error = refused(asked({**part, name: more}), LIMITS)
        assert (error.status, error.code) == (400, "limit_exceeded")
        assert f"{limit:.10g}" in error.message
        assert name in error.message
        assert str(error.param).endswith(f".{name}")
    assert process_bytes()["peak"] - before < 2 << 20
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("value", EXTREMES, ids=range(len(EXTREMES)))
@pytest.mark.parametrize("name", [*VIDEO, *SIDES])
def test_what_is_no_number(name: str, value: Any) -> None:
    """NaN passes every comparison with a limit."""
    for part in (image_part(PNG), CLIP):
        if name in IMAGE or name in SIDES or part is CLIP:
            error = refused(asked({**part, name: value}), LIMITS)
            assert error.status == 400
            assert str(error.param).startswith("messages[0].content[0]")


def test_sides() -> None:
    part = {**image_part(PNG), **SIDES}
    assert resolved(asked(part), LIMITS)[0].options == SIDES
    assert "at most" in refused(asked({**part, "resized_width": 308}), LIMITS).message
    assert "together" in refused(asked({**image_part(PNG), "resized_width": 28}), LIMITS).message
    for side in (1 << 40, 10**300):
        assert refused(asked({**part, "resized_width": side}), LIMITS).code == "limit_exceeded"


@pytest.mark.parametrize(
    "call",
    [
        {"max_pixels": LIMIT + 1},
        {"min_pixels": LIMIT + 1},
        {"size": {"longest_edge": LIMIT + 1}},
        {"images_kwargs": {"max_pixels": LIMIT + 1}},
        {"size": 3},
        {"images_kwargs": [1]},
        {"max_pixels": [1]},
    ],
)
def test_what_the_request_asks_of_pictures(call: dict[str, Any]) -> None:
    """CVE-2026-105758: the options of the request went round the limits of the part's."""
    error = refused(asked(image_part(PNG)), LIMITS, mm_processor_kwargs=call)
    assert error.status == 400
    assert str(error.param).startswith("mm_processor_kwargs")


@pytest.mark.parametrize(
    ("call", "io"),
    [
        ({"fps": 2_000_000}, {}),
        ({"fps": 0, "num_frames": 9}, {}),
        ({"num_frames": 9}, {}),
        ({"max_frames": 9}, {}),
        ({"videos_kwargs": {"num_frames": 9}}, {}),
        ({"total_pixels": CLIP_MAX_PIXELS + 1}, {}),
        ({}, {"video": {"fps": 1e9}}),
        ({}, {"video": {"fps": "x"}}),
        ({}, {"video": {"fps": 30, "frames_indices": [0], "total_num_frames": 2}}),
        ({}, {"video": {"fps": 30, "frames_indices": 3, "total_num_frames": 2}}),
        ({}, {"video": {"fps": 30, "frames_indices": [0, 1], "total_num_frames": 0.001}}),
        ({}, {"video": 3}),
    ],
)
def test_what_the_request_asks_of_videos(call: dict[str, Any], io: dict[str, Any]) -> None:
    """CVE-2026-5497: `num_frames` of the request undid the server's limit."""
    error = refused(asked(CLIP), LIMITS, mm_processor_kwargs=call, media_io_kwargs=io)
    assert error.status == 400


def test_minus_one_is_no_way_round() -> None:
    """vLLM's word for "no limit"."""
    (part,) = resolved(asked(CLIP), LIMITS, mm_processor_kwargs={"num_frames": -1, "fps": -1})
    assert part.options == {}


def test_less_is_allowed() -> None:
    (part,) = resolved(asked({**image_part(PNG), "max_pixels": "784"}), LIMITS)
    assert part.options == {"max_pixels": 784}
    (part,) = resolved(asked(CLIP), LIMITS, mm_processor_kwargs={"fps": 1.5, "num_frames": 4})
    assert part.options == {"fps": 1.5, "max_frames": 4}


def test_the_server_s_own_size_is_in_force() -> None:
    """A picture without options was prepared at the checkpoint's size."""
    how = room_of(LIMITS).how
    assert how.pictures.max_pixels == how.clips.max_pixels == LIMIT
    assert (how.videos.max_frames, how.videos.max_pixels) == (8, LIMIT)
    assert how.max_source_frames == LIMITS.max_source_frames
    assert room_of().how.pictures.max_pixels == room_of().bounds.max_pixels


@pytest.mark.parametrize("form", ["data", "base64", "frames"])
def test_bytes_are_counted_before_they_are_decoded(form: str) -> None:
    """CVE-2026-100650: the whole of the base64 was decoded, and then refused for its size."""
    limits = MediaLimits(max_image_bytes=1 << 20, max_video_bytes=1 << 20, max_pdf_bytes=1 << 20)
    text = "A" * (12 << 20)
    part: dict[str, Any] = {"type": "image", "image": f"data:image/png;base64,{text}"}
    if form == "base64":
        part = {"type": "image", "base64": text}
    if form == "frames":
        piece = encoded(PNG + bytes(100_000))
        part = {"type": "video", "video": [f"data:image/png;base64,{piece}"] * 20}
    before = process_bytes()["peak"]
    error = refused(asked(part), limits)
    assert error.code in ("image_file_too_large", "video_file_too_large")
    assert process_bytes()["peak"] - before < 6 << 20


def test_a_large_picture_does_not_stop_the_loop() -> None:
    """Decoding 40 MB of base64 in one go kept all streams waiting."""
    url = data_url(PNG + bytes(30 << 20))
    gaps: list[float] = []

    async def work() -> None:
        task = asyncio.create_task(
            refusal(room_of(MediaLimits()).resolve(asked({"type": "image", "image": url})))
        )
        while not task.done():
            start = time.monotonic()
            await asyncio.sleep(0)
            gaps.append(time.monotonic() - start)
        assert (await task).code == "image_file_too_large"

    asyncio.run(work())
    assert len(gaps) > 20

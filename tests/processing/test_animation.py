"""Animated GIF, WebP, PNG and AVIF as clips;
still pictures and documents where a video was wanted."""

import io
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processing.picture_files import AFTER_HEADER, chunk, encoded, exif, orientation
from videos import drawn, numbers_of

from qwen25vl.errors import MediaFormatError, UsageError
from qwen25vl.processing.animation import is_still
from qwen25vl.processing.prompt_videos import list_videos
from qwen25vl.processing.video import VideoOptions, load_clip

KINDS = ("GIF", "WEBP", "PNG")


def animate(
    kind: str, numbers: Sequence[int], duration: int | list[int] = 500, **options: Any
) -> bytes:
    pictures = [Image.fromarray(drawn(number)) for number in numbers]
    if kind == "WEBP":
        options |= {"lossless": True}
    file = io.BytesIO()
    pictures[0].save(
        file, kind, save_all=True, append_images=pictures[1:], duration=duration, **options
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_animations_are_clips(kind: str) -> None:
    """Only GIF could be read, and only with PyAV."""
    clip = load_clip(animate(kind, range(10, 18)))
    assert numbers_of(clip.frames) == list(range(10, 18))
    assert clip.sampled_fps == clip.source_fps == 2
    assert clip.original_size == drawn(0).shape[:2]
    clip = load_clip(animate(kind, range(1, 41), 100))
    assert len(clip.frames) == 8
    assert clip.sampled_fps == pytest.approx(2)
    assert (numbers_of(clip.frames)[0], numbers_of(clip.frames)[-1]) == (1, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_animations_need_no_pyav(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(load_clip(animate(kind, range(4))).frames) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_equal_pictures_count_as_often_as_they_are_shown(kind: str) -> None:
    """Pillow and others merge them, and the clip became shorter and faster."""
    clip = load_clip(animate(kind, [1, 2, 2, 2, 3, 4, 4, 5]))
    assert numbers_of(clip.frames) == [1, 2, 2, 2, 3, 4, 4, 5]
    assert clip.sampled_fps == 2
    held = load_clip(animate(kind, [1, 2, 3], [100, 100, 1800]), VideoOptions(fps=10))
    assert numbers_of(held.frames) == [1, 2] + [3] * 18
    assert held.sampled_fps == pytest.approx(10)


@pytest.mark.parametrize("kind", KINDS)
def test_uneven_durations_keep_the_length(kind: str) -> None:
    """The mean rate left out how long the last picture is shown."""
    clip = load_clip(animate(kind, range(8), [300, 200, 700, 300, 500, 300, 200, 1500]))
    assert len(clip.frames) / clip.sampled_fps == pytest.approx(4.0)
    assert numbers_of(clip.frames) == list(range(8))


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_without_a_duration_take_a_tenth_of_a_second(kind: str) -> None:
    """0 divided by zero; browsers show such pictures for 100 ms."""
    clip = load_clip(animate(kind, range(10), 0))
    assert clip.source_fps == pytest.approx(10)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])  # Pillow writes no transparent animated WebP
def test_see_through_animations_lie_on_white(kind: str) -> None:
    """As pictures do; a clip was black where its first frame as a picture was white."""
    frames = []
    for level in (40, 90, 140, 190):
        frame = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
        frame.paste((level, 0, 0, 255), (0, 0, 28, 56))
        frames.append(frame)
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=500, disposal=2)
    clip = load_clip(file.getvalue(), VideoOptions(resized_height=56, resized_width=56))
    for frame, level in zip(clip.frames, (40, 90, 140, 190), strict=True):
        assert frame[:, 28, 50].tolist() == [255, 255, 255]
        assert abs(int(frame[0, 28, 5]) - level) <= 1


def test_the_default_picture_of_a_png_is_not_played() -> None:
    """What old programs show instead of the animation came out as its first frame."""
    data = animate("PNG", [99, 1, 2, 3, 4], default_image=True)
    assert numbers_of(load_clip(data).frames) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_still_picture_is_a_clip_of_one_frame(kind: str, tmp_path: Path) -> None:
    """FFmpeg's words about demuxers told nobody what was wrong."""
    path = tmp_path / "still"
    Image.fromarray(drawn(77)).save(path, kind)
    for source in (path, path.read_bytes(), Image.fromarray(drawn(77))):
        clip = load_clip(source)
        assert numbers_of(clip.frames) == [77]
        assert clip.sampled_fps == 2
    with pytest.raises(UsageError, match="nframes 2 is more than the 1 frames"):
        load_clip(path, VideoOptions(nframes=2))


def test_pages_are_no_video() -> None:
    """A scanned document is not a film at two pages a second."""
    pages = [Image.fromarray(drawn(number)) for number in range(3)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(MediaFormatError, match="scan is a document of 3 pages, no video"):
        load_clip(file.getvalue(), name="scan")


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_animations_that_lack_their_end(kind: str) -> None:
    """What can be read is there for those who ask for it."""
    data = animate(kind, range(8))
    short = data[: int(len(data) * 0.6)]
    for strict in (None, True):
        with pytest.raises(MediaFormatError, match="short is cut off"):
            load_clip(short, VideoOptions(strict=strict), name="short")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip = load_clip(short, VideoOptions(strict=False), name="short")
    assert [str(warning.message).partition(":")[0] for warning in caught] == ["short is cut off"]
    numbers = numbers_of(clip.frames)
    assert numbers
    assert numbers == list(range(len(numbers)))


def test_parts_of_an_animation() -> None:
    """video_start and video_end choose by seconds here too."""
    clip = load_clip(
        animate("WEBP", range(20), 250), VideoOptions(video_start=2, video_end=3.75, fps=4)
    )
    assert numbers_of(clip.frames) == list(range(8, 16))
    assert torch.is_tensor(clip.frames)
    assert np.isclose(clip.sampled_fps, 4)


METADATA = {
    "a profile of 2 MB": chunk(b"iCCP", b"s\0\0" + zlib.compress(b"a" * 2_000_000)),
    "a text of 2 MB": chunk(b"zTXt", b"w\0\0" + zlib.compress(b"a" * 2_000_000)),
    "a plain text of 100 KB": chunk(b"tEXt", b"k\0" + b"a" * 100_000),
    "a wrong checksum": chunk(b"tEXt", b"k\0h", wrong=1),
    "short pHYs": chunk(b"pHYs", b"\0"),
    "empty gAMA": chunk(b"gAMA", b""),
    "damaged EXIF": chunk(b"eXIf", b"\0\x08junk"),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_metadata_do_not_decide_whether_a_png_is_a_clip(metadata: bytes) -> None:
    """Pillow read the file as it was, and refused what `load_picture` reads."""
    for numbers in ([1, 2, 3, 4], [77]):
        data = animate("PNG", numbers)
        data = data[:AFTER_HEADER] + metadata + data[AFTER_HEADER:]
        assert numbers_of(load_clip(data).frames) == numbers


def test_metadata_between_the_pictures_of_a_gif() -> None:
    """An application block without its content kept Pillow from reading what follows."""
    data = animate("GIF", [1, 2, 3, 4])
    start = 13 + (3 << (data[10] & 7) + 1)
    blocks = b"!\xff\x0bNETSCAPE2.0\x01\x01\0" + b"!\xfe\x03abc\0" + b"!\xff\0"
    assert numbers_of(load_clip(data[:start] + blocks + data[start:]).frames) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_turned_as_their_metadata_say(kind: str) -> None:
    """The metadata are removed before the frames are decoded; their one fact must stay."""
    data = animate(kind, [1, 2, 3, 4], exif=exif(orientation(6)))
    height, width = drawn(0).shape[:2]
    assert load_clip(data).original_size == (width, height)


def test_wrong_checksum_of_an_animations_pixels() -> None:
    """Pillow does not check them."""
    data = bytearray(animate("PNG", range(4)))
    data[data.rindex(b"fdAT") + 20] ^= 1
    with pytest.raises(MediaFormatError, match="wrong checksum of fdAT"):
        load_clip(bytes(data))


@pytest.mark.parametrize("kind", ["AVIF", "PPM", "JPEG2000", "ICO", "PNG", "BMP"])
def test_every_picture_format_is_a_still(kind: str) -> None:
    """Four of these went to the decoder of videos."""
    data = encoded(Image.new("RGB", (48, 48), (200, 10, 10)), kind)
    assert is_still(io.BytesIO(data))
    assert len(load_clip(data).frames) == 1
    pair = {"bytes": data, "path": None}
    assert list_videos([data] * 4) == [[data] * 4]
    assert list_videos([pair] * 2) == [[pair] * 2]


def test_an_animated_avif_is_a_clip() -> None:
    """It was a clip of its first picture."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 250)]
    first, *others = (Image.new("RGB", (56, 56), colour) for colour in colours)
    data = encoded(first, "AVIF", save_all=True, append_images=others, duration=250, quality=95)
    clip = load_clip(data)
    assert clip.source_fps == pytest.approx(4)
    for frame, colour in zip(clip.frames, colours, strict=True):
        assert np.abs(frame[:, 28, 28].numpy().astype(int) - colour).max() < 12
    assert not is_still(io.BytesIO(data))


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_animation_is_a_clip(kind: str) -> None:
    """Only the frame that it showed was taken; afterwards it shows that one again."""
    opened = Image.open(io.BytesIO(animate(kind, [5, 6, 7, 8])))
    opened.seek(2)
    assert numbers_of(load_clip(opened).frames) == [5, 6, 7, 8]
    assert opened.tell() == 2
    assert list_videos([opened, opened]) == [opened, opened]

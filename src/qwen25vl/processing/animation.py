"""Picture files as clips: animated GIF, WebP, PNG and AVIF, read with Pillow; a still picture is a
clip of one frame.

An animation states how long each of its pictures is shown. Encoders merge pictures that are equal
into one that is shown longer; where every duration is a whole multiple of the shortest, they are
taken apart again, so that a picture counts as often as it is shown. Durations up to 10 ms mean 100
ms, as in browsers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.containers import strip
from qwen25vl.processing.content import HEAD_BYTES, identify
from qwen25vl.processing.damage import Damage
from qwen25vl.processing.frame_lists import DEFAULT_FPS
from qwen25vl.processing.media import load_picture
from qwen25vl.processing.picture_file import MAX_DECODED_PIXELS, open_picture, refusing, turn
from qwen25vl.processing.pillow import pillow_switches
from qwen25vl.processing.png import is_animated_png
from qwen25vl.processing.tiff import find_pages

HEIF_SEQUENCES = (b"hevc", b"hevx", b"hevm", b"hevs", b"msf1")  # brands of films, for PyAV
SHORTEST_MS, UNSTATED_MS = 10, 100
MAX_REPEATED_FRAMES = 100_000
MOVING_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")  # as Pillow calls them


@dataclass(frozen=True)
class Animation:
    """The frames of an animation: pictures[i] is the picture in the file that frame i shows.

    times: seconds of each frame; fps: their mean rate.
    """

    pictures: tuple[int, ...]
    times: tuple[float, ...]
    fps: float
    damage: Damage


@dataclass(frozen=True)
class Pictures:
    """The pictures of one file as Pillow opened it, without its metadata.

    orientation: what the metadata said of them, 1 to 8; numbers: of those that are played.
    """

    opened: Image.Image
    orientation: int = 1

    @property
    def numbers(self) -> range:
        count = getattr(self.opened, "n_frames", 1)
        is_apart = getattr(self.opened, "default_image", False) and count > 1
        return range(1 if is_apart else 0, count)


def picture_format(file: BinaryIO) -> str | None:
    """The picture format of a file as `content` calls it, None where it holds no picture."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    content = identify(head)
    if content is None or (content.picture == "HEIC" and head[8:12] in HEIF_SEQUENCES):
        return None
    return content.picture or None


def is_moving(file: BinaryIO, kind: str) -> bool:
    """Whether a picture file of this format is an animation, by its header alone.
    A GIF counts as moving."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if kind == "PNG":
        return is_animated_png(file)
    if kind == "WebP":
        return head[12:16] == b"VP8X" and bool(head[20] & 0x02)
    if kind == "AVIF":
        return b"avis" in head[8 : int.from_bytes(head[:4], "big")]
    return kind == "GIF"


def is_still(file: BinaryIO) -> bool:
    """Whether a file is a picture that cannot move, by its header alone."""
    kind = picture_format(file)
    return kind is not None and not is_moving(file, kind)


def is_open_animation(source: object) -> bool:
    """Whether this is an open Pillow picture of several frames that are shown one after another."""
    if not isinstance(source, Image.Image) or source.format not in MOVING_FORMATS:
        return False
    return bool(getattr(source, "n_frames", 1) > 1)


def read_animation(pictures: Pictures, damage: Damage, name: str) -> Animation:
    """Count and time the pictures of a file. Raises MediaFormatError where none can be read."""
    with refusing(name):
        numbers = pictures.numbers
    first = numbers[0]
    durations = list(picture_durations(pictures.opened, numbers, name, damage))
    if len(durations) == 1:
        return Animation((first,), (0.0,), DEFAULT_FPS, damage)
    shortest, seconds = min(durations), sum(durations) / 1000
    counts = [round(duration / shortest) for duration in durations]
    is_even = all(
        abs(n * shortest - duration) < 0.5 for n, duration in zip(counts, durations, strict=True)
    )
    if not is_even or sum(counts) > MAX_REPEATED_FRAMES:
        counts = [1] * len(durations)
    shown = tuple(first + number for number, count in enumerate(counts) for _ in range(count))
    fps = len(shown) / seconds
    if is_even:
        times = tuple(i / fps for i in range(len(shown)))
    else:
        times = tuple(time / 1000 for time in accumulate(durations[:-1], initial=0))
    return Animation(shown, times, fps, damage)


def picture_durations(
    opened: Image.Image, numbers: Sequence[int], name: str, damage: Damage
) -> Iterator[float]:
    """Milliseconds of each picture that can be decoded, up to the first that cannot."""
    for done, number in enumerate(numbers):
        try:
            with refusing(name):
                opened.seek(number)
                opened.load()
        except MediaFormatError:
            if not done:
                raise
            damage.cut_off = f"{len(numbers) - done} of its {len(numbers)} pictures cannot be read"
            damage.missing_part = (len(numbers) - done) / len(numbers)
            return
        duration = float(opened.info.get("duration") or 0)
        yield duration if duration > SHORTEST_MS else UNSTATED_MS


def animation_frames(
    pictures: Pictures, numbers: Sequence[int], name: str
) -> Iterator[torch.Tensor]:
    """The pictures with these ascending numbers, one by one: uint8 [3, H, W]."""
    shown, pixels = None, torch.empty(0, dtype=torch.uint8, device="cpu")
    for number in numbers:
        if number != shown:
            with refusing(name):
                pictures.opened.seek(number)
            picture = turn(load_picture(pictures.opened, name=name), pictures.orientation)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            shown = number
        yield pixels


@contextmanager
def open_animation(data: bytes, kind: str, name: str) -> Iterator[Pictures]:
    """All frames of an animation, without its metadata."""
    with pillow_switches(MAX_DECODED_PIXELS):
        with refusing(name):
            stripped = strip(data, kind, name, keep_animation=True)
            opened = open_picture(stripped.data, kind, name)
        with opened:
            yield Pictures(opened, stripped.orientation)


@contextmanager
def open_still(data: bytes, kind: str, name: str) -> Iterator[Pictures]:
    """A still picture. Raises MediaFormatError for a TIFF of several pages."""
    if kind == "TIFF" and (num_pages := len(find_pages(data))) > 1:
        refuse_pages(num_pages, name)
    yield Pictures(load_picture(data, name=name))


@contextmanager
def borrow_animation(opened: Image.Image, name: str) -> Iterator[Pictures]:
    """A picture that the caller has opened; afterwards it shows the same frame as before."""
    position = opened.tell()
    try:
        with pillow_switches(MAX_DECODED_PIXELS):
            yield Pictures(opened)
    finally:
        opened.seek(position)


def refuse_pages(count: int, name: str) -> None:
    raise MediaFormatError(f"{name} is a document of {count} pages, no video; give it as pictures")


def check_end_mark(data: bytes, kind: str, damage: Damage) -> None:
    """Whether a GIF ends as it must; bytes of zero behind it are tolerated."""
    if kind == "GIF" and not data[-4096:].rstrip(b"\0").endswith(b";") and not damage.cut_off:
        damage.cut_off, damage.missing_part = "it lacks the end mark of a GIF", 1.0

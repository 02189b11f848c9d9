"""Picture files as clips: animated GIF, WebP and PNG, read with Pillow; a still picture is a clip
of one frame.

An animation states how long each of its pictures is shown. Encoders merge pictures that are equal
into one that is shown longer; where every duration is a whole multiple of the shortest, they are
taken apart again, so that a picture counts as often as it is shown. Durations up to 10 ms mean 100
ms, as in browsers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.damage import Damage
from qwen25vl.processing.frame_lists import DEFAULT_FPS
from qwen25vl.processing.media import load_picture
from qwen25vl.processing.picture_file import MAX_DECODED_PIXELS, refusing
from qwen25vl.processing.pillow import pillow_switches

SIGNATURES = {
    b"GIF8": "GIF", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
ANIMATED = ("GIF", "PNG", "WEBP")
SHORTEST_MS, UNSTATED_MS = 10, 100
MAX_REPEATED_FRAMES = 100_000


@dataclass(frozen=True)
class Animation:
    """The frames of an animation: pictures[i] is the picture in the file that frame i shows.

    times: seconds of each frame; fps: their mean rate.
    """

    pictures: tuple[int, ...]
    times: tuple[float, ...]
    fps: float
    damage: Damage


def picture_format(file: BinaryIO) -> str | None:
    """Pillow's name of the picture format of a file, None where it holds no picture."""
    file.seek(0)
    head = file.read(32)
    if head.startswith(b"RIFF"):
        return "WEBP" if head[8:12] == b"WEBP" else None
    return next((name for signature, name in SIGNATURES.items() if head.startswith(signature)), None)


def is_still(file: BinaryIO) -> bool:
    """Whether a file is a picture that cannot move, by its header alone. A GIF counts as
    moving."""
    kind = picture_format(file)
    file.seek(0)
    head = file.read(1 << 16)
    if kind == "PNG":
        return b"acTL" not in head.partition(b"IDAT")[0]
    if kind == "WEBP":
        return not (head[12:16] == b"VP8X" and head[20] & 0x02)
    return kind is not None and kind != "GIF"


def read_animation(file: BinaryIO, kind: str, name: str) -> Animation:
    """Count and time the pictures of a file. Raises MediaFormatError where none can be read, or a
    TIFF has pages."""
    damage = Damage()
    with open_pictures(file, kind, name) as opened:
        num_pictures = getattr(opened, "n_frames", 1)
        if kind not in ANIMATED:
            if kind == "TIFF" and num_pictures > 1:
                raise MediaFormatError(
                    f"{name} is a document of {num_pictures} pages, not a video; give pictures instead"
                )
            num_pictures = 1
        first = 1 if getattr(opened, "default_image", False) and num_pictures > 1 else 0
        durations = list(picture_durations(opened, range(first, num_pictures), name, damage))
    if kind == "GIF" and not has_end_mark(file) and not damage.cut_off:
        damage.cut_off, damage.missing_part = "it lacks the end mark of a GIF", 1.0
    if len(durations) == 1:
        return Animation((first,), (0.0,), DEFAULT_FPS, damage)
    shortest, seconds = min(durations), sum(durations) / 1000
    counts = [round(duration / shortest) for duration in durations]
    is_even = all(abs(n * shortest - duration) < 0.5 for n, duration in zip(counts, durations, strict=True))
    if not is_even or sum(counts) > MAX_REPEATED_FRAMES:
        counts = [1] * len(durations)
    pictures = tuple(first + number for number, count in enumerate(counts) for _ in range(count))
    fps = len(pictures) / seconds
    if is_even:
        times = tuple(i / fps for i in range(len(pictures)))
    else:
        times = tuple(time / 1000 for time in accumulate(durations[:-1], initial=0))
    return Animation(pictures, times, fps, damage)


def picture_durations(opened: Image.Image, numbers: Sequence[int], name: str, damage: Damage) -> Iterator[float]:
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


def animation_frames(file: BinaryIO, kind: str, pictures: Sequence[int], name: str) -> Iterator[torch.Tensor]:
    """The pictures with these ascending numbers, one by one: uint8 [3, H, W]."""
    with open_pictures(file, kind, name) as opened:
        shown, pixels = None, torch.empty(0, dtype=torch.uint8, device="cpu")
        for number in pictures:
            if number != shown:
                opened.seek(number)
                pixels = torch.from_numpy(np.array(load_picture(opened, name=name))).permute(2, 0, 1)
                shown = number
            yield pixels


@contextmanager
def open_pictures(file: BinaryIO, kind: str, name: str) -> Iterator[Image.Image]:
    file.seek(0)
    with pillow_switches(MAX_DECODED_PIXELS), refusing(name), Image.open(file, formats=[kind]) as opened:
        yield opened


def has_end_mark(file: BinaryIO) -> bool:
    """Whether a GIF ends as it must; bytes of zero behind it are tolerated."""
    length = file.seek(0, io.SEEK_END)
    file.seek(max(length - 4096, 0))
    return file.read().rstrip(b"\0").endswith(b";")

"""A picture in a file's bytes: decoded, turned upright, of any Pillow mode.

The content decides which decoder reads it. The decoder gets the file without its metadata
(containers.py, tiff.py).
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, features

from qwen25vl.errors import (
    DependencyError,
    MediaFormatError,
    MediaSizeError,
    MediaWarning,
    Qwen25VLError,
)
from qwen25vl.memory import require_bytes
from qwen25vl.processing.containers import strip
from qwen25vl.processing.content import identify, refusal
from qwen25vl.processing.orientation import Stripped
from qwen25vl.processing.pillow import pillow_switches
from qwen25vl.processing.pixels import to_rgb
from qwen25vl.processing.tiff import Page, extract_page, find_pages

MAX_DECODED_PIXELS = 178_956_970
BYTES_PER_DECODED_PIXEL = 14  # Pillow's 4, as many again to turn it, 6 while it becomes a tensor
CHECKED_PIXELS = 1 << 24  # above it, whether memory is enough is asked before decoding
REDUCTIONS = (2, 4, 8)
DEFAULT_ORIENTATION = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
REDUCED_FROM = "reduced_from"  # in a picture's `info`: (width, height) of the whole one
# format: (module, class, Pillow's name of what it must be built with)
PLUGINS = {
    "JPEG": ("JpegImagePlugin", "JpegImageFile", "jpg"),
    "PNG": ("PngImagePlugin", "PngImageFile", "zlib"),
    "WebP": ("WebPImagePlugin", "WebPImageFile", "webp"),
    "GIF": ("GifImagePlugin", "GifImageFile", ""),
    "BMP": ("BmpImagePlugin", "BmpImageFile", ""),
    "TIFF": ("TiffImagePlugin", "TiffImageFile", ""),
    "AVIF": ("AvifImagePlugin", "AvifImageFile", "avif"),
    "JPEG 2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile", "jpg_2000"),
    "PPM": ("PpmImagePlugin", "PpmImageFile", ""),
    "ICO": ("IcoImagePlugin", "IcoImageFile", ""),
}


def read_picture(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The picture in these bytes: the first frame of an animation, the first page of a TIFF.

    A JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth of its size, with
    a warning; its `info` then has the whole size. Raises MediaFormatError, MediaSizeError,
    DependencyError, OutOfMemoryError.
    """
    content = identify(data)
    if content is None or not content.picture:
        raise MediaFormatError(f"{name} {refusal(data)}")
    with pillow_switches(max_pixels), refusing(name):
        if content.picture == "TIFF":
            pages = find_pages(data)
            if len(pages) > 1:
                say_pages(name, len(pages))
            return read_page(data, pages[0] if pages else 0, name, max_pixels)
        if content.picture == "HEIC":
            return read_heic(strip(data, "HEIC", name).data, name, max_pixels)
        if content.picture == "ICO" and (png := largest_png(data)):
            return read_stripped(strip(png, "PNG", name), "PNG", name, max_pixels)
        return read_stripped(strip(data, content.picture, name), content.picture, name, max_pixels)


def read_pages(data: bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Every page of a TIFF; of any other format the one picture. Raises as `read_picture` does."""
    content = identify(data)
    pages = find_pages(data) if content and content.picture == "TIFF" else []
    if len(pages) < 2:
        yield read_picture(data, name, max_pixels)
        return
    for number, position in enumerate(pages, start=1):
        page_name = f"page {number} of {name}"
        with pillow_switches(max_pixels), refusing(page_name):
            picture = read_page(data, position, page_name, max_pixels)
        yield picture


def say_pages(name: str, count: int) -> None:
    text = f"{name} has {count} pages and only the first is taken; load_pages() gives them all"
    warnings.warn(text, MediaWarning, stacklevel=2)


def read_stripped(
    stripped: Stripped, picture_format: str, name: str, max_pixels: int,
) -> Image.Image:  # fmt: skip
    picture = open_picture(stripped.data, picture_format, name)
    reduced_from = reduce(picture, picture_format, name, max_pixels)
    width, height = picture.size
    check_size(width, height, name, max_pixels)
    picture.load()
    orientation = stripped.orientation
    if picture_format == "AVIF":  # what Pillow found in the boxes that turn a picture
        orientation = picture.getexif().get(0x0112, DEFAULT_ORIENTATION)
    if picture_format == "PPM" and picture.mode == "I":  # of 16 bits, and Pillow has scaled it
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    picture = turn(picture, orientation)
    if reduced_from:
        is_turned = orientation in (5, 6, 7, 8)
        picture.info[REDUCED_FROM] = reduced_from[::-1] if is_turned else reduced_from
    return picture


def read_page(data: bytes, position: int, name: str, max_pixels: int) -> Image.Image:
    page: Page = extract_page(data, position)
    picture = read_stripped(Stripped(page.data), "TIFF", name, max_pixels)
    if page.bits == 12 and picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.uint32) * 65535 // 4095
        picture = Image.fromarray(levels.astype(np.uint16))
    if page.is_inverted:
        picture = ImageOps.invert(to_rgb(picture))
    return turn(picture, page.orientation)


def open_picture(data: bytes, picture_format: str, name: str) -> Any:
    """Read the header only."""
    module, reader, feature = PLUGINS[picture_format]
    if feature and not features.check(feature):
        raise DependencyError(
            f"{name} is in {picture_format}, which this Pillow does not read: pip install -U pillow"
        )
    return getattr(import_module(f"PIL.{module}"), reader)(io.BytesIO(data))


def reduce(picture: Any, picture_format: str, name: str, max_pixels: int) -> tuple[int, int] | None:
    """Have a JPEG that is too large decoded smaller; its whole size (width, height), else None."""
    width, height = picture.size
    if picture_format != "JPEG" or width * height <= max_pixels:
        return None
    for by in REDUCTIONS:
        if -(-width // by) * -(-height // by) <= max_pixels:
            picture.draft(picture.mode, (width // by, height // by))
            warnings.warn(
                f"{name} of {width}×{height} pixels is decoded at 1/{by} of its size; "
                f"max_decoded_pixels={width * height} would decode it whole",
                MediaWarning,
                stacklevel=2,
            )
            return width, height
    return None


def check_size(width: int, height: int, name: str, max_pixels: int = MAX_DECODED_PIXELS) -> None:
    """Refuse a picture that is empty or too large, or does not fit into memory."""
    needed = width * height * BYTES_PER_DECODED_PIXEL
    if width * height > max_pixels:
        raise MediaSizeError(
            f"{name} has {width}×{height} pixels; at most {max_pixels} are decoded "
            f"(max_decoded_pixels raises that; this one would take {needed / 1e9:.1f} GB of memory)"
        )
    if width * height <= 0:
        raise MediaFormatError(f"{name} has no pixels: {width}×{height}")
    if width * height > CHECKED_PIXELS:
        require_bytes(needed, torch.device("cpu"), f"{name} of {width}×{height} pixels")


def turn(picture: Image.Image, orientation: int) -> Image.Image:
    """Upright, as EXIF's number says."""
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def read_heic(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """libheif turns the picture itself."""
    try:
        import pillow_heif
    except ImportError:
        remedy = 'pip install "qwen25vl[heif]"'
        raise DependencyError(f"{name} is a HEIC picture, which needs {remedy}") from None
    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
    width, height = file.size
    check_size(width, height, name, max_pixels)
    picture: Image.Image = file.to_pillow()
    return picture


def largest_png(data: bytes) -> bytes:
    """The largest picture of an icon where it is a PNG, else b""."""
    count = min(int.from_bytes(data[4:6], "little"), (len(data) - 6) // 16)
    entries = [struct.unpack_from("<BBBBHHII", data, 6 + 16 * i) for i in range(count)]
    if not entries:
        return b""
    *_, size, offset = max(entries, key=lambda e: ((e[0] or 256) * (e[1] or 256), e[5]))
    png = data[offset : offset + size]
    return png if png.startswith(b"\x89PNG\r\n\x1a\n") else b""


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Damaged files can raise anything from inside Pillow;
    to callers they are all one kind of error.
    """
    try:
        yield
    except (Qwen25VLError, MediaWarning, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise MediaSizeError(
            f"{name} has too many pixels in one of its parts, by its header"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MediaFormatError(f"{name} is cut off or damaged: {reason}") from error

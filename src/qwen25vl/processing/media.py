"""Any source of a picture becomes RGB of 8 bits, its orientation applied; docs/media.md says what
becomes of what.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from qwen25vl.errors import MediaFormatError, UsageError
from qwen25vl.processing.pdf import PdfPage
from qwen25vl.processing.pdf_sources import open_pages
from qwen25vl.processing.picture_file import (
    MAX_DECODED_PIXELS,
    REDUCED_FROM,
    check_size,
    read_pages,
    read_picture,
    refusing,
    turn,
)
from qwen25vl.processing.pillow import pillow_switches
from qwen25vl.processing.pixels import picture_from_array, to_rgb, to_uint8
from qwen25vl.processing.sources import load_bytes, source_name
from qwen25vl.processing.tiff import read_orientation

__all__ = ["load_bytes", "load_pages", "load_picture", "original_size", "source_name", "to_uint8"]

MAX_PICTURE_BYTES = 1 << 30
EXIF_ORIENTATION = 0x0112


def load_picture(
    source: Any, *, name: str | None = None, max_decoded_pixels: int | None = None
) -> Image.Image:
    """Load any source of a picture as a PIL picture of mode RGB; errors call it `name`.

    max_decoded_pixels: decoding takes up to 14 bytes per pixel. A larger JPEG is decoded at a half,
    a quarter or an eighth of its size, with a warning, and `original_size` gives its full size;
    any other larger picture is refused.

    Raises MediaNotFoundError (nothing there), MediaFormatError (no picture, another format, cut off
    or damaged), MediaSizeError (too many pixels, found before decoding), DependencyError (HEIC
    needs an extra), OutOfMemoryError, UsageError (not a source).
    """
    name = name or source_name(source)
    limit = MAX_DECODED_PIXELS if max_decoded_pixels is None else max_decoded_pixels
    if isinstance(source, np.ndarray | torch.Tensor):
        picture = picture_from_array(source, name)
        check_size(*picture.size, name, limit)
        return to_rgb(picture)
    if isinstance(source, Image.Image):
        return load_open_picture(source, name, limit)
    if isinstance(source, PdfPage):
        return page_picture(source, limit)
    data = load_bytes(source, name=name, max_bytes=MAX_PICTURE_BYTES)
    picture = read_picture(data, name, limit)
    with refusing(name):
        return with_original_size(to_rgb(picture), picture)


def load_pages(
    source: Any,
    *,
    pages: Any = None,
    name: str | None = None,
    max_decoded_pixels: int | None = None,
) -> list[Image.Image]:
    """Load every page of a TIFF or a PDF document, in order; other formats have one.

    pages: of a PDF document, as 3, "3-7" or [1, 4]. Its pages have 144 dots per inch. Other options
    and errors as in `load_picture`.
    """
    limit = MAX_DECODED_PIXELS if max_decoded_pixels is None else max_decoded_pixels
    if (found := open_pages(source, pages)) is not None:
        return [page_picture(page, limit) for page in found]
    name = name or source_name(source)
    if pages is not None:
        raise UsageError(f"pages chooses pages of a PDF document, which {name} is not")
    if isinstance(source, np.ndarray | torch.Tensor | Image.Image | PdfPage):
        return [load_picture(source, name=name, max_decoded_pixels=max_decoded_pixels)]
    data = load_bytes(source, name=name, max_bytes=MAX_PICTURE_BYTES)
    with refusing(name):
        return [with_original_size(to_rgb(page), page) for page in read_pages(data, name, limit)]


def page_picture(page: PdfPage, max_pixels: int) -> Image.Image:
    """A page of a document at 144 dots per inch."""
    height, width = page.pixels
    check_size(width, height, page.name, max_pixels)
    return Image.fromarray(page.render(height, width))


def load_open_picture(picture: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """The current frame of a picture that is already open; the caller's object stays as it is, but
    loaded. Where Pillow fails at it, its file is read once more, without its metadata.
    """
    with pillow_switches(max_pixels):
        try:
            with refusing(name):
                check_size(*picture.size, name, max_pixels)
                picture.load()
                upright = turn(picture, open_orientation(picture))
                return with_original_size(to_rgb(upright), picture)
        except MediaFormatError:
            if (data := own_content(picture)) is None:
                raise
        again = read_picture(data, name, max_pixels)
        with refusing(name):
            return with_original_size(to_rgb(again), again)


def own_content(picture: Image.Image) -> bytes | None:
    """The file of an open picture that shows its first frame; None where it cannot be had."""
    stream = getattr(picture, "fp", None)
    if stream is None or stream.closed or not stream.seekable() or picture.tell():
        return None
    position = stream.tell()
    try:
        stream.seek(0)
        return bytes(stream.read(MAX_PICTURE_BYTES))
    finally:
        stream.seek(position)


def open_orientation(picture: Image.Image) -> int:
    """What the open picture says; where Pillow cannot read its EXIF, what can be found of it."""
    try:
        found = picture.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything from inside Pillow
        exif = picture.info.get("exif")
        found = read_orientation(exif) if isinstance(exif, bytes) else None
    return found if isinstance(found, int) else 1


def original_size(picture: Image.Image) -> tuple[int, int]:
    """(height, width) of the picture as given, of which `load_picture` may have
    decoded a smaller one.
    """
    width, height = picture.info.get(REDUCED_FROM, picture.size)
    return height, width


def with_original_size(result: Image.Image, decoded: Image.Image) -> Image.Image:
    """Conversions may leave `info` behind."""
    if REDUCED_FROM in decoded.info:
        result.info[REDUCED_FROM] = decoded.info[REDUCED_FROM]
    return result

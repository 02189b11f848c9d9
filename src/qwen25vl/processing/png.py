"""PNG's chunks: a copy with those of pixels only, and whether they are an animation."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.orientation import Orientation, Stripped

MAX_METADATA_BYTES = 1 << 20  # of a compressed text, unpacked
XMP_KEYWORD, EXIF_KEYWORDS = (
    b"XML:com.adobe.xmp",
    (b"Raw profile type exif", b"Raw profile type APP1"),
)
PALETTE, GREY, RGB = 3, 0, 2  # PNG's colour types
PIXELS, ANIMATION = (b"IHDR", b"IDAT"), (b"acTL", b"fcTL", b"fdAT")
ANIMATION_BYTES = 8  # of acTL
END = b"\0\0\0\0IEND\xaeB`\x82"


def strip_png(data: bytes, name: str, *, keep_animation: bool = False) -> Stripped:
    """Header, palette, transparency, pixels and end; with keep_animation also all of its frames.

    Raises MediaFormatError for a wrong checksum of what belongs to pixels. The end has no content,
    so that its checksum does not matter.
    """
    orientation = Orientation()
    kept = [data[:8]]
    depth, colours = 8, RGB
    is_animation = False
    for kind, start, end in png_chunks(data):
        body, stored = data[start:end], data[end : end + 4]
        is_right = len(stored) < 4 or zlib.crc32(kind + body) == int.from_bytes(stored, "big")
        if kind == b"acTL":
            is_animation = keep_animation and len(body) >= ANIMATION_BYTES
        is_pixels = kind in PIXELS or (kind == b"PLTE" and colours == PALETTE)
        is_pixels |= is_animation and kind in ANIMATION
        if is_pixels and not is_right:
            raise MediaFormatError(f"{name} is damaged: wrong checksum of {kind.decode()}")
        if kind == b"IHDR" and len(body) >= 13:
            depth, colours = body[8], body[9]
        if is_pixels:
            kept.append(data[start - 8 : end + 4])
        elif kind == b"tRNS" and is_right and (body := transparency(body, depth, colours)):
            kept.append(struct.pack(">I", len(body)) + kind + body)
            kept.append(struct.pack(">I", zlib.crc32(kind + body)))
        elif kind == b"IEND":
            kept.append(END)
        else:
            take_metadata(kind, body, orientation)
    return Stripped(b"".join(kept), orientation.value)


def is_animated_png(file: BinaryIO) -> bool:
    """Whether a file announces several frames before its pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"acTL":
            return int.from_bytes(file.read(4), "big") > 1
        if kind in (b"IDAT", b"IEND"):
            return False
        file.seek(length + 4, io.SEEK_CUR)
    return False


def take_metadata(kind: bytes, body: bytes, orientation: Orientation) -> None:
    if kind == b"eXIf":
        orientation.take_exif(body)
    elif kind in (b"tEXt", b"zTXt", b"iTXt"):
        take_png_text(kind, body, orientation)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of every chunk's body up to IEND; the last one may be cut off."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, min(position + 8 + length, len(data))
        position += 12 + length
        if kind == b"IEND":
            return


def transparency(body: bytes, depth: int, colours: int) -> bytes:
    """PNG's transparent colour at the depth at which Pillow compares it:
    8 bits, or 16 of a grey picture.

    Samples of 2 and 4 bits are spread to 8, of colours with 16 bits the upper 8 are left. b"" where
    it is too short or has no place in such a picture.
    """
    if colours == PALETTE:
        return body
    num_samples = {GREY: 1, RGB: 3}.get(colours, 0)
    if not num_samples or len(body) < 2 * num_samples:
        return b""
    samples = [value & ((1 << depth) - 1) for value in struct.unpack_from(f">{num_samples}H", body)]
    if colours == GREY and depth in (2, 4):
        samples = [value * 255 // ((1 << depth) - 1) for value in samples]
    if colours == RGB and depth == 16:
        samples = [value >> 8 for value in samples]
    return struct.pack(f">{num_samples}H", *samples)


def take_png_text(kind: bytes, body: bytes, orientation: Orientation) -> None:
    """EXIF as ImageMagick writes it, in hexadecimal figures, and XMP; nothing of other texts."""
    keyword, _, text = body.partition(b"\0")
    if keyword not in (XMP_KEYWORD, *EXIF_KEYWORDS):
        return
    is_packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]  # language and translated keyword
    if is_packed:
        try:
            text = zlib.decompressobj().decompress(text, MAX_METADATA_BYTES)
        except zlib.error:
            return
    if keyword == XMP_KEYWORD:
        orientation.take_xmp(text)
        return
    with contextlib.suppress(ValueError, UnicodeDecodeError):
        orientation.take_exif(bytes.fromhex(b"".join(text.split()[2:]).decode("ascii")))

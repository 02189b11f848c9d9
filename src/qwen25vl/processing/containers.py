"""Copies of picture files without their metadata, and the one fact in it that matters: the
orientation.

Profiles, texts, thumbnails and previews may be large, damaged or of an unknown kind; no decoder is
to read them, so none can fail on them. What belongs to pixels is copied as it is: where that is
damaged, decoding fails.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.tiff import read_orientation, read_xmp_orientation

MAX_METADATA_BYTES = 1 << 20  # of a compressed text, unpacked
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
XMP_KEYWORD, EXIF_KEYWORDS = (
    b"XML:com.adobe.xmp",
    (b"Raw profile type exif", b"Raw profile type APP1"),
)
EXIF_ITEM = re.compile(rb"infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2}Exif", re.DOTALL)
PALETTE, GREY, RGB = 3, 0, 2  # PNG's colour types


@dataclass(frozen=True)
class Stripped:
    """A file without metadata, and its orientation as EXIF counts it, 1 to 8."""

    data: bytes
    orientation: int = 1


class Orientation:
    """The first valid word of EXIF; else XMP's, which editors leave behind more often than they
    correct it.
    """

    def __init__(self) -> None:
        self.of_exif: int | None = None
        self.of_xmp: int | None = None

    def take_exif(self, block: bytes) -> None:
        self.of_exif = self.of_exif or read_orientation(block)

    def take_xmp(self, block: bytes) -> None:
        self.of_xmp = self.of_xmp or read_xmp_orientation(block)

    @property
    def value(self) -> int:
        return self.of_exif or self.of_xmp or 1


def strip(data: bytes, picture_format: str, name: str) -> Stripped:
    """Raises MediaFormatError for a wrong checksum of pixels; whatever else is damaged is left to
    the decoder.
    """
    strippers: dict[str, Callable[[bytes], Stripped]] = {
        "JPEG": strip_jpeg, "WebP": strip_webp, "GIF": strip_gif,
        "AVIF": strip_boxes, "HEIC": strip_boxes,
        "BMP": widen_bmp_palette,
        "JPEG 2000": strip_jp2,
    }  # fmt: skip
    if picture_format == "PNG":
        return strip_png(data, name)
    return strippers[picture_format](data) if picture_format in strippers else Stripped(data)


def strip_png(data: bytes, name: str) -> Stripped:
    """Header, palette, transparency, pixels and end. Of an animation the default picture stays."""
    orientation = Orientation()
    kept = [data[:8]]
    depth, colours = 8, RGB
    for kind, start, end in png_chunks(data):
        body, stored = data[start:end], data[end : end + 4]
        is_right = len(stored) < 4 or zlib.crc32(kind + body) == int.from_bytes(stored, "big")
        is_pixels = kind in (b"IHDR", b"IDAT", b"IEND") or (kind == b"PLTE" and colours == PALETTE)
        if is_pixels and not is_right:
            raise MediaFormatError(f"{name} is damaged: wrong checksum of {kind.decode()}")
        if kind == b"IHDR" and len(body) >= 13:
            depth, colours = body[8], body[9]
        if is_pixels:
            kept.append(data[start - 8 : end + 4])
        elif kind == b"tRNS" and is_right and (body := transparency(body, depth, colours)):
            kept.append(struct.pack(">I", len(body)) + kind + body)
            kept.append(struct.pack(">I", zlib.crc32(kind + body)))
        elif kind == b"eXIf":
            orientation.take_exif(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            take_png_text(kind, body, orientation)
    return Stripped(b"".join(kept), orientation.value)


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
    """PNG's transparent colour at the depth at which Pillow compares it: 8 bits, or 16 of a grey
    picture.

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


def strip_jpeg(data: bytes) -> Stripped:
    """Without comments and application segments, but for those that tell how colours are stored.

    These are JFIF's and Adobe's, where they are long enough to be read. From the first scan on all
    is copied.
    """
    orientation = Orientation()
    kept = [data[:2]]
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        if marker in (0x00, 0x01, *range(0xD0, 0xD9)):  # no length follows
            position += 2
            continue
        if marker in (0xDA, 0xD9):  # the scan, the end
            kept.append(data[position:])
            break
        end = position + 2 + max(int.from_bytes(data[position + 2 : position + 4], "big"), 2)
        body = data[position + 4 : end]
        if marker == 0xE1:
            if body.startswith(b"Exif\0"):
                orientation.take_exif(body[6:])
            elif body.startswith(XMP_PREFIX):
                orientation.take_xmp(body)
        is_jfif = marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        is_adobe = marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        if is_jfif or is_adobe or marker not in (0xFE, *range(0xE0, 0xF0)):
            kept.append(data[position:end])
        position = end
    return Stripped(b"".join(kept), orientation.value)


def strip_webp(data: bytes) -> Stripped:
    """Header, alpha, pixels and frames; the header's flags no longer announce what is gone."""
    orientation = Orientation()
    kept = []
    for kind, start, end in riff_chunks(data):
        body = data[start:end]
        if kind == b"EXIF":
            orientation.take_exif(body)
        elif kind == b"XMP ":
            orientation.take_xmp(body)
        elif kind == b"VP8X" and body:
            flags = body[0] & ~(0x20 | 0x08 | 0x04)  # profile, EXIF, XMP
            kept.append(data[start - 8 : start] + bytes([flags]) + body[1:])
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(data[start - 8 : end] + b"\0" * ((end - start) % 2))
    packed = b"WEBP" + b"".join(kept)
    return Stripped(b"RIFF" + struct.pack("<I", len(packed)) + packed, orientation.value)


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the body of every chunk; the last one may be cut off."""
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, min(position + 8 + length, len(data))
        position += 8 + length + length % 2


def strip_gif(data: bytes) -> Stripped:
    """Without comments and application blocks before the first picture; whole graphic controls
    stay.
    """
    if len(data) < 13:
        return Stripped(data)
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept = [data[:position]]
    while data[position : position + 1] == b"!":
        end = position + 2
        while end < len(data) and data[end]:
            end += 1 + data[end]
        end += 1
        block = data[position:end]
        if block[1:3] == b"\xf9\x04":
            kept.append(block)
        position = end
    return Stripped(b"".join(kept) + data[position:])


def widen_bmp_palette(data: bytes) -> Stripped:
    """A BMP of 4 or 8 bits a pixel with a palette of greys gets one more colour, which no pixel
    has.

    Pillow takes a palette of black and white, or 0, 1, 2, …, for no palette and reads the pixels as
    bits or bytes.
    """
    if len(data) < 54:
        return Stripped(data)
    (pixels_at, header) = struct.unpack_from("<II", data, 10)
    (bits,) = struct.unpack_from("<H", data, 28)
    num_colours = struct.unpack_from("<I", data, 46)[0] or 1 << bits
    end = 14 + header + 4 * num_colours
    if header < 40 or bits not in (4, 8) or (bits == 8 and num_colours > 2) or end > pixels_at:
        return Stripped(data)
    copy = bytearray(data[:end] + b"\0\0\xff\0" + data[end:])
    struct.pack_into("<I", copy, 10, pixels_at + 4)
    struct.pack_into("<I", copy, 46, num_colours + 1)
    return Stripped(bytes(copy))


def strip_jp2(data: bytes) -> Stripped:
    """Without what its header says of resolution, and without colour descriptions too short to be
    read.
    """
    if data[4:8] != b"jP  ":  # a bare code stream
        return Stripped(data)
    kept = []
    for kind, start, end, head in boxes(data, 0, len(data)):
        if kind != b"jp2h":
            kept.append(data[start - head : end])
            continue
        inner = []
        for inner_kind, inner_start, inner_end, inner_head in boxes(data, start, end):
            is_short = inner_kind == b"colr" and inner_end - inner_start < 7
            if inner_kind != b"res " and not is_short:
                inner.append(data[inner_start - inner_head : inner_end])
        body = b"".join(inner)
        kept.append(struct.pack(">I4s", 8 + len(body), kind) + body)
    return Stripped(b"".join(kept))


def boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(kind, start and end of the body, bytes before it) of ISO's boxes; a size of 0 reaches to the
    end.
    """
    while position + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, position)
        head = 8
        if size == 1 and position + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, position + 8)
            head = 16
        following = position + size if size >= head else end
        yield kind, position + head, min(following, end), head
        position = following


def strip_boxes(data: bytes) -> Stripped:
    """AVIF and HEIC: the items that hold EXIF get a type that nobody reads. What turns the picture
    is no metadata in these formats, and the decoder does it.
    """
    copy = bytearray(data)
    for found in EXIF_ITEM.finditer(data, 0, MAX_METADATA_BYTES):
        copy[found.end() - 4 : found.end()] = b"skip"
    return Stripped(bytes(copy))

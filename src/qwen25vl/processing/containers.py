"""Copies of picture files without their metadata.

Profiles, texts, thumbnails and previews may be large, damaged or of an unknown kind; no decoder is
to read them, so none can fail on them. What belongs to pixels is copied as it is: where that is
damaged, decoding fails.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from qwen25vl.processing.orientation import Orientation, Stripped
from qwen25vl.processing.png import strip_png

MAX_SEARCHED_BYTES = 1 << 20
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
EXIF_ITEM = re.compile(rb"infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2}Exif", re.DOTALL)


def strip(
    data: bytes, picture_format: str, name: str, *, keep_animation: bool = False,
) -> Stripped:  # fmt: skip
    """Of an animated PNG the default picture stays, with keep_animation all frames; of other
    animations all frames.

    Raises MediaFormatError for a wrong checksum of pixels;
    whatever else is damaged is left to the decoder.
    """
    strippers: dict[str, Callable[[bytes], Stripped]] = {
        "JPEG": strip_jpeg, "WebP": strip_webp, "GIF": strip_gif,
        "AVIF": strip_boxes, "HEIC": strip_boxes,
        "BMP": widen_bmp_palette,
        "JPEG 2000": strip_jp2,
    }  # fmt: skip
    if picture_format == "PNG":
        return strip_png(data, name, keep_animation=keep_animation)
    return strippers[picture_format](data) if picture_format in strippers else Stripped(data)


def strip_jpeg(data: bytes) -> Stripped:
    """Without comments and application segments, but for those that tell how colours are stored.

    These are JFIF's and Adobe's, where they are long enough to be read.
    From the first scan on all is copied.
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
    """Without comments, texts and application blocks; whole graphic controls stay."""
    if len(data) < 13:
        return Stripped(data)
    position = 13 + colour_table_bytes(data[10])
    kept = [data[:position]]
    while position < len(data) and data[position : position + 1] != b";":
        kind = data[position : position + 1]
        if kind == b"!":
            end = sub_blocks_end(data, position + 2)
            if data[position + 1 : position + 3] == b"\xf9\x04":
                kept.append(data[position:end])
        elif kind == b"," and position + 10 <= len(data):
            pixels = position + 10 + colour_table_bytes(data[position + 9])
            end = sub_blocks_end(data, pixels + 1)  # behind the width of the first code
            kept.append(data[position:end])
        else:  # decoders skip such bytes too
            end = position + 1
        position = end
    return Stripped(b"".join(kept) + data[position : position + 1])


def colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def sub_blocks_end(data: bytes, position: int) -> int:
    """Behind the empty block that ends a row of GIF's blocks, each led by its length."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1


def widen_bmp_palette(data: bytes) -> Stripped:
    """A BMP of 4 or 8 bits a pixel with a palette of greys gets one more colour,
    which no pixel has.

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
    """Without what its header says of resolution,
    and without colour descriptions too short to be read.
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
    """(kind, start and end of the body, bytes before it) of ISO's boxes;
    a size of 0 reaches to the end.
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
    for found in EXIF_ITEM.finditer(data, 0, MAX_SEARCHED_BYTES):
        copy[found.end() - 4 : found.end()] = b"skip"
    return Stripped(bytes(copy))

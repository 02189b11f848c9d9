"""Small picture files made by hand: chunks of a PNG, segments of a JPEG, chunks of a WebP, entries
of a TIFF.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
AFTER_HEADER = 33  # signature and IHDR of a PNG


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    """A PNG's; `wrong` spoils its checksum."""
    checksum = zlib.crc32(kind + body) ^ wrong
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, colours: int, rows: bytes, *extra: bytes) -> bytes:
    """rows: with their filter bytes; extra: chunks between header and pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return PNG_SIGNATURE + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def segment(marker: int, body: bytes) -> bytes:
    """A JPEG's."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """An EXIF block of (tag, type, count, four bytes)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    body = b"".join(struct.pack(order + "HHI4s", *entry) for entry in entries)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(entries)) + body + bytes(4)


def orientation(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return (0x112, 3, 1, struct.pack(order + "HH", value, 0))


def tiff(
    width: int, height: int, bits: int, photometric: int, pixels: bytes,
    *extra: tuple[int, int, int, int], order: str = "<",
) -> bytes:  # fmt: skip
    """An uncompressed grey TIFF; extra: more (tag, type, count, value)."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height),
        (279, 4, 1, len(pixels)), *extra,
    ]  # fmt: skip
    start = 8 + len(pixels) + len(pixels) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + pixels + bytes(len(pixels) % 2) + directory(sorted(entries), order)


def directory(entries: Sequence[tuple[int, int, int, int]], order: str) -> bytes:
    packed = b""
    for tag, kind, count, value in entries:
        short = struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else b""
        packed += struct.pack(order + "HHI", tag, kind, count) + (
            short or struct.pack(order + "I", value)
        )
    return struct.pack(order + "H", len(entries)) + packed + bytes(4)

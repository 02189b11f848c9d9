"""Pictures, clips and documents, damaged in the ways of someone who knows their formats.

Each mutant follows from its seed alone, but for the random numbers that Matroska files have.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

from media_files import document, drawn, drawn_document, picture
from videos import write_video

INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 65500)
SIDES = (0, 1, 27, 200, 5000, 30_000, 65_535, 1 << 20, 0x7FFFFFFF)
Mutator = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def flip_head(data: bytes, dice: random.Random) -> bytes:
    """Headers are where formats are fragile."""
    return flip(data[:96], dice) + data[96:]


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: len(data) * dice.randint(0, 63) // 64]


def cut_out(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + data[start + dice.randint(1, 64) :]


def repeat(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    end = start + dice.randint(1, 256)
    return data[:end] + data[start:end] * dice.randint(1, 8) + data[end:]


def overwrite(data: bytes, dice: random.Random) -> bytes:
    """A number of two or four bytes becomes an extreme one."""
    form = dice.choice(("<I", ">I", "<H", ">H"))
    size = struct.calcsize(form)
    at = dice.randrange(max(1, min(len(data), dice.choice((64, 512, 1 << 30))) - size))
    value = dice.choice(INTEGERS) & (256**size - 1)
    return data[:at] + struct.pack(form, value) + data[at + size :]


def garbage(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    length = dice.randint(1, 128)
    return data[:start] + dice.randbytes(length) + data[start + length :]


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return chunks


def join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        parts += [struct.pack(">I", len(body)), kind, body]
        parts.append(struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)


def change_png(data: bytes, dice: random.Random) -> bytes:
    """Another header, or other chunks in another order, all with right checksums."""
    chunks = png_chunks(data)
    if not chunks:
        return flip(data, dice)
    deed = dice.randrange(5)
    if deed == 0:
        depth, colours = dice.choice((1, 2, 4, 8, 16, 3)), dice.choice((0, 2, 3, 4, 6, 1))
        sides = dice.choice(SIDES), dice.choice(SIDES)
        rest = bytes((depth, colours, 0, 0, dice.randrange(3)))
        chunks[0] = (b"IHDR", struct.pack(">II", *sides) + rest)
    elif deed == 1:
        dice.shuffle(chunks)
    elif deed == 2:
        chunks.insert(dice.randrange(len(chunks)), dice.choice(chunks))
    elif deed == 3:
        at = dice.randrange(len(chunks))
        chunks[at] = (chunks[at][0], flip(chunks[at][1] or b"\0", dice))
    else:
        names = (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"zTXt")
        chunks.insert(1, (dice.choice(names), dice.randbytes(dice.randint(0, 64))))
    return join_png(chunks)


def jpeg_segments(data: bytes) -> list[bytes]:
    """The segments of a JPEG; the last has all from its scan on."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at:end])
        at = end
    return [*parts, data[at:]]


def change_jpeg(data: bytes, dice: random.Random) -> bytes:
    parts = jpeg_segments(data)
    if len(parts) < 3:
        return flip(data, dice)
    deed = dice.randrange(5)
    frames = [i for i, part in enumerate(parts) if part[1:2] in (b"\xc0", b"\xc1", b"\xc2")]
    if deed == 0 and frames:
        at = frames[0]
        sides = struct.pack(">HH", dice.choice(SIDES) & 0xFFFF, dice.choice(SIDES) & 0xFFFF)
        parts[at] = parts[at][:5] + sides + parts[at][9:]
    elif deed == 1:
        middle = parts[1:-1]
        dice.shuffle(middle)
        parts[1:-1] = middle
    elif deed == 2:
        parts.insert(1, dice.choice(parts[1:]))
    elif deed == 3:
        body = b"Exif\0\0" + dice.choice((b"II*\0", b"MM\0*")) + dice.randbytes(dice.randint(0, 80))
        parts.insert(1, b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    else:
        at = dice.randrange(1, len(parts))
        length = struct.pack(">H", dice.choice(INTEGERS) & 0xFFFF)
        parts[at] = parts[at][:2] + length + parts[at][4:]
    return b"".join(parts)


def change_box(data: bytes, dice: random.Random) -> bytes:
    """A length before a name of four letters, as RIFF, ISO's boxes and PDF's numbers have them."""
    names = [i for i in range(4, len(data) - 8) if data[i : i + 4].isalpha()]
    if not names:
        return overwrite(data, dice)
    at = dice.choice(names)
    at = dice.choice((at - 4, at + 4))
    return data[:at] + struct.pack(">I", dice.choice(INTEGERS)) + data[at + 4 :]


def change_number(data: bytes, dice: random.Random) -> bytes:
    """A number of a PDF document: an offset, a length, the number of an object, a size."""
    at = [i for i in range(len(data)) if data[i : i + 1].isdigit()]
    if not at:
        return flip(data, dice)
    start = end = dice.choice(at)
    while data[end : end + 1].isdigit():
        end += 1
    number = dice.choice((b"0", b"-1", b"1", b"4294967296", b"99999999999", b"2147483647", b"1e30"))
    return data[:start] + number + data[end:]


def change_word(data: bytes, dice: random.Random) -> bytes:
    """A PDF document whose keys have each other's values."""
    words = (b"/Kids", b"/Parent", b"/Count", b"/Contents", b"/MediaBox", b"/Filter", b"/Length",
             b"/Resources", b"/XObject", b"/Width", b"/Type", b"/Root", b"/Prev")  # fmt: skip
    there = [word for word in words if word in data]
    if not there:
        return flip(data, dice)
    return data.replace(dice.choice(there), dice.choice(words), dice.randint(1, 3))


PLAIN: tuple[Mutator, ...] = (flip, flip_head, cut, cut_out, repeat, overwrite, garbage)


def picture_seeds() -> list[tuple[bytes, tuple[Mutator, ...]]]:
    made = [("PNG", mode, {}) for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")]
    made += [("JPEG", mode, options) for mode in ("RGB", "L", "CMYK")
             for options in ({}, {"progressive": True}, {"subsampling": 2})]  # fmt: skip
    made += [("WEBP", mode, options) for mode in ("RGB", "RGBA")
             for options in ({}, {"lossless": True})]  # fmt: skip
    made += [("GIF", mode, {}) for mode in ("P", "L")]
    made += [("BMP", mode, {}) for mode in ("RGB", "P", "1", "L")]
    own: dict[str, tuple[Mutator, ...]] = {
        "PNG": (change_png,) * 3,
        "JPEG": (change_jpeg,) * 3,
        "WEBP": (change_box,),
    }
    seeds = [
        (picture(kind, mode, seed=number, **options), (*PLAIN, *own.get(kind, ())))
        for number, (kind, mode, options) in enumerate(made)
    ]
    return [*seeds, *((moving(kind), (*PLAIN, change_box)) for kind in ("GIF", "WEBP", "PNG"))]


def moving(kind: str) -> bytes:
    file = io.BytesIO()
    first, *others = [drawn(seed=seed) for seed in range(4)]
    first.save(file, kind, save_all=True, append_images=others, duration=100)
    return file.getvalue()


def clip_seeds() -> list[tuple[bytes, tuple[Mutator, ...]]]:
    kinds = (("h264", "mp4"), ("hevc", "mp4"), ("mpeg4", "avi"), ("vp8", "webm"), ("vp9", "webm"),
             ("h264", "matroska"), ("h264", "mpegts"), ("mjpeg", "mov"))  # fmt: skip
    times = range(0, 1200, 100)
    clips = [write_video(codec, container, times_ms=times) for codec, container in kinds]
    return [(clip, (*PLAIN, change_box, change_box)) for clip in (*clips, moving("GIF"))]


def document_seeds() -> list[tuple[bytes, tuple[Mutator, ...]]]:
    mutators = (*PLAIN, change_number, change_number, change_word, change_word)
    return [(data, mutators) for data in (document(3), drawn_document(2), drawn_document(1))]


def mutants(seeds: list[tuple[bytes, tuple[Mutator, ...]]], count: int) -> Iterator[bytes]:
    for number in range(count):
        dice = random.Random(number)
        data, mutators = seeds[number % len(seeds)]
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            data = dice.choice(mutators)(data, dice).ljust(8, b"\0")
        yield data

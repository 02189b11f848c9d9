"""TIFF's directories of tags, which EXIF uses too:
orientation, pages, and a copy with the tags of pixels only.

A directory is a count, entries of (tag, type, count, value or offset) and the offset of the next
directory. BigTIFF has the same with wider fields.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

MAX_DIRECTORIES = 10_000
SUBFILE, BITS, PHOTOMETRIC, ORIENTATION, XMP = 254, 258, 262, 274, 700
WIDTH, HEIGHT, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP = 256, 257, 273, 277, 278
PLANAR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS = 284, 322, 323, 324
PLANES_APART = 2
REDUCED_OR_MASK = 0b101  # NewSubfileType: a preview of another page, or its mask
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
PIXEL_TAGS = frozenset({
    256, 257, BITS, 259, PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323,
    324, 325, 332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532,
})  # fmt: skip
TYPE_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}


@dataclass(frozen=True)
class TagEntry:
    """One tag; `values` are its whole numbers where they lie in the entry or can be followed,
    else ().
    """

    tag: int
    type: int
    count: int
    position: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How numbers and directories are written: "<" or ">", and the wide form of BigTIFF or not."""

    order: str
    is_big: bool

    @property
    def entry_bytes(self) -> int:
        return 20 if self.is_big else 12

    @property
    def count_code(self) -> str:
        return self.order + ("Q" if self.is_big else "H")

    @property
    def offset_code(self) -> str:
        return self.order + ("Q" if self.is_big else "I")


def read_layout(data: bytes) -> Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    version = number(data, 2, f"{order}H") if order else None
    return Layout(order, version == 43) if order and version in (42, 43) else None


def number(data: bytes, position: int, code: str) -> int | None:
    """None where the data ends before it."""
    size = struct.calcsize(code)
    if not 0 <= position <= len(data) - size:
        return None
    value = struct.unpack_from(code, data, position)[0]
    return value if isinstance(value, int) else None


def first_directory(data: bytes, layout: Layout) -> int:
    return number(data, 8 if layout.is_big else 4, layout.offset_code) or 0


def read_directory(data: bytes, layout: Layout, position: int) -> tuple[list[TagEntry], int]:
    """The entries that are there, however many are announced,
    and the next directory's position or 0.
    """
    announced = number(data, position, layout.count_code) if position else None
    if announced is None:
        return [], 0
    start = position + struct.calcsize(layout.count_code)
    there = min(announced, max(len(data) - start, 0) // layout.entry_bytes)
    entries = [read_entry(data, layout, start + i * layout.entry_bytes) for i in range(there)]
    following = number(data, start + announced * layout.entry_bytes, layout.offset_code) or 0
    return entries, following


def read_entry(data: bytes, layout: Layout, position: int) -> TagEntry:
    tag, kind = struct.unpack_from(layout.order + "HH", data, position)
    count = number(data, position + 4, layout.offset_code) or 0
    value_at = position + (12 if layout.is_big else 8)
    code = TYPE_CODES.get(kind)
    if code is None or not 1 <= count <= 8:
        return TagEntry(tag, kind, count, position, ())
    if struct.calcsize(code) * count > struct.calcsize(layout.offset_code):
        value_at = number(data, value_at, layout.offset_code) or 0
    step = struct.calcsize(code)
    values = [number(data, value_at + i * step, layout.order + code) for i in range(count)]
    return TagEntry(
        tag, kind, count, position, tuple(value for value in values if value is not None)
    )


def read_tag(entries: list[TagEntry], tag: int) -> int | None:
    return next((entry.values[0] for entry in entries if entry.tag == tag and entry.values), None)


def read_orientation(exif: bytes) -> int | None:
    """1 to 8 from an EXIF block, with or without its prefix, or None;
    whatever else it says may be damaged.
    """
    data = exif.removeprefix(b"Exif\0\0")
    layout = read_layout(data)
    if layout is None:
        return None
    entries, _ = read_directory(data, layout, first_directory(data, layout))
    found = read_tag(entries, ORIENTATION)
    return found if found in range(1, 9) else None


def read_xmp_orientation(xmp: bytes) -> int | None:
    """What editors write beside EXIF or instead of it."""
    found = re.search(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])", xmp)
    return int(found[1]) if found else None


def find_pages(data: bytes) -> list[int]:
    """The positions of the directories that are pages; previews and masks are none."""
    layout = read_layout(data)
    if layout is None:
        return []
    pages: list[int] = []
    seen: set[int] = set()
    position = first_directory(data, layout)
    while position and position not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(position)
        entries, following = read_directory(data, layout, position)
        if entries and not (pages and (read_tag(entries, SUBFILE) or 0) & REDUCED_OR_MASK):
            pages.append(position)
        position = following
    return pages


@dataclass(frozen=True)
class Page:
    """One page as a file of its own. bits: of one sample; is_inverted:
    0 is white, and its decoder ignores that.
    """

    data: bytes
    orientation: int
    bits: int
    is_inverted: bool


def extract_page(data: bytes, position: int) -> Page:
    """A copy in which the directory at `position` is the only one and has only the tags of pixels.

    Sizes, offsets and types of all other tags can then no longer keep the page from being read.
    Raises ValueError for fewer strips or tiles than the page needs.
    """
    layout = read_layout(data)
    entries = read_directory(data, layout, position)[0] if layout else []
    if layout is None or not entries:
        return Page(data, 1, 8, False)
    check_parts(entries)
    orientation = read_tag(entries, ORIENTATION) or 1
    bits = read_tag(entries, BITS) or 1
    is_inverted = read_tag(entries, PHOTOMETRIC) == WHITE_IS_ZERO and bits > 8
    copy = bytearray(data)
    struct.pack_into(layout.offset_code, copy, 8 if layout.is_big else 4, position)
    positions = [entry.position for entry in entries if entry.tag in PIXEL_TAGS]
    kept = [data[start : start + layout.entry_bytes] for start in positions]
    if is_inverted:
        kept = [as_black_is_zero(entry, layout) for entry in kept]
    end = struct.pack(layout.offset_code, 0)
    directory = struct.pack(layout.count_code, len(kept)) + b"".join(kept) + end
    copy[position : position + len(directory)] = directory
    return Page(bytes(copy), orientation, bits, is_inverted)


def check_parts(entries: list[TagEntry]) -> None:
    """Raise ValueError where pixels have no strip or tile; decoders leave those black."""
    width, height = read_tag(entries, WIDTH) or 0, read_tag(entries, HEIGHT) or 0
    if there := next((entry.count for entry in entries if entry.tag == TILE_OFFSETS), 0):
        tile_width, tile_height = read_tag(entries, TILE_WIDTH), read_tag(entries, TILE_HEIGHT)
        needed = -(-width // (tile_width or width or 1)) * -(
            -height // (tile_height or height or 1)
        )
    else:
        there = next((entry.count for entry in entries if entry.tag == STRIP_OFFSETS), 0)
        needed = -(-height // (read_tag(entries, ROWS_PER_STRIP) or height or 1))
    if read_tag(entries, PLANAR) == PLANES_APART:
        needed *= read_tag(entries, SAMPLES) or 1
    if 0 < there < needed:
        raise ValueError(f"it has {there} strips or tiles of pixels, and needs {needed}")


def as_black_is_zero(entry: bytes, layout: Layout) -> bytes:
    """The entry of PHOTOMETRIC with the other value; any other one as it is."""
    if struct.unpack_from(layout.order + "H", entry)[0] != PHOTOMETRIC:
        return entry
    value = struct.pack(layout.order + "H", BLACK_IS_ZERO)
    start = 12 if layout.is_big else 8
    fixed = (
        struct.pack(layout.order + "HH", PHOTOMETRIC, 3)
        + struct.pack(layout.offset_code, 1)
        + value
    )
    return fixed + bytes(layout.entry_bytes - start - len(value))

"""A TrueType font with a few letters, each a filled square or rectangle, made in memory."""

import struct

UNITS = 1000


def table_of_letters(letters: str) -> bytes:
    """The cmap table, format 12: letter number i is glyph i + 1; glyph 0 stands for all others."""
    groups = b"".join(
        struct.pack(">3I", ord(letter), ord(letter), index + 1)
        for index, letter in sorted(enumerate(letters), key=lambda item: item[1])
    )
    header = struct.pack(">HHIII", 12, 0, 16 + len(groups), 0, len(letters))
    return struct.pack(">HHHHI", 0, 1, 3, 10, 12) + header + groups


def rectangle(width: int, height: int) -> bytes:
    """A glyph: one contour of four points on the line."""
    points = struct.pack(">hhhhh", 1, 0, 0, width, height) + struct.pack(">HH", 3, 0) + b"\x01" * 4
    xs = struct.pack(">4h", 0, width, 0, -width)
    ys = struct.pack(">4h", 0, 0, height, 0)
    data = points + xs + ys
    return data + b"\0" * (-len(data) % 4)


def small_font(letters: str) -> bytes:
    """The bytes of a font file that has these letters and no others."""
    glyphs = [rectangle(400, 800)] + [rectangle(500, 300 + 40 * i) for i in range(len(letters))]
    places = [sum(len(glyph) for glyph in glyphs[:count]) for count in range(len(glyphs) + 1)]
    count = len(glyphs)
    zeros = [0] * 4
    tables = {
        b"cmap": table_of_letters(letters),
        b"glyf": b"".join(glyphs),
        b"head": struct.pack(">IIIIHHqq", 0x10000, 0, 0, 0x5F0F3CF5, 0, UNITS, 0, 0)
        + struct.pack(">hhhhHHhhh", 0, 0, 500, 800, 0, 8, 2, 1, 0),
        b"hhea": struct.pack(">IhhhHhhhhhhhhhhhH", 0x10000, 800, -200, 0, 600, 0, 0, 500, 1, 0, 0,
                             *zeros, 0, count),
        b"hmtx": struct.pack(">Hh", 600, 0) * count,
        b"loca": struct.pack(f">{len(places)}I", *places),
        b"maxp": struct.pack(">IH13H", 0x10000, count, 4, 1, 0, 0, 2, *[0] * 8),
    }  # fmt: skip
    offset = 12 + 16 * len(tables)
    records, bodies = b"", b""
    for name, data in tables.items():
        records += name + struct.pack(">III", 0, offset + len(bodies), len(data))
        bodies += data + b"\0" * (-len(data) % 4)
    header = struct.pack(">IHHHH", 0x10000, len(tables), 64, 2, len(tables) * 16 - 64)
    return header + records + bodies

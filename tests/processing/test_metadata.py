"""Metadata never decides whether a picture can be read;
of all of it only the orientation counts."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from processing.picture_files import (
    AFTER_HEADER,
    chunk,
    directory,
    encoded,
    exif,
    orientation,
    riff_chunk,
    segment,
    tiff,
)

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.media import load_picture

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
PIXELS = np.asarray(PICTURE)
PNG = encoded(PICTURE)
JPEG = encoded(PICTURE, "JPEG")
WEBP = encoded(PICTURE, "WEBP", lossless=True)
GIF = encoded(PICTURE.quantize(64), "GIF")
TIFF = encoded(PICTURE, "TIFF")
LARGE = zlib.compress(bytes(2_000_000))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def plain(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


PNG_CHUNKS = {
    "large profile": chunk(b"iCCP", b"screen\0\0" + LARGE),
    "profile of an unknown method": chunk(b"iCCP", b"screen\0\7" + LARGE),
    "profile without an end of its name": chunk(b"iCCP", b"screen"),
    "empty profile": chunk(b"iCCP", b""),
    "large packed text": chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "packed text of an unknown method": chunk(b"zTXt", b"workflow\0\7" + LARGE),
    "packed text that is damaged": chunk(b"zTXt", b"workflow\0\0garbage"),
    "large international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "international text of an unknown method": chunk(b"iTXt", b"workflow\0\1\7\0\0" + LARGE),
    "international text that is not UTF-8": chunk(b"iTXt", b"k\0\0\0\xff\0\xff\0\xff"),
    "many texts": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000))) * 70,
    "EXIF that is none": chunk(b"eXIf", b"\0\x08\0\2\1\x12\0\3"),
    "EXIF that is cut off": chunk(b"eXIf", exif(orientation(1))[6:-9]),
    "empty EXIF": chunk(b"eXIf", b""),
    "ImageMagick's EXIF that is damaged": chunk(
        b"tEXt", b"Raw profile type exif\0\nexif\n  9\nxyz"
    ),
    "short pHYs": chunk(b"pHYs", b"\0\0"),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short cHRM": chunk(b"cHRM", b"\0" * 5),
    "empty sRGB": chunk(b"sRGB", b""),
    "short acTL": chunk(b"acTL", b"\0"),
    "acTL of no frames": chunk(b"acTL", bytes(8)),
    "short fcTL": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\0"),
    "fcTL out of order": chunk(b"fcTL", struct.pack(">I", 9) + bytes(22)),
    "fcTL beyond the picture": chunk(b"fcTL", struct.pack(">IIIII", 0, 900, 900, 0, 0) + bytes(6)),
    "short transparency": chunk(b"tRNS", b"\0"),
    "palette that nobody needs": chunk(b"PLTE", b"\1\2"),
    "wrong checksum of text": chunk(b"tEXt", b"k\0hello", wrong=1),
    "wrong checksum of EXIF": chunk(b"eXIf", exif(orientation(1))[6:], wrong=1),
    "wrong checksum of transparency": chunk(b"tRNS", bytes(6), wrong=1),
    "unknown chunk with a wrong checksum": chunk(b"vpAg", b"xyz", wrong=1),
    "time that can not be": chunk(b"tIME", b"\xff"),
    "background too short": chunk(b"bKGD", b""),
    "histogram without palette": chunk(b"hIST", b"\0"),
}


@pytest.mark.parametrize("extra", PNG_CHUNKS.values(), ids=PNG_CHUNKS)
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_png_chunks_that_are_no_pixels(extra: bytes, place: str) -> None:
    """Screenshots and pictures from generators were refused for a profile, a text or a checksum
    beside the pixels.
    """
    position = AFTER_HEADER if place == "before the pixels" else len(PNG) - 12
    assert np.array_equal(load_picture(PNG[:position] + extra + PNG[position:]), PIXELS)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_wrong_checksum_of_pixels(kind: bytes) -> None:
    """Forgiving checksums of metadata must not forgive those of pixels."""
    position = PNG.index(kind)
    length = int.from_bytes(PNG[position - 4 : position], "big")
    damaged = bytearray(PNG)
    damaged[position + 4 + length] ^= 1
    with pytest.raises(MediaFormatError, match=r"damaged: wrong checksum of I"):
        load_picture(bytes(damaged))


def test_wrong_checksum_of_a_palette() -> None:
    """The palette is colour, not metadata."""
    data = bytearray(encoded(PICTURE.quantize(16)))
    data[data.index(b"PLTE") + 4] ^= 1
    with pytest.raises(MediaFormatError, match="wrong checksum of PLTE"):
        load_picture(bytes(data))


def test_damaged_pixels_of_png() -> None:
    """A wrong byte among the pixels, under a right checksum, is still an error."""
    position = PNG.index(b"IDAT")
    length = int.from_bytes(PNG[position - 4 : position], "big")
    body = bytearray(PNG[position + 4 : position + 4 + length])
    body[len(body) // 2] ^= 0xFF
    damaged = PNG[: position - 4] + chunk(b"IDAT", bytes(body)) + PNG[position + 8 + length :]
    with pytest.raises(MediaFormatError):
        load_picture(damaged)


JPEG_SEGMENTS = {
    "short Adobe": segment(0xEE, b"Adobe"),
    "shorter Adobe": segment(0xEE, b"Adobe\0"),
    "Adobe without transform": segment(0xEE, b"Adobe\0d\0\0\0\0"),
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "JFIF of three bytes": segment(0xE0, b"JFI"),
    "JFIF without an end": segment(0xE0, b"JFIF"),
    "JFIF of seven bytes": segment(0xE0, b"JFIF\0\1\1"),
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "profile with a wrong part": segment(0xE2, b"ICC_PROFILE\0\7\1abc"),
    "short EXIF": segment(0xE1, b"Exif\0\0"),
    "EXIF that is none": segment(0xE1, b"Exif\0\0garbage garbage"),
    "EXIF that points away": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    "EXIF that points to itself": segment(0xE1, exif((0x8769, 4, 1, b"\x08\0\0\0"))),
    "short MPF": segment(0xE2, b"MPF\0"),
    "damaged MPF": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0garbage"),
    "MPF of two pictures that are gone": segment(0xE2, b"MPF\0" + b"II*\0\x08\0\0\0" + directory(
        [(0xB001, 4, 1, 2), (0xB002, 7, 32, 50)], "<") + bytes(32)),
    "short Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\4"),
    "Photoshop with a wrong length": segment(0xED,
                                             b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff"),
    "FlashPix": segment(0xE2, b"FPXR\0"),
    "empty segments": b"".join(segment(marker, b"") for marker in (*range(0xE0, 0xF0), 0xFE)),
    "comment that is no text": segment(0xFE, b"\xff\xd8\xff\xda\xff"),
    "fill bytes": b"\xff" * 9 + segment(0xFE, b"x"),
}  # fmt: skip


@pytest.mark.parametrize("extra", JPEG_SEGMENTS.values(), ids=JPEG_SEGMENTS)
def test_jpeg_segments_that_are_no_pixels(extra: bytes) -> None:
    """Photos from phones and editors were refused for a segment that they
    could have been shown without.
    """
    picture = load_picture(JPEG[:2] + extra + JPEG[2:])
    assert np.array_equal(picture, plain(JPEG))


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
@pytest.mark.parametrize("keep_rgb", [False, True])
def test_segments_that_tell_colours_stay(mode: str, keep_rgb: bool) -> None:
    """Without Adobe's segment inverted CMYK is a negative,
    and RGB without transform is read as YCbCr.
    """
    options = {"keep_rgb": True} if keep_rgb and mode == "RGB" else {}
    data = encoded(PICTURE.convert(mode), "JPEG", quality=95, **options)
    assert np.array_equal(load_picture(data), plain(data))


ODD_TAGS = {
    "XResolution as text": (0x11A, 2, 4, b"72\0\0"),
    "BitsPerSample of -5": (0x102, 9, 1, struct.pack("<i", -5)),
    "ImageLength of -5": (0x101, 8, 1, struct.pack("<i", -5)),
    "unknown type": (0x10F, 99, 1, b"abcd"),
    "count beyond the file": (0x10F, 2, 0xFFFFFFFF, b"abcd"),
    "sub-directory that loops": (0x8769, 4, 1, b"\x08\0\0\0"),
    "GPS that points away": (0x8825, 4, 1, b"\xff\xff\xff\xff"),
    "compression as text": (0x103, 2, 4, b"none"),
    "thumbnail that is gone": (0x201, 4, 1, b"\xff\xff\0\0"),
}


@pytest.mark.parametrize("odd", ODD_TAGS.values(), ids=ODD_TAGS)
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_odd_tags_beside_the_orientation(
    odd: tuple[int, int, int, bytes], file_format: str
) -> None:
    """A turned photo was refused, or taken as it lies,
    for a tag that has nothing to do with its pixels.
    """
    block = exif(orientation(6), odd) if odd[0] > 0x112 else exif(odd, orientation(6))
    if file_format == "JPEG":
        data = JPEG[:2] + segment(0xE1, block) + JPEG[2:]
    elif file_format == "PNG":
        data = PNG[:AFTER_HEADER] + chunk(b"eXIf", block[6:]) + PNG[AFTER_HEADER:]
    elif file_format == "WEBP":
        data = extended_webp(riff_chunk(b"EXIF", block), flags=0x08)
    else:
        if odd[0] in (0x101, 0x102, 0x103):
            pytest.skip("these tags are a TIFF's own size and form")
        extra = (odd[0], odd[1], odd[2], int.from_bytes(odd[3], "little"))
        data = tiff(64, 48, 8, 1, bytes(64 * 48), (0x112, 3, 1, 6), extra)
    assert load_picture(data).size == (48, 64)


def extended_webp(*extra: bytes, flags: int) -> bytes:
    """The WebP in its extended form, with chunks after its pixels."""
    header = (
        struct.pack("<BBBB", flags, 0, 0, 0)
        + (63).to_bytes(3, "little")
        + (47).to_bytes(3, "little")
    )
    body = b"WEBP" + riff_chunk(b"VP8X", header) + WEBP[12:] + b"".join(extra)
    return b"RIFF" + struct.pack("<I", len(body)) + body


WEBP_CHUNKS = {
    "EXIF that is none": (riff_chunk(b"EXIF", b"Exif\0\0garbage garbage"), 0x08),
    "EXIF of an odd length": (riff_chunk(b"EXIF", b"x"), 0x08),
    "EXIF that is cut off": (b"EXIF" + struct.pack("<I", 5000) + b"II*\0", 0x08),
    "XMP that is none": (riff_chunk(b"XMP ", b"\xff\0<"), 0x04),
    "profile after the pixels": (riff_chunk(b"ICCP", b"garbage"), 0x20),
    "flags of what is not there": (b"", 0x2C),
    "unknown chunk": (riff_chunk(b"abcd", b"\0" * 9), 0),
}


@pytest.mark.parametrize(("extra", "flags"), WEBP_CHUNKS.values(), ids=WEBP_CHUNKS)
def test_webp_chunks_that_are_no_pixels(extra: bytes, flags: int) -> None:
    """A WebP was refused for EXIF that begins with nothing known."""
    assert np.array_equal(load_picture(extended_webp(extra, flags=flags)), PIXELS)


def test_webp_alpha_stays() -> None:
    """The flags that are cleared stand in one byte with alpha and animation."""
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    for options in ({"lossless": True}, {"quality": 90}):
        assert load_picture(encoded(clear, "WEBP", exact=True, exif=b"Exif\0\0x",
                                    **options)).getpixel((0, 0)) == (
            255, 255, 255,
        )  # fmt: skip


GIF_BLOCKS = {
    "comment of many parts": b"!\xfe" + (b"\xff" + bytes(255)) * 9 + b"\0",
    "empty comment": b"!\xfe\0",
    "application block without a name": b"!\xff\0",
    "NETSCAPE without a count": b"!\xff\x0bNETSCAPE2.0\0",
    "NETSCAPE with a short count": b"!\xff\x0bNETSCAPE2.0\1\1\0",
    "profile": b"!\xff\x0bICCRGBG1012\3abc\0",
    "short graphic control": b"!\xf9\1\0\0",
    "empty graphic control": b"!\xf9\0",
    "plain text": b"!\1\x0c" + bytes(12) + b"\0",
    "unknown block": b"!\x77\2ab\0",
}


@pytest.mark.parametrize("extra", GIF_BLOCKS.values(), ids=GIF_BLOCKS)
def test_gif_blocks_that_are_no_pixels(extra: bytes) -> None:
    """A short control or application block made a GIF unreadable."""
    position = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
    assert np.array_equal(load_picture(GIF[:position] + extra + GIF[position:]), plain(GIF))


TIFF_TAGS = {
    "resolution as text": (282, 2, 4, 0x3032),
    "resolution beyond the file": (282, 5, 1, 0x7FFFFFFF),
    "description beyond the file": (270, 2, 0x7FFFFFFF, 0x7FFFFFFF),
    "profile beyond the file": (34675, 7, 0x10000000, 9),
    "profile of an unknown type": (34675, 77, 3, 9),
    "XMP that is none": (700, 1, 4, 0xFFFFFFFF),
    "EXIF that points away": (34665, 4, 1, 0x7FFFFFFF),
    "EXIF that loops": (34665, 4, 1, 8),
    "Photoshop": (34377, 1, 0x1000000, 0),
    "orientation of 77": (274, 3, 1, 77),
    "orientation as text": (274, 2, 2, 0x36),
    "orientation of 0": (274, 3, 1, 0),
    "page number as float": (297, 11, 1, 0),
    "resolution unit of -1": (296, 8, 1, 0xFFFF),
    "sub-directories beyond the file": (330, 4, 9, 0x7FFFFFFF),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extra", TIFF_TAGS.values(), ids=TIFF_TAGS)
def test_tiff_tags_that_are_no_pixels(extra: tuple[int, int, int, int], order: str) -> None:
    """Scans were refused for tags of resolution, profile or EXIF."""
    grey = np.random.default_rng(3).integers(0, 256, (48, 64), dtype=np.uint8)
    picture = load_picture(tiff(64, 48, 8, 1, grey.tobytes(), extra, order=order))
    assert np.array_equal(np.asarray(picture)[..., 0], grey)


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "1"])
def test_tiff_without_metadata_has_the_same_pixels(mode: str, compression: str) -> None:
    """A tag that pixels need was taken for metadata."""
    if compression == "jpeg" and mode in ("P", "RGBA", "1"):
        pytest.skip("JPEG in TIFF has no such mode")
    data = encoded(PICTURE.convert(mode), "TIFF", compression=compression)
    ours = load_picture(data)
    expected = load_picture(Image.open(io.BytesIO(data)))
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_found_everywhere(value: int, order: str) -> None:
    """The orientation was lost with the rest of the metadata, or read in one byte order only."""
    block = exif(orientation(value, order), order=order)
    hexadecimal = b"\nexif\n%8d\n" % len(block) + block.hex().encode()
    size = (48, 64) if value > 4 else (64, 48)
    sources = {
        "JPEG": JPEG[:2] + segment(0xE1, block) + JPEG[2:],
        "JPEG after a damaged one": JPEG[:2]
        + segment(0xE1, b"Exif\0\0x")
        + segment(0xE1, block)
        + JPEG[2:],
        "PNG": PNG[:AFTER_HEADER] + chunk(b"eXIf", block[6:]) + PNG[AFTER_HEADER:],
        "PNG with a prefix": PNG[:AFTER_HEADER] + chunk(b"eXIf", block) + PNG[AFTER_HEADER:],
        "PNG at its end": PNG[:-12] + chunk(b"eXIf", block[6:]) + PNG[-12:],
        "PNG of ImageMagick": PNG[:-12]
        + chunk(b"tEXt", b"Raw profile type exif\0" + hexadecimal)
        + PNG[-12:],
        "packed": PNG[:-12]
        + chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(hexadecimal))
        + PNG[-12:],
        "WebP": extended_webp(riff_chunk(b"EXIF", block), flags=0x08),
        "WebP without prefix": extended_webp(riff_chunk(b"EXIF", block[6:]), flags=0x08),
    }
    for name, data in sources.items():
        assert load_picture(data).size == size, name


def test_orientation_of_xmp() -> None:
    """Some editors write the orientation only there; where EXIF says one, that counts."""
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    element = b"<tiff:Orientation>8</tiff:Orientation>"
    packet = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    assert load_picture(JPEG[:2] + packet + JPEG[2:]).size == (48, 64)
    assert load_picture(
        JPEG[:2] + segment(0xE1, exif(orientation(1))) + packet + JPEG[2:]
    ).size == (64, 48)
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + element)
    assert load_picture(PNG[:AFTER_HEADER] + text + PNG[AFTER_HEADER:]).size == (48, 64)
    assert load_picture(extended_webp(riff_chunk(b"XMP ", xmp), flags=0x04)).size == (48, 64)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


JP2_BOXES = {
    "short resolution": box(b"res ", b"\0"),
    "short resolution inside": box(b"res ", box(b"resc", b"\0\0")),
    "resolution of 0": box(b"res ", box(b"resc", bytes(10))),
    "short colour": box(b"colr", b"\2"),
    "unknown box": box(b"abcd", b""),
}


@pytest.mark.parametrize("extra", JP2_BOXES.values(), ids=JP2_BOXES)
def test_jpeg_2000_boxes_that_are_no_pixels(extra: bytes) -> None:
    """A short word about resolution made a scan unreadable."""
    data = encoded(PICTURE, "JPEG2000")
    position = data.index(b"jp2h") - 4
    length = int.from_bytes(data[position : position + 4], "big")
    header = box(b"jp2h", data[position + 8 : position + length] + extra)
    after = data[position + length :]
    assert np.array_equal(load_picture(data[:position] + header + after), PIXELS)
    assert np.array_equal(
        load_picture(data[:position] + box(b"xml ", b"<") + header + after), PIXELS
    )


def test_avif_with_damaged_exif() -> None:
    """An AVIF was refused for EXIF that begins with nothing known."""
    tags = Image.Exif()
    tags[0x10E] = "a description"
    whole = encoded(PICTURE, "AVIF", exif=tags)
    header = next(magic for magic in (b"II*\0", b"MM\0*") if magic in whole)
    for garbage in (b"garb", bytes(4), header[:2] + b"\xff\xff"):
        assert load_picture(whole.replace(header, garbage)).size == (64, 48)


@pytest.mark.parametrize("value", range(1, 9))
def test_avif_is_turned_once(value: int) -> None:
    """What turns an AVIF stands in its boxes; EXIF repeats it, and must not turn it again."""
    tags = Image.Exif()
    tags[0x112] = value
    corner = Image.new("RGB", (64, 48), "black")
    corner.paste("white", (0, 0, 16, 16))
    turned = load_picture(encoded(corner, "AVIF", exif=tags, quality=100))
    assert turned.size == ((48, 64) if value > 4 else (64, 48))
    expected = {
        1: (0, 0),
        2: (1, 0),
        3: (1, 1),
        4: (0, 1),
        5: (0, 0),
        6: (1, 0),
        7: (1, 1),
        8: (0, 1),
    }[value]
    x, y = (8 if end == 0 else side - 8 for end, side in zip(expected, turned.size, strict=True))
    assert turned.getpixel((x, y))[0] > 200


def test_open_picture_with_damaged_exif() -> None:
    """A picture that the caller opened was refused for EXIF that only its
    orientation was wanted from.
    """
    data = JPEG[:2] + segment(0xE1, exif(orientation(6), ODD_TAGS["unknown type"])) + JPEG[2:]
    assert load_picture(Image.open(io.BytesIO(data))).size == (48, 64)
    garbage = Image.open(io.BytesIO(JPEG))
    garbage.info["exif"] = b"Exif\0\0garbage garbage"
    assert load_picture(garbage).size == (64, 48)


@pytest.mark.parametrize("end", [chunk(b"IEND", b"", wrong=1), chunk(b"IEND", b"abc"), b""])
def test_the_end_of_a_png_decides_nothing(end: bytes) -> None:
    """It has no content; its wrong checksum kept whole pictures from being read."""
    data = encoded(Image.new("RGB", (8, 8), (10, 200, 30)))
    assert load_picture(data[:-12] + end).getpixel((3, 3)) == (10, 200, 30)


@pytest.mark.parametrize("reserved", [b"abcd", b"\0\0\0\1", b"\xff" * 4])
def test_reserved_bytes_of_a_bmp(reserved: bytes) -> None:
    """Programs write their own marks there."""
    data = encoded(Image.new("RGB", (8, 8), (10, 200, 30)), "BMP")
    assert load_picture(data[:6] + reserved + data[10:]).getpixel((3, 3)) == (10, 200, 30)


@pytest.mark.parametrize(
    "late",
    [
        chunk(b"zTXt", b"w\0\0" + zlib.compress(b"a" * 2_000_000)),
        chunk(b"tEXt", b"k\0h", wrong=1),
        chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)),
    ],
)
def test_an_open_png_with_text_behind_its_pixels(late: bytes) -> None:
    """Pillow reads it only while it decodes, and then refused the picture."""
    data = encoded(Image.new("RGB", (8, 8), (10, 200, 30)))
    opened = Image.open(io.BytesIO(data[:-12] + late + data[-12:]))
    assert load_picture(opened).getpixel((3, 3)) == (10, 200, 30)


def test_planes_without_pixels() -> None:
    """Planes that the file does not have came out black, in a wrong colour without a word."""
    data = tiff(8, 8, 8, 2, b"\x0a" * 64 + b"\xc8" * 64 + b"\x1e" * 64, (284, 3, 1, 2))
    data = data.replace(
        struct.pack("<HHIHH", 277, 3, 1, 1, 0), struct.pack("<HHIHH", 277, 3, 1, 3, 0)
    )
    with pytest.raises(MediaFormatError, match="1 strips or tiles of pixels, and needs 3"):
        load_picture(data)

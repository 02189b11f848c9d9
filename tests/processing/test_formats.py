"""Each format, mode and kind of array has its stated result; what is no picture is named."""

import io
import json
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile
from processing.picture_files import chunk, encoded, png, tiff

from qwen25vl.errors import DependencyError, MediaFormatError, MediaSizeError, MediaWarning
from qwen25vl.processing.media import load_pages, load_picture, original_size
from qwen25vl.processing.pillow import pillow_switches

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
PIXELS = np.asarray(PICTURE)


@pytest.mark.parametrize(
    "file_format", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF"]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_lossless_formats_give_their_pixels(file_format: str, mode: str) -> None:
    """A format that only some modes were tried in gave other colours in the rest."""
    options = {"WEBP": {"lossless": True, "exact": True}, "ICO": {"sizes": [(64, 48)]},
               "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(file_format, {})  # fmt: skip
    source = PICTURE.convert(mode)
    try:
        data = encoded(source, file_format, **options)
    except (OSError, ValueError):
        pytest.skip(f"{file_format} has no mode {mode}")
    given = np.asarray(load_picture(source)).astype(int)
    read = np.asarray(load_picture(data)).astype(int)
    assert np.abs(given - read).max() <= (3 if file_format == "AVIF" else 0)


@pytest.mark.parametrize("content", [
    b"P1\n# a comment\n2 1\n0 1\n", b"P2 2 1 15\n15 0\n", b"P3\n2 1\n255\n255 255 255 0 0 0\n",
    b"P4\n2 1\n\x40", b"P5 2 1 255\n\xff\0", b"P5\n2 1\n65535\n\xff\xff\0\0",
    b"P6\r\n2 1\r255\n\xff\xff\xff\0\0\0", b"P6 2 1 65535 " + b"\xff" * 6 + bytes(6),
])  # fmt: skip
def test_portable_pixmaps(content: bytes) -> None:
    """Only one of the six kinds was tried."""
    picture = load_picture(content)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLACK]


def test_dark_files_of_16_bits_stay_dark() -> None:
    """Levels up to 255 of 65535 were taken for 0 to 255, so that darkness became a picture."""
    dark = np.full((4, 4), 255, np.uint16)
    for data in (b"P5 4 4 65535 " + dark.astype(">u2").tobytes(), encoded(Image.fromarray(dark)),
                 encoded(Image.fromarray(dark), "TIFF")):  # fmt: skip
        assert load_picture(data).getpixel((0, 0)) == (1, 1, 1)


def test_icons_give_their_largest_picture() -> None:
    """The smallest of an icon was taken, or an icon whose PNG has a large profile was refused."""
    icon = encoded(Image.new("RGB", (64, 64), "red"), "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    assert load_picture(icon).size == (64, 64)
    bitmap = encoded(
        Image.new("RGBA", (32, 32), (255, 0, 0, 0)), "ICO", bitmap_format="bmp", sizes=[(32, 32)]
    )
    assert load_picture(bitmap).getpixel((0, 0)) == WHITE
    inside = encoded(Image.new("RGB", (64, 64), "red"))
    inside = inside[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000))) + inside[33:]
    head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 64, 64, 0, 0, 1, 32, len(inside), 22)
    assert load_picture(head + inside).getpixel((0, 0)) == (255, 0, 0)


def bitmap(
    bits: int, rows: bytes, *, height: int, masks: bytes = b"", palette: bytes = b""
) -> bytes:
    compression = 3 if masks else 0
    start = 14 + 40 + len(masks) + len(palette)
    colours = len(palette) // 4
    information = struct.pack(
        "<IiiHHIIiiII", 40, 2, height, 1, bits, compression, len(rows), 0, 0, colours, 0
    )
    return (
        struct.pack("<2sIII", b"BM", start + len(rows), 0, start)
        + information
        + masks
        + palette
        + rows
    )


BITMAPS = {
    "top down": bitmap(24, b"\xff\xff\xff\0\0\0\0\0" + bytes(8), height=-2),
    "5, 6, 5 bits": bitmap(16, bytes(4) + b"\xff\xff\0\0", height=2,
                           masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
    "5, 5, 5 bits": bitmap(16, bytes(4) + b"\xff\x7f\0\0", height=2),
    "32 bits, the last unused": bitmap(32, bytes(8) + b"\xff\xff\xff\0" + bytes(4), height=2),
    "palette of 16": bitmap(4, bytes(4) + b"\x10\0\0\0", height=2,
                            palette=bytes(4) + b"\xff\xff\xff\0"),
    "palette of 16 greys": bitmap(4, bytes(4) + b"\xf0\0\0\0", height=2, palette=b"".join(
        bytes([255 if i == 15 else i] * 3 + [0]) for i in range(16))),
    "palette of 2 in 8 bits": bitmap(8, bytes(4) + b"\1\0\0\0", height=2,
                                     palette=bytes(4) + b"\xff\xff\xff\0"),
    "black and white": bitmap(1, bytes(4) + b"\x80\0\0\0", height=2,
                              palette=bytes(4) + b"\xff\xff\xff\0"),
}  # fmt: skip


@pytest.mark.parametrize("data", BITMAPS.values(), ids=BITMAPS)
def test_bitmaps(data: bytes) -> None:
    """Rows upside down, or a picture made transparent by a byte that nobody uses."""
    picture = load_picture(data)
    assert [picture.getpixel(p) for p in ((0, 0), (1, 0), (0, 1))] == [WHITE, BLACK, BLACK]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_tiff_where_0_is_white(bits: int, order: str) -> None:
    """Scans of 16 bits came out as negatives."""
    pixels = bytes(16 * 16 * bits // 8)
    assert load_picture(tiff(16, 16, bits, 0, pixels, order=order)).getpixel((3, 3)) == WHITE
    full = b"\xff" * len(pixels)
    assert load_picture(tiff(16, 16, bits, 0, full, order=order)).getpixel((3, 3)) == BLACK
    assert load_picture(tiff(16, 16, bits, 1, full, order=order)).getpixel((3, 3)) == WHITE


def test_tiff_of_12_bits() -> None:
    """4095 is white there; as a part of 65535 it was nearly black."""
    assert load_picture(tiff(16, 16, 12, 1, b"\xff" * 384)).getpixel((3, 3)) == WHITE
    assert load_picture(tiff(16, 16, 12, 0, b"\xff" * 384)).getpixel((3, 3)) == BLACK
    assert load_picture(tiff(16, 16, 12, 1, bytes(384))).getpixel((3, 3)) == BLACK


def test_pages() -> None:
    """A document of three pages was answered from its first one without a word."""
    pages = [
        Image.new("RGB", (8 + i, 8), colour) for i, colour in enumerate(("red", "lime", "blue"))
    ]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.warns(MediaWarning, match=r"scan\.tif has 3 pages and only the first is taken"):
        assert load_picture(data, name="scan.tif").size == (8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [np.asarray(page).tolist() for page in load_pages(data)] == [
            np.asarray(p).tolist() for p in pages
        ]
        assert [page.size for page in load_pages(encoded(PICTURE))] == [(64, 48)]
        assert load_pages(PIXELS)[0].size == (64, 48)


def test_previews_are_no_pages() -> None:
    """A photo with a preview beside it was taken for a document of two pages."""
    preview = bytearray(tiff(8, 8, 8, 1, bytes(64), (254, 4, 1, 1)))
    main = bytearray(tiff(16, 16, 8, 1, bytes(256)))
    base = len(main)
    start = struct.unpack_from("<I", preview, 4)[0]
    struct.pack_into("<I", main, base - 4, base + start)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(bytes(main + preview)).size == (16, 16)


def test_directories_that_follow_themselves() -> None:
    """A chain of pages that ends in itself never ends."""
    data = bytearray(tiff(16, 16, 8, 1, bytes(256)))
    struct.pack_into("<I", data, len(data) - 4, struct.unpack_from("<I", data, 4)[0])
    assert len(load_pages(bytes(data))) == 1


def test_default_picture_of_an_animation() -> None:
    """An animated PNG may have a picture of its own for those who show no animation; its first
    frame may be cut.
    """
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], save_all=True, append_images=frames[1:], default_image=True)
    assert load_picture(data).getpixel((4, 4)) == (255, 0, 0)


CLEAR_PNGS = {
    "grey of 1 bit": png(8, 1, 1, 0, b"\0\x7f", chunk(b"tRNS", b"\0\0")),
    "grey of 2 bits": png(4, 1, 2, 0, b"\0\x7f", chunk(b"tRNS", b"\0\1")),
    "grey of 4 bits": png(2, 1, 4, 0, b"\0\x3f", chunk(b"tRNS", b"\0\3")),
    "grey of 8 bits": png(2, 1, 8, 0, b"\0\x09\xff", chunk(b"tRNS", b"\0\x09")),
    "grey of 8 bits, upper byte not 0": png(2, 1, 8, 0, b"\0\x09\xff", chunk(b"tRNS", b"\7\x09")),
    "grey of 16 bits": png(2, 1, 16, 0, b"\0\x12\x34\xff\xff", chunk(b"tRNS", b"\x12\x34")),
    "colours of 8 bits": png(2, 1, 8, 2, b"\0\1\2\3\xff\xff\xff", chunk(b"tRNS", b"\0\1\0\2\0\3")),
    "colours of 16 bits": png(
        2, 1, 16, 2, b"\0" + b"\x12\x34" * 3 + b"\xff" * 6, chunk(b"tRNS", b"\x12\x34" * 3)
    ),
    "palette": png(
        2, 1, 8, 3, b"\0\0\1", chunk(b"PLTE", b"\1\2\3\xff\xff\xff"), chunk(b"tRNS", b"\0")
    ),
    "palette, half clear": png(
        2, 1, 8, 3, b"\0\0\1", chunk(b"PLTE", b"\xff\xff\xff" * 2), chunk(b"tRNS", b"\x80\7")
    ),
    "grey and alpha": png(2, 1, 8, 4, b"\0\x09\0\xff\xff"),
    "grey and alpha of 16 bits": png(2, 1, 16, 4, b"\0\x12\x34\0\0\xff\xff\xff\xff"),
    "colours and alpha of 16 bits": png(
        2, 1, 16, 6, b"\0" + b"\x12\x34" * 3 + bytes(2) + b"\xff" * 8
    ),
}


@pytest.mark.parametrize("data", CLEAR_PNGS.values(), ids=CLEAR_PNGS)
def test_transparency_is_white_at_every_depth(data: bytes) -> None:
    """A transparent level was compared with levels of another depth, and kept its colour."""
    picture = load_picture(data)
    assert {picture.getpixel((x, 0)) for x in range(picture.width)} == {WHITE}


def test_other_levels_stay_opaque() -> None:
    """Two levels of 16 bits that round to the same grey: only one of them is transparent."""
    data = png(2, 1, 16, 0, b"\0\x12\x34\x12\x35", chunk(b"tRNS", b"\x12\x34"))
    picture = load_picture(data)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (18, 18, 18)]
    opened = load_picture(Image.open(io.BytesIO(data)))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (18, 18, 18)]


def test_lab() -> None:
    """Pillow does not convert LAB to RGB by itself."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (4, 4), (200, 30, 60)), *profiles, outputMode="LAB"
    )
    for source in (lab, encoded(lab, "TIFF")):
        assert np.abs(np.subtract(load_picture(source).getpixel((0, 0)), (200, 30, 60))).max() <= 4
    assert load_picture(Image.new("LAB", (2, 2), (255, 128, 128))).getpixel((0, 0)) >= (
        254,
        254,
        254,
    )


@pytest.mark.parametrize("value", [
    np.ones((4, 4, 3), np.complex64), torch.ones(3, 4, 4, dtype=torch.complex64),
    np.full((4, 4), "a"), np.full((4, 4), None), np.zeros((4, 4), "datetime64[s]"),
    np.full((4, 4, 3), np.inf),
], ids=lambda value: str(value.dtype))  # fmt: skip
def test_arrays_without_levels_are_refused(value: np.ndarray) -> None:
    """The imaginary part was thrown away with a warning of numpy's; texts ended in a traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MediaFormatError, match="has values"):
            load_picture(value)


def test_uint16_arrays() -> None:
    """Levels of 8 bits in an array of 16 came out black, without a word."""
    assert load_picture(np.full((4, 4), 255, np.uint16)).getpixel((0, 0)) == WHITE
    assert load_picture(np.full((4, 4, 3), 200, np.uint16)).getpixel((0, 0)) == (200, 200, 200)
    assert load_picture(np.full((4, 4), 65535, np.uint16)).getpixel((0, 0)) == WHITE
    assert load_picture(torch.full((3, 4, 4), 51400, dtype=torch.uint16)).getpixel((0, 0)) == (
        200,
        200,
        200,
    )
    with pytest.warns(MediaWarning, match=r"no value above 1023 of uint16's 65535"):
        load_picture(np.full((4, 4), 1023, np.uint16))
    assert load_picture(np.full((4, 4), False)).getpixel((0, 0)) == BLACK
    assert load_picture(torch.ones(1, 4, 4, dtype=torch.bool)).getpixel((0, 0)) == WHITE
    assert load_picture(np.full((4, 4), 254.6, np.float16)).getpixel((0, 0)) == WHITE


DOCUMENTS = {
    "PDF": (b"%PDF-1.7\n", "a PDF document; turn its pages into pictures first"),
    "PDF after garbage": (b"\r\n\r\n%PDF-1.4\n", "a PDF document"),
    "web page": (
        b"<!DOCTYPE html><html><title>404</title>",
        "a web page .HTML.; give the address of the picture",
    ),
    "web page with a comment": (b"\xef\xbb\xbf\n<!-- x -->\n<HTML lang=en>", "a web page"),
    "web page as XML": (b'<?xml version="1.0"?><!DOCTYPE html>', "a web page"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing; render it to PNG"),
    "SVG as XML": (
        b'<?xml version="1.0"?>\n<!-- Inkscape -->\n<!DOCTYPE svg PUBLIC ""><svg/>',
        "an SVG drawing",
    ),
    "XML": (b"<Error><Code>AccessDenied</Code></Error>", "an XML document"),
    "JSON": (json.dumps({"error": "not found"}).encode(), "JSON text"),
    "JSON list": (b"[137, 80, 78]", "JSON text"),
    "text": ("no picture, schöne Grüße".encode(), "text; give a path"),
    "text of 16 bits": ("hello there".encode("utf-16"), "text"),
    "MP4": (
        b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
        "MP4 or QuickTime video; give it as a video",
    ),
    "QuickTime": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "QuickTime video; give it as a video"),
    "old QuickTime": (b"\0\0\0\x08wide\0\0\0\x20mdat", "a QuickTime video"),
    "WebM": (b"\x1aE\xdf\xa3\x9fB\x86\x81\1", "WebM video; give it as a video"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST", "an AVI video"),
    "MPEG": (b"\0\0\1\xba\x44", "an MPEG video"),
    "sound": (b"RIFF\0\0\0\0WAVEfmt ", "a sound file"),
    "zip": (b"PK\3\4\x14\0", "a zip archive or Office document; unpack it"),
    "gzip": (b"\x1f\x8b\x08\0", "a compressed file; unpack it"),
    "PostScript": (b"%!PS-Adobe-3.0", "a PostScript document"),
    "NumPy": (b"\x93NUMPY\1\0", r"a NumPy file; give np\.load"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        "a Git LFS pointer; fetch",
    ),
    "AppleDouble": (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble"),
}


@pytest.mark.parametrize(("data", "words"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    """An error page behind an address, a PDF or a clip was "no picture",
    and what to do had to be guessed.
    """
    with pytest.raises(MediaFormatError, match=rf"^x\.png is no picture but .*{words}") as caught:
        load_picture(data + (b" " * 20 if data[:1] in b"<{[n" else b""), name="x.png")
    assert "\n" not in str(caught.value)


OTHER_PICTURES = {
    "Photoshop": b"8BPS\0\1", "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "bare JPEG XL": b"\xff\n\xfa\x1f", "QOI": b"qoif\0\0", "cursor": b"\0\0\2\0\1\0",
    "DICOM": bytes(128) + b"DICM", "raw": b"\0\0\0\x18ftypcrx \0",
}  # fmt: skip


@pytest.mark.parametrize("data", OTHER_PICTURES.values(), ids=OTHER_PICTURES)
def test_pictures_of_other_formats_are_named(data: bytes) -> None:
    """What to do with a picture in a format that is not read had to be guessed."""
    with pytest.raises(
        MediaFormatError, match=r"in none of the formats JPEG, PNG.*; save it as PNG or JPEG"
    ):
        load_picture(data)


@pytest.mark.parametrize("quality", [{}, {"progressive": True}])
def test_a_photo_above_the_limit_is_decoded_smaller(quality: dict[str, bool]) -> None:
    """A phone's photo of 200 megapixels was refused,
    though the model sees less than a tenth of it."""
    tags = Image.Exif()
    tags[0x112] = 6
    photo = PICTURE.resize((643, 481))
    data = encoded(photo, "JPEG", exif=tags, quality=95, **quality)
    for limit, by in ((643 * 481 - 1, 2), (322 * 241, 2), (322 * 241 - 1, 4), (81 * 61, 8)):
        with pytest.warns(
            MediaWarning, match=rf"643×481 pixels is decoded at 1/{by}.*max_decoded_pixels=309283"
        ):
            picture = load_picture(data, name="p.jpg", max_decoded_pixels=limit)
        assert picture.size == (-(-481 // by), -(-643 // by))
        assert original_size(picture) == (643, 481)
        assert original_size(load_picture(picture)) == (643, 481)
    whole = load_picture(data, max_decoded_pixels=643 * 481)
    assert whole.size == (481, 643)
    assert original_size(whole) == (643, 481)
    with pytest.raises(
        MediaSizeError, match=r"at most 4940 are decoded \(max_decoded_pixels raises that"
    ):
        load_picture(data, max_decoded_pixels=81 * 61 - 1)


@pytest.mark.parametrize(
    "file_format", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM"]
)
def test_other_formats_above_the_limit_are_refused(file_format: str) -> None:
    """A limit that one format forgets."""
    data = encoded(PICTURE, file_format)
    assert load_picture(data, max_decoded_pixels=64 * 48).size == (64, 48)
    for source in (data, PIXELS, PICTURE):
        with pytest.raises(MediaSizeError, match="64×48 pixels; at most 3071 are decoded"):
            load_picture(source, max_decoded_pixels=64 * 48 - 1)


def test_heic_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """An iPhone's photo ended in "no picture" instead of the name of what is missing."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brand in (b"heic", b"mif1", b"msf1"):
        with pytest.raises(
            DependencyError, match=r"is a HEIC picture, which needs pip install .qwen25vl\[heif\]"
        ):
            load_picture(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic")


def test_heic_is_turned_once() -> None:
    """A HEIC's boxes turn it, and its EXIF says so again."""
    heif = pytest.importorskip("pillow_heif")
    corner = Image.new("RGB", (64, 48), "black")
    corner.paste("white", (0, 0, 16, 16))
    tags = Image.Exif()
    tags[0x112] = 6
    file = io.BytesIO()
    heif.from_pillow(corner).save(file, quality=-1, exif=tags.tobytes())
    picture = load_picture(file.getvalue())
    assert picture.size == (48, 64)
    assert picture.getpixel((44, 4))[0] > 200
    garbage = file.getvalue().replace(b"II*\0", b"garb").replace(b"MM\0*", b"garb")
    assert load_picture(garbage).size == (48, 64)
    with pytest.raises(MediaFormatError):
        load_picture(file.getvalue()[:-50])
    with pytest.raises(MediaSizeError):
        load_picture(file.getvalue(), max_decoded_pixels=3071)


def test_pillows_switches_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every decoding wrote to switches, warning filters and log level of the whole process."""
    limit, filters, shown = Image.MAX_IMAGE_PIXELS, warnings.filters, warnings.showwarning
    with pillow_switches():
        assert Image.MAX_IMAGE_PIXELS is limit
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
        assert (warnings.filters, warnings.showwarning) == (filters, shown)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pillow_switches():
        assert Image.MAX_IMAGE_PIXELS is None


def test_a_switch_that_the_program_sets_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program had set during a decoding was undone by the decoding's end."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pillow_switches():
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        Image.MAX_IMAGE_PIXELS = 20
        with pillow_switches():
            assert Image.MAX_IMAGE_PIXELS > 10**9
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 20


def test_threads_that_decode_and_one_that_sets_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half picture slipped through, or a whole one was refused,
    while another thread set Pillow's switches.
    """
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    filters = list(warnings.filters)
    files = [encoded(PICTURE, kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")]
    inside = threading.Barrier(4)

    def decode(number: int) -> None:
        for round_number in range(20):
            if round_number == 0:
                inside.wait()
            data = files[(number + round_number) % len(files)]
            assert load_picture(data).size == (64, 48)
            with pytest.raises(MediaFormatError):
                load_picture(data[: len(data) * 2 // 3])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, range(4)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert Image.MAX_IMAGE_PIXELS == 10
    assert warnings.filters == filters

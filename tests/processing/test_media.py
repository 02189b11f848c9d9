"""Every source, format and Pillow mode of a picture, and every way in which one can be broken."""

import base64
import http.server
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from qwen25vl.errors import (
    MediaError,
    MediaFormatError,
    MediaNotFoundError,
    MediaSizeError,
    MediaWarning,
    UsageError,
)
from qwen25vl.processing.media import load_picture
from qwen25vl.processing.sources import load_bytes, open_source, source_name

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


PNG = encoded(Image.fromarray(COLOURS))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(PNG) + (10 if "short" in self.path else 0)))
            self.end_headers()
            self.wfile.write(PNG)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_every_source_gives_the_same_picture(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source kind that decodes in its own way gives other pixels, or BGR."""
    path = tmp_path / "a picture%20.png"
    path.write_bytes(PNG)
    (tmp_path / "b c.png").write_bytes(PNG)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(PNG)))
    code = base64.b64encode(PNG).decode()
    sources = [
        path, str(path), f"file://{path}", f"file://{tmp_path}/b%20c.png", f"file://localhost{path}",
        f"{server}/p.png", f"{server}/a ä%20.png", PNG, bytearray(PNG),
        f"data:image/png;base64,{code}", f"data:;base64,{code.rstrip('=')}", "-",
        Image.open(path), Image.fromarray(COLOURS), COLOURS, COLOURS.transpose(2, 0, 1),
        COLOURS / 255, torch.from_numpy(COLOURS),
        torch.from_numpy(COLOURS).permute(2, 0, 1).float() / 255,
        torch.from_numpy(COLOURS).to(torch.int64),
        torch.from_numpy(COLOURS).float().requires_grad_(),
    ]  # fmt: skip
    for source in sources:
        picture = load_picture(source)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), COLOURS), source_name(source)


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
TRANSPARENT_PALETTE = Image.new("P", (2, 2), 1)
TRANSPARENT_PALETTE.putpalette([0, 0, 0, 10, 20, 30])
TRANSPARENT_PALETTE.info["transparency"] = 1
PALETTE_ALPHA = Image.new("PA", (2, 2), (1, 0))
PALETTE_ALPHA.putpalette([0, 0, 0, 10, 20, 30])


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.new("LA", (2, 2), (0, 0)), WHITE),
        (Image.new("LA", (2, 2), (0, 255)), BLACK),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("RGBa", (2, 2), (51, 0, 0, 51)), (255, 204, 204)),
        (TRANSPARENT_PALETTE, WHITE),
        (PALETTE_ALPHA, WHITE),
        (
            Image.new("RGB", (2, 2), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE),
            (1, 2, 3),
        ),
        (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), (0, 255, 255)),
        (Image.new("YCbCr", (2, 2), (255, 128, 128)), WHITE),
        (Image.new("HSV", (2, 2), (0, 255, 255)), (255, 0, 0)),
        (Image.new("I;16", (2, 2), 65535), WHITE),
        (Image.new("I;16", (2, 2), 256), (1, 1, 1)),
        (Image.new("I;16B", (2, 2), 514), (2, 2, 2)),
        (Image.new("I", (2, 2), 200), (200, 200, 200)),
        (Image.new("I", (2, 2), 65535), WHITE),
        (Image.new("I", (2, 2), -5), BLACK),
        (Image.new("F", (2, 2), 0.2), (51, 51, 51)),
        (Image.new("F", (2, 2), 51.4), (51, 51, 51)),
        (Image.new("F", (2, 2), 1e9), WHITE),
        (Image.new("F", (2, 2), float("nan")), BLACK),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_has_its_stated_result(
    picture: Image.Image, expected: tuple[int, int, int]
) -> None:
    """Transparent regions turned black, 16-bit pictures white, palettes read as grey levels."""
    rgb = load_picture(picture)
    assert (rgb.mode, rgb.size) == ("RGB", picture.size)
    assert rgb.getpixel((0, 0)) == expected


def test_transparent_colours_of_files_are_white() -> None:
    """PNG can make one grey or colour transparent without an alpha channel;
    it came out as that colour."""
    grey = encoded(Image.new("L", (2, 2), 9), transparency=9)
    colour = encoded(Image.new("RGB", (2, 2), (9, 8, 7)), transparency=(9, 8, 7))
    gif = encoded(TRANSPARENT_PALETTE, "GIF", transparency=1)
    for data in (grey, colour, gif):
        assert load_picture(data).getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(file_format: str) -> None:
    """The last frame, or an error, for animated stickers."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless)
    pages = pytest.warns(MediaWarning, match="3 pages") if file_format == "TIFF" else nullcontext()
    with pages:
        assert load_picture(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, file_format: str) -> None:
    """Phone pictures lie on their side; a plugin that turns them itself must not make it twice."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    stored = load_picture(encoded(Image.fromarray(COLOURS), file_format, exif=exif, **lossless))
    turns = {1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1],
             5: COLOURS.transpose(1, 0, 2), 6: np.rot90(COLOURS, -1),
             7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
             8: np.rot90(COLOURS)}  # fmt: skip
    assert np.array_equal(np.asarray(stored), turns[orientation])


@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize("file_format", FORMATS)
def test_truncated_files_are_refused_at_any_length(
    file_format: str, switch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a picture over grey is answered as if whole,
    if some library set Pillow's process-wide switch."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", switch)
    data = encoded(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)),
        file_format,
    )
    for length in [*range(1, 64, 7), len(data) // 4, len(data) // 2, len(data) * 9 // 10]:
        with pytest.raises(MediaFormatError, match=r"cut\.png is"):
            load_picture(data[:length], name="cut.png")
    assert switch is ImageFile.LOAD_TRUNCATED_IMAGES


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BIG_PNG = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", b"")
)
BIG_BMP = (
    b"BM"
    + struct.pack("<IIIIiiHHIIiiII", 70, 0, 54, 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0)
    + bytes(16)
)
BIG_GIF = b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0, 0, 0)
BIG_GIF += b"\x2c" + struct.pack("<HHHHB", 0, 0, 9, 9, 0) + b"\x08\x01\0\0;"


@pytest.mark.parametrize("pillows_limit", [None, 10])
@pytest.mark.parametrize("data", [BIG_PNG, BIG_BMP, BIG_GIF], ids=["png", "bmp", "gif"])
def test_headers_that_claim_too_much_are_refused(
    data: bytes, pillows_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 60 bytes makes the process allocate gigabytes,
    if some library lifted Pillow's limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    with pytest.raises(MediaSizeError, match="178956970"):
        load_picture(data)
    assert load_picture(PNG).size == (9, 6)
    assert pillows_limit == Image.MAX_IMAGE_PIXELS


def test_pictures_already_open_are_limited_too() -> None:
    """A lazily opened picture is decoded here, so the limit must hold here."""
    picture = Image.open(io.BytesIO(PNG))
    picture._size = (20000, 20000)
    with pytest.raises(MediaSizeError, match="20000×20000"):
        load_picture(picture)


@pytest.mark.parametrize("file_format", ["TGA", "PCX", "ICNS", "DDS", "SGI"])
def test_formats_are_told_by_content(file_format: str, tmp_path: Path) -> None:
    """Pillow opens dozens of rarely tested formats whatever the name says."""
    path = tmp_path / "holiday.png"
    path.write_bytes(encoded(Image.new("RGB", (32, 32)), file_format))
    with pytest.raises(
        MediaFormatError, match="none of the formats JPEG, PNG, WebP, GIF, BMP, TIFF"
    ):
        load_picture(path)
    jpeg = tmp_path / "really.tga"
    jpeg.write_bytes(encoded(Image.new("RGB", (32, 32)), "JPEG"))
    assert load_picture(jpeg).size == (32, 32)


def test_threads_decode_under_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread out restored the switch while the others were still decoding."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encoded(
        Image.fromarray(np.random.default_rng(2).integers(0, 256, (99, 99, 3), dtype=np.uint8)),
        "JPEG",
    )

    def is_refused(data: bytes) -> bool:
        try:
            load_picture(data)
        except MediaFormatError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        refused = list(pool.map(is_refused, [whole, whole[:2000]] * 100))
    assert refused == [False, True] * 100
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_what_is_not_there_says_so(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback of urllib or of the file system instead of one line that names the source."""
    monkeypatch.setattr(sys, "stdin", None)
    for source, pattern in [
        (tmp_path / "no.png", r"no\.png does not exist"),
        (f"file://{tmp_path}/no.png", r"no\.png does not exist"),
        (str(tmp_path), "is a folder"),
        ("a" * 5000, "a…"),
        ("nul\0byte.png", "cannot be read"),
        (f"{server}/missing.png", r"missing\.png: the server answered 404"),
        ("http://127.0.0.1:1/x.png", r"x\.png cannot be fetched: .*refused"),
        ("http://[broken/x.png", "cannot be fetched"),
        ("/proc/self/mem", "cannot be read"),
        ("-", "standard input is closed"),
    ]:
        with pytest.raises(MediaNotFoundError, match=pattern) as caught:
            load_picture(source)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 250


def test_broken_content_says_so(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty files and half downloads reached the decoder and failed there with riddles."""
    (tmp_path / "empty.png").touch()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    for source, pattern in [
        (tmp_path / "empty.png", r"empty\.png is empty"),
        ("-", "standard input is empty"),
        (b"", "0 bytes is empty"),
        (b"%PDF-1.7 something", "is no picture"),
        (f"{server}/short.png", "ended 10 bytes early"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64", "no comma"),
        ("data:text/plain,hello%20world", "is no picture"),
    ]:
        with pytest.raises(MediaFormatError, match=pattern):
            load_picture(source)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3, 4, 3), np.uint8),
        np.zeros((5, 6, 7), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        np.full((4, 4, 3), 256),
        np.full((4, 4, 3), -0.5),
        np.full((4, 4, 3), 300.0),
        np.full((4, 4, 3), np.nan),
        torch.randn(3, 8, 8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_that_are_no_pictures_are_refused(array: np.ndarray | torch.Tensor) -> None:
    """A tensor that was already normalised became a black picture."""
    with pytest.raises(MediaError):
        load_picture(array)


def test_array_layouts() -> None:
    """A grey or transparent array read along the wrong axis."""
    assert load_picture(COLOURS[..., 0]).getpixel((2, 1)) == (COLOURS[1, 2, 0],) * 3
    assert load_picture(COLOURS[None, ..., 0]).size == (9, 6)
    assert load_picture(np.zeros((6, 9, 4), np.uint8)).getpixel((0, 0)) == WHITE
    assert load_picture(np.full((6, 9), True)).getpixel((0, 0)) == WHITE
    assert load_picture(np.full((6, 9), 65535, np.uint16)).getpixel((0, 0)) == WHITE
    assert load_picture(np.zeros((3, 9, 3), np.uint8)).size == (9, 3)
    assert load_picture(torch.zeros(3, 9, 3, dtype=torch.uint8)).size == (3, 9)
    assert load_picture(torch.ones(3, 4, 5, dtype=torch.bfloat16)).getpixel((0, 0)) == WHITE


def test_unknown_kinds_of_sources_are_misuse() -> None:
    """A dict or None fell through to the file system."""
    for source in (None, 5, {"path": "x"}):
        with pytest.raises(UsageError, match="not a source"):
            load_picture(source)


def test_the_given_picture_stays_as_it_was() -> None:
    """Turning or compositing in place changes the caller's own object."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(io.BytesIO(encoded(Image.fromarray(COLOURS), exif=exif)))
    assert load_picture(picture).size == (6, 9)
    assert picture.size == (9, 6)
    assert picture.getexif()[0x0112] == 6


def test_byte_limits_hold(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """An endless stream fills the disk."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(3 << 20))))
    for source in ("-", f"{server}/p.png", PNG):
        with pytest.raises(MediaSizeError, match="larger than the limit"):
            load_bytes(source, max_bytes=20)


def test_names_are_short() -> None:
    """A data URI of megabytes in an error message."""
    assert (
        source_name("data:image/png;base64," + "A" * 10**6)
        == "data:image/png;base64,… (1000022 characters)"
    )
    assert len(source_name("x" * 1000)) == 100
    assert source_name(b"abc") == "3 bytes"
    assert source_name(COLOURS) == "ndarray [6, 9, 3]"


def test_a_pipe_is_read_whole(tmp_path: Path) -> None:
    """`-v <(cat clip.mp4)` names a pipe, which no decoder can seek in."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"all of it"))
    writer.start()
    with open_source(pipe) as file:
        assert file.seekable()
        assert file.read() == b"all of it"
    writer.join()


def test_premultiplied_grey() -> None:
    """Pillow has no way from La to RGBA but through LA."""
    assert load_picture(Image.new("LA", (2, 2), (0, 255)).convert("La")).getpixel((0, 0)) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize("kind", [">u2", ">i4", ">f4", ">f8"])
def test_arrays_of_the_other_byte_order(kind: str) -> None:
    """torch and numpy's comparison of types refused or misread them."""
    array = np.full((8, 8, 3), 200, kind)
    assert load_picture(array).getpixel((3, 3)) == (200, 200, 200)
    assert load_picture(np.full((8, 8, 3), 60000, ">u2")).getpixel((3, 3)) == (233, 233, 233)


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (torch.zeros(3, 8, 8).to_sparse(), "layout torch.sparse_coo; give its to_dense"),
        (torch.zeros(3, 8, 8, device="meta"), "meta, which has no values"),
        (torch.zeros(8, 8).to_sparse(), "layout torch.sparse_coo"),
    ],
)
def test_tensors_without_values_one_by_one(tensor: torch.Tensor, error: str) -> None:
    """torch's own errors said nothing of the picture."""
    with pytest.raises(MediaFormatError, match=error):
        load_picture(tensor)

"""Where the bytes of a picture may come from: base64 in its forms, pairs, open files, encoded
answers of servers.
"""

import base64
import gzip
import http.server
import io
import os
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processing.picture_files import encoded

from qwen25vl.errors import MediaFormatError, MediaNotFoundError, MediaSizeError, UsageError
from qwen25vl.processing.media import load_picture
from qwen25vl.processing.messages import read_messages
from qwen25vl.processing.sources import load_bytes, open_source, source_name

PIXELS = np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)
PNG = encoded(Image.fromarray(PIXELS))
CODE = base64.b64encode(PNG).decode()
URL_SAFE = base64.urlsafe_b64encode(PNG).decode()
LINES = base64.encodebytes(PNG).decode()

FORMS = {
    "plain": CODE,
    "without padding": CODE.rstrip("="),
    "lines": LINES,
    "Windows lines": LINES.replace("\n", "\r\n"),
    "blanks around": f" \n{CODE}\t",
    "blanks inside": " ".join(CODE[i : i + 7] for i in range(0, len(CODE), 7)),
    "URL-safe": URL_SAFE,
    "URL-safe without padding": URL_SAFE.rstrip("="),
    "too much padding": CODE.rstrip("=") + "====",
}


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_base64(form: str, as_bytes: bool) -> None:
    """Base64 as the ecosystem takes it was looked for as a file of that name."""
    assert load_bytes(form.encode() if as_bytes else form) == PNG


@pytest.mark.parametrize("head", [
    "data:image/png;base64,", "data:;base64,", " data:image/png;base64,",
    "\ndata:image/png;base64, ", "DATA:image/png;BASE64,", "data:image/png;charset=utf-8;base64,",
    "data:image/png;base64;charset=utf-8,", "data:image/png; base64,",
    "data:image/png;name=a b.png;base64,", "data:image/jpeg;base64,", "data:base64,",
    "data:image/png,", "data:,",
])  # fmt: skip
def test_data_uris(head: str) -> None:
    """A blank before the scheme made it a path;
    a parameter after `;base64` made the text the picture.
    """
    for code in (CODE, URL_SAFE.rstrip("="), LINES, CODE.replace("+", "%2B").replace("=", "%3D")):
        assert load_bytes(head + code) == PNG
        assert load_bytes((head + code).encode()) == PNG


@pytest.mark.parametrize(
    "file_format", ["JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "ICO", "PPM"]
)
def test_base64_of_every_format(file_format: str) -> None:
    """JPEG's base64 begins like an absolute path."""
    data = encoded(Image.new("RGB", (16, 16)), file_format)
    assert load_bytes(base64.b64encode(data).decode()) == data


def test_a_file_goes_before_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name happens to be base64 could not be named."""
    name = base64.urlsafe_b64encode(encoded(Image.new("L", (1, 1))))[:100].decode()
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(PNG)
    assert load_bytes(name) == PNG


def test_paths_are_no_base64() -> None:
    """A path that does not exist, of letters that base64 has too, must be said not to exist."""
    for path in (
        "photo",
        "/9j/photo.jpg",
        "iVBORw0K.png",
        "/home/pictures/abcd",
        "UklGRg",
        "a/b/c/d",
        "abcd",
    ):
        with pytest.raises(MediaNotFoundError, match="does not exist"):
            load_picture(path)


def test_broken_base64_says_so() -> None:
    """Base64 with a character too many ended as a path that does not exist,
    or as half a picture."""
    broken = f"{CODE[:150]}@{CODE[150:]}"
    for source in (broken, broken.encode(), f"data:image/png;base64,{broken}", CODE[:101]):
        with pytest.raises(MediaFormatError, match="not valid base64"):
            load_picture(source)
    with pytest.raises(MediaFormatError, match="cut off"):
        load_picture(CODE[:120])


def test_bytes_that_look_like_base64_stay() -> None:
    """A plain pixmap is written in letters and figures that base64 has too."""
    assert load_picture(b"P3 1 1 255 0 0 0").size == (1, 1)
    assert load_bytes(b"abcd") == b"abcd"


def test_pairs_of_bytes_and_path(tmp_path: Path) -> None:
    """Data sets keep their files as {"bytes", "path"}, of which one may be missing."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for pair in ({"bytes": PNG, "path": None}, {"bytes": PNG, "path": "gone.png"},
                 {"bytes": None, "path": str(path)},
                 {"path": path, "bytes": None}, {"bytes": PNG}):  # fmt: skip
        assert load_bytes(pair) == PNG
    assert source_name({"bytes": PNG, "path": "gone.png"}) == "gone.png"
    for wrong in (
        {"bytes": None, "path": None},
        {"bytes": PNG, "name": "x"},
        {"bytes": 5, "path": None},
        {},
    ):
        with pytest.raises(UsageError, match="not a source"):
            load_bytes(wrong)


def test_open_files(tmp_path: Path) -> None:
    """An upload or an open file was no source; reading it must neither close it nor move it."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.write(path, "a.png")
    with (
        path.open("rb") as file,
        tempfile.SpooledTemporaryFile() as upload,
        zipfile.ZipFile(archive) as packed,
    ):
        upload.write(PNG)
        for source in (
            file,
            io.BytesIO(PNG),
            io.BufferedReader(io.BytesIO(PNG)),
            upload,
            packed.open("a.png"),
        ):
            position = source.tell()
            for _ in range(2):  # a chat reads its pictures again with every question
                assert load_bytes(source) == PNG
            assert source.tell() == position
            assert not source.closed
        assert source_name(file) == str(path)
    read, write = os.pipe()
    with os.fdopen(write, "wb") as end:
        end.write(PNG)
    with os.fdopen(read, "rb") as pipe:
        assert load_bytes(pipe) == PNG


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    """A file opened as text, or closed, ended in a traceback."""
    path = tmp_path / "a.png"
    path.write_bytes(b"text")
    with (
        path.open() as file,
        pytest.raises(UsageError, match=r"a\.png: reading it gives str; .*\"rb\""),
    ):
        load_bytes(file)
    closed = io.BytesIO(PNG)
    closed.close()
    with pytest.raises(MediaNotFoundError, match="BytesIO cannot be read"):
        load_bytes(closed)
    with pytest.raises(MediaFormatError, match="BytesIO is empty"):
        load_bytes(io.BytesIO())
    with pytest.raises(MediaSizeError):
        load_bytes(io.BytesIO(PNG), max_bytes=20)


def test_any_path_like(tmp_path: Path) -> None:
    """Only pathlib's own paths were taken."""

    class Entry:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "a.png")

    (tmp_path / "a.png").write_bytes(PNG)
    assert load_bytes(Entry()) == PNG
    assert load_bytes(next(os.scandir(tmp_path))) == PNG
    assert source_name(Entry()) == str(tmp_path / "a.png")


def test_numbers_are_refused_with_a_remedy() -> None:
    """The bytes of a file as JSON has them were a "list of 70 pictures"."""
    with pytest.raises(UsageError, match=rf"list of {len(PNG)} numbers is not a source.*bytes"):
        load_picture(list(PNG))
    with pytest.raises(UsageError, match=r"numbers is not a source.*bytes"):
        load_picture({"bytes": list(PNG), "path": None})


@pytest.mark.parametrize("part", [
    {"image": CODE}, {"url": CODE}, {"image_url": {"url": CODE}},
    {"image": f" data:image/png;base64,{CODE}"}, {"image": {"bytes": PNG, "path": None}},
    {"image": {"bytes": None, "path": None, "url": CODE}}, {"image": io.BytesIO(PNG)},
    {"base64": CODE}, {"base64": CODE.encode()}, {"base64": URL_SAFE},
    {"base64": f" data:image/png;base64,{CODE}"}, {"image": CODE.encode()},
    {"image_url": {"url": CODE, "format": None}},
])  # fmt: skip
def test_parts_of_messages(part: dict[str, Any]) -> None:
    """What a source may be, a message may hold."""
    (message,) = read_messages([{"role": "user", "content": [{"type": "image", **part}]}])
    assert np.array_equal(load_picture(message.parts[0].source), PIXELS)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ANSWERS = {
    "gzip": ("gzip", gzip.compress(PNG)),
    "x-gzip": ("X-GZip", gzip.compress(PNG)),
    "members": ("gzip", gzip.compress(PNG[:50]) + gzip.compress(PNG[50:])),
    "padded": ("gzip", gzip.compress(PNG) + bytes(40)),
    "zlib": ("deflate", zlib.compress(PNG)),
    "deflate": ("deflate", raw_deflate(PNG)),
    "twice": ("gzip, deflate", zlib.compress(gzip.compress(PNG))),
    "identity": ("identity", PNG),
    "nothing": ("", PNG),
    "cut": ("gzip", gzip.compress(PNG)[:-20]),
    "damaged": ("gzip", gzip.compress(PNG)[:-8] + bytes(8)),
    "liar": ("gzip", PNG),
    "brotli": ("br", PNG),
    "empty": ("gzip", gzip.compress(b"")),
    "bomb": ("gzip", gzip.compress(bytes(64 << 20))),
    "page": ("gzip", gzip.compress(b"<!doctype html><html>Not found</html>")),
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            encoding, body = ANSWERS[self.path[1:]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            if encoding:
                self.send_header("Content-Encoding", encoding)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    ["gzip", "x-gzip", "members", "padded", "zlib", "deflate", "twice", "identity", "nothing"],
)
def test_content_encoding_is_undone(server: str, answer: str) -> None:
    """Some servers pack what nobody asked them to; their pictures were none."""
    assert load_bytes(f"{server}/{answer}") == PNG


@pytest.mark.parametrize(("answer", "words"), [
    ("cut", "sent in the encoding gzip, is cut off"),
    ("damaged", "sent in the encoding gzip, is damaged"),
    ("liar", "sent in the encoding gzip, is not in it"),
    ("brotli", "encoding 'br'; gzip and deflate"), ("empty", "is empty"),
    ("page", "no picture but a web page"),
])  # fmt: skip
def test_broken_encodings(server: str, answer: str, words: str) -> None:
    """Half of a packed answer was a riddle of zlib's."""
    with pytest.raises(MediaFormatError, match=words):
        load_picture(f"{server}/{answer}")


def test_the_limit_counts_what_is_unpacked(server: str) -> None:
    """64 KB that unpack to 64 MB pass a limit on what is sent."""
    with pytest.raises(MediaSizeError, match="larger than the limit of 1 MiB"):
        open_source(f"{server}/bomb", max_bytes=1 << 20)


WRAPPED = {
    "without data:": f"image/png;base64,{CODE}",
    "only base64,": f"base64,{CODE}",
    "percent-encoded": CODE.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    "byte-order mark": f"\ufeff{CODE}",
    "quoted": f'"{CODE}"',
    "as Python shows bytes": f"b'{CODE}'",
    "quoted data URI": f'"data:image/png;base64,{CODE}"',
    "data URI with a mark": f"\ufeffdata:image/png;base64,{CODE}",
    "beginning twice": f"data:image/png;base64,data:image/png;base64,{CODE}",
    "comma at the end": f"data:image/png;base64,{CODE},",
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_what_stands_around_base64(text: str) -> None:
    """Only the bare text and a complete URI were understood."""
    assert load_bytes(text) == load_bytes(CODE)
    assert load_bytes(text.encode()) == load_bytes(CODE)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_the_content_itself_under_base64(kind: type) -> None:
    """Raw bytes under that key were decoded as text and refused as broken base64."""
    for value in (kind(PNG), kind(CODE.encode()), f"image/png;base64,{CODE}"):
        part = {"type": "image", "base64": value}
        message = read_messages([{"role": "user", "content": [part]}])[0]
        assert load_bytes(message.parts[0].source) == PNG

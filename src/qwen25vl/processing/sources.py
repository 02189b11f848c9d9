"""The bytes of pictures and videos: from a path, file://, http(s)://, a data URI, bytes or "-" (standard input)."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import re
import string
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

from qwen25vl.errors import MediaError, MediaFormatError, MediaNotFoundError, MediaSizeError, UsageError

MAX_BYTES = 4 << 30
DOWNLOAD_TIMEOUT_SECONDS = 30
BLOCK_BYTES = 1 << 20
MAX_NAME_LENGTH = 100


def source_name(source: Any) -> str:
    """A short name for messages: the path or address, cut to one line; kind and size of what has neither."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        return f"{source[:40].partition(',')[0]},… ({len(source)} characters)"
    if isinstance(source, str | Path):
        text = "standard input" if source == "-" else str(source)
        return text if len(text) <= MAX_NAME_LENGTH else text[: MAX_NAME_LENGTH - 1] + "…"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes"
    if isinstance(source, list | tuple):
        return f"list of {len(source)} pictures"
    kind = type(source).__name__
    return f"{kind} {list(source.shape)}" if hasattr(source, "shape") else getattr(source, "filename", "") or kind


def load_bytes(source: Any, *, name: str | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """The whole content of a source. Raises as `open_source` does, and MediaFormatError where it is empty."""
    name = name or source_name(source)
    with open_source(source, name=name, max_bytes=max_bytes) as file:
        data = file.read(max_bytes + 1)
    check_length(len(data), max_bytes, name)
    if not data:
        raise MediaFormatError(f"{name} is empty")
    return data


def open_source(source: Any, *, name: str | None = None, max_bytes: int = MAX_BYTES) -> BinaryIO:
    """A seekable binary file over a source; what comes through a pipe or the network is stored on disk first.

    Raises MediaNotFoundError (nothing there, not readable, no answer in 30 s), MediaFormatError (a broken data URI,
    a broken-off download), MediaSizeError (a pipe or download of more than `max_bytes`), UsageError (no such source).
    """
    name = name or source_name(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        return copy_open_file(source, name, max_bytes)
    return open_named(source, name, max_bytes)


def open_named(source: str | Path, name: str, max_bytes: int) -> BinaryIO:
    """What a text or a path names: standard input, an address, a data URI, or a file."""
    if source == "-":
        if (stream := getattr(sys.stdin, "buffer", None)) is None or stream.closed:
            raise MediaNotFoundError(f"{name} is closed; there is nothing to read")
        return store(stream, name, max_bytes)
    address = "" if isinstance(source, Path) else source
    scheme = address[:8].lower()
    if scheme.startswith("data:"):
        return io.BytesIO(parse_data_uri(address, name))
    if scheme.startswith(("http://", "https://")):
        return download(address, name, max_bytes)
    if scheme.startswith("file://"):
        local = re.sub("^file://(localhost(?=/))?", "", address, flags=re.IGNORECASE)
        path = Path(local)  # as people write it; else percent-encoded, as it should be
        return open_path(path if path.exists() else Path(urllib.parse.unquote(local)), name)
    return open_path(Path(source), name)


def open_path(path: Path, name: str) -> BinaryIO:
    try:
        with ExitStack() as on_failure:
            file = on_failure.enter_context(path.open("rb"))
            if not file.seekable():
                return store(file, name, MAX_BYTES)
            file.peek(1)  # some special files open and then can not be read
            on_failure.pop_all()
            return file
    except FileNotFoundError:
        raise MediaNotFoundError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise MediaNotFoundError(f"{name} is a folder; a picture or video was wanted") from None
    except (OSError, ValueError) as error:
        raise MediaNotFoundError(f"{name} can not be read: {getattr(error, 'strerror', None) or error}") from None


def copy_open_file(file: Any, name: str, max_bytes: int) -> BinaryIO:
    """All of a file that is already open, from its beginning where it can seek."""
    if not callable(getattr(file, "read", None)):
        wanted = "a path, an address, bytes or an open file"
        raise UsageError(f"{name} is no source of a picture or video; expected {wanted}")
    try:
        if file.seekable():
            file.seek(0)
        return store(file, name, max_bytes)
    except (OSError, ValueError, TypeError) as error:
        raise MediaNotFoundError(f"{name} can not be read: {error}") from None


def parse_data_uri(uri: str, name: str) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma:
        raise MediaFormatError(f"{name} is no data URI: no comma stands before its data")
    data = urllib.parse.unquote_to_bytes(payload)
    if not head.lower().endswith(";base64"):
        return data
    data = b"".join(data.split())
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise MediaFormatError(f"{name} is not valid base64: {error}") from None


def download(url: str, name: str, max_bytes: int) -> BinaryIO:
    try:
        encoded = urllib.parse.quote(url, safe=string.punctuation)  # spaces and letters beyond ASCII
        request = urllib.request.Request(encoded, headers={"User-Agent": "qwen25vl"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            file = store(response, name, max_bytes)
            if response.length:  # what the server had announced and did not send
                file.close()
                raise MediaFormatError(f"{name}: the connection ended {response.length} bytes early")
            return file
    except MediaError:
        raise
    except urllib.error.HTTPError as error:
        raise MediaNotFoundError(f"{name}: the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MediaNotFoundError(f"{name} can not be fetched: {getattr(error, 'reason', None) or error}") from None


def store(stream: BinaryIO, name: str, max_bytes: int) -> BinaryIO:
    with ExitStack() as on_failure:
        file = cast(BinaryIO, on_failure.enter_context(tempfile.TemporaryFile()))
        length = 0
        while block := stream.read(BLOCK_BYTES):
            length += len(block)
            check_length(length, max_bytes, name)
            file.write(block)
        file.seek(0)
        on_failure.pop_all()
    return file


def check_length(length: int, max_bytes: int, name: str) -> None:
    if length > max_bytes:
        raise MediaSizeError(f"{name} holds more than the {max_bytes >> 20} MiB that may be read")

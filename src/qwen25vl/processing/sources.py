"""The bytes of pictures and videos, from whatever names or holds them.

A path, file://, http(s)://, a data URI, "-" (standard input), base64, bytes, an open file, or the
pair of bytes and path in which data sets keep their files.
"""

from __future__ import annotations

import io
import os
import re
import sys
import urllib.parse
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from qwen25vl.errors import MediaFormatError, MediaNotFoundError, Qwen25VLError, UsageError
from qwen25vl.processing.base64_text import (
    decode_base64,
    decode_if_base64,
    is_data_uri,
    trim_text,
)
from qwen25vl.processing.streams import check_length, download, store

MAX_BYTES = 4 << 30
MAX_NAME_LENGTH = 100
MAX_PATH_LENGTH = 4096
PAIR_KEYS = {"bytes", "path"}


def source_name(source: Any) -> str:
    """A short name for messages: the path or address, cut to one line;
    kind and size of what has neither.
    """
    if isinstance(source, str) and is_data_uri(source):
        head = source.lstrip()
        return f"{head[:40].partition(',')[0]},… ({len(head)} characters)"
    if isinstance(source, str | os.PathLike):
        return "standard input" if source == "-" else shortened(os.fsdecode(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes"
    if isinstance(source, list | tuple):
        is_numbers = bool(source) and all(isinstance(value, int) for value in source)
        return f"list of {len(source)} {'numbers' if is_numbers else 'pictures'}"
    if is_pair(source):
        return source_name(source.get("path") or source["bytes"])
    return object_name(source)


def object_name(source: Any) -> str:
    """The name that a picture or an open file has; else its type, of an array with the shape."""
    kind = type(source).__name__
    if hasattr(source, "shape"):
        return f"{kind} {list(source.shape)}"
    name = getattr(source, "filename", "") or getattr(source, "name", "")
    return shortened(name) if name and isinstance(name, str) else kind


def shortened(text: str) -> str:
    return text if len(text) <= MAX_NAME_LENGTH else text[: MAX_NAME_LENGTH - 1] + "…"


def is_pair(source: Any) -> bool:
    """Whether this is {"bytes": …, "path": …}, of which one may be None."""
    return isinstance(source, Mapping) and "bytes" in source and not source.keys() - PAIR_KEYS


def load_bytes(source: Any, *, name: str | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """The whole content of a source. Raises as `open_source` does,
    and MediaFormatError where it is empty.
    """
    name = name or source_name(source)
    with open_source(source, name=name, max_bytes=max_bytes) as file:
        data = file.read(max_bytes + 1)
    check_length(len(data), max_bytes, name)
    if not data:
        raise MediaFormatError(f"{name} is empty")
    return data


def open_source(source: Any, *, name: str | None = None, max_bytes: int = MAX_BYTES) -> BinaryIO:
    """A seekable binary file over a source;
    what comes through a pipe or the network is stored on disk first.

    A text that names no file may be base64, with or without line breaks and padding, in either
    alphabet; so may bytes. A file that is already open is read from its beginning and stays open.

    Raises MediaNotFoundError (nothing there, not readable, no answer in 30 s, a download of more
    than 10 minutes), MediaFormatError (broken base64, a broken-off download), MediaSizeError (a
    pipe or download of more than `max_bytes`), UsageError (no such source).
    """
    name = name or source_name(source)
    if is_pair(source):
        content = source["bytes"] if source["bytes"] is not None else source.get("path")
        return open_source(content, name=name, max_bytes=max_bytes)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if is_data_uri(data):
            return io.BytesIO(parse_data_uri(trim_text(data), name))
        return io.BytesIO(decode_if_base64(data, name) or data)
    if isinstance(source, str):
        return open_text(source, name, max_bytes)
    if isinstance(source, os.PathLike):
        return open_path(Path(os.fsdecode(source)), name)
    if callable(getattr(source, "read", None)):
        return copy_open_file(source, name, max_bytes)
    remedy = "; bytes(…) of these numbers may be one" if "numbers" in name else ""
    wanted = "a path, an address, bytes, base64 or an open file"
    raise UsageError(f"{name} is not a source of a picture or video; expected {wanted}{remedy}")


def open_text(source: str, name: str, max_bytes: int) -> BinaryIO:
    """Standard input, an address, a data URI, a path, or base64;
    a file that exists goes before the last.
    """
    if source == "-":
        if (stream := getattr(sys.stdin, "buffer", None)) is None or stream.closed:
            raise MediaNotFoundError(f"{name} is closed; there is nothing to read")
        return store(stream, name, max_bytes)
    address = source.strip()
    scheme = address[:8].lower()
    if is_data_uri(source):
        return io.BytesIO(parse_data_uri(trim_text(source.encode("utf-8", "replace")), name))
    if scheme.startswith(("http://", "https://")):
        return download(address, name, max_bytes)
    if scheme.startswith("file://"):
        local = re.sub("^file://(localhost(?=/))?", "", address, flags=re.IGNORECASE)
        path = Path(local)  # as people write it; else percent-encoded, as it should be
        return open_path(path if exists(local) else Path(urllib.parse.unquote(local)), name)
    if not exists(source) and (data := decode_if_base64(source, name)) is not None:
        return io.BytesIO(data)
    return open_path(Path(source), name)


def exists(path: str) -> bool:
    """Whether a path leads to something; one that is too long or holds a NUL does not."""
    try:
        return len(path) <= MAX_PATH_LENGTH and Path(path).exists()
    except (OSError, ValueError):
        return False


def open_path(path: Path, name: str) -> BinaryIO:
    try:
        with ExitStack() as on_failure:
            file = on_failure.enter_context(path.open("rb"))
            if not file.seekable():
                return store(file, name, MAX_BYTES)
            file.peek(1)  # some special files open and then cannot be read
            on_failure.pop_all()
            return file
    except FileNotFoundError:
        raise MediaNotFoundError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise MediaNotFoundError(f"{name} is a folder; expected a picture or video") from None
    except (OSError, ValueError) as error:
        raise MediaNotFoundError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def copy_open_file(file: Any, name: str, max_bytes: int) -> BinaryIO:
    """All of a file that is already open; where it can seek, its position stays as it was."""
    try:
        is_seekable = bool(file.seekable()) if hasattr(file, "seekable") else False
        position = file.tell() if is_seekable else 0
        if is_seekable:
            file.seek(0)
        if not isinstance(start := file.read(0), bytes):
            wanted = 'bytes; open it with open(…, "rb")' if isinstance(start, str) else "bytes"
            raise UsageError(f"{name}: reading it gives {type(start).__name__}; expected {wanted}")
        try:
            return store(file, name, max_bytes)
        finally:
            if is_seekable:
                file.seek(position)
    except Qwen25VLError:
        raise
    except (OSError, ValueError) as error:
        raise MediaNotFoundError(f"{name} cannot be read: {error}") from None


def parse_data_uri(uri: bytes, name: str) -> bytes:
    """The content of a data URI, whatever its other parameters say; a forgotten `;base64` is
    understood, and so is a beginning that stands there twice.
    """
    head, comma, payload = uri.partition(b",")
    if not comma:
        raise MediaFormatError(f"{name} is not a data URI: it has no comma before its data")
    if is_data_uri(payload):
        return parse_data_uri(trim_text(payload), name)
    data = urllib.parse.unquote_to_bytes(payload)
    parameters = [parameter.strip().lower() for parameter in head.split(b";")[1:]]
    if b"base64" in parameters:
        return decode_base64(data.rstrip(b", \r\n\t"), name)
    return decode_if_base64(data, name) or data

"""What comes through a pipe or the network:
stored on disk within a limit, its content encoding undone.
"""

from __future__ import annotations

import http.client
import string
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from contextlib import ExitStack
from typing import Any, BinaryIO, Protocol, cast

from qwen25vl.errors import MediaError, MediaFormatError, MediaNotFoundError, MediaSizeError
from qwen25vl.processing.deadline import Deadline

DOWNLOAD_TIMEOUT_SECONDS = 30  # without a byte
MAX_DOWNLOAD_SECONDS = 600  # for the whole
BLOCK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
GZIP_BITS, ZLIB_BITS, RAW_BITS = 31, 15, -15  # zlib's names for the three wrappings of deflate


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def store(stream: Readable, name: str, max_bytes: int) -> BinaryIO:
    """A temporary file with all that can be read. Raises MediaSizeError above `max_bytes`."""
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
        raise MediaSizeError(f"{name} is larger than the limit of {max_bytes >> 20} MiB")


def download(url: str, name: str, max_bytes: int) -> BinaryIO:
    """A temporary file with what an address leads to; `max_bytes` counts after unpacking.

    Raises MediaNotFoundError (no answer in 30 s, not complete in 10 minutes, an error of the
    server), MediaFormatError (broken off, or encoded otherwise than gzip or deflate),
    MediaSizeError.
    """
    with Deadline(MAX_DOWNLOAD_SECONDS) as deadline:
        try:
            file = fetch(deadline, url, name, max_bytes)
        except (MediaNotFoundError, MediaFormatError):
            if not deadline.is_past:
                raise
        else:
            if not deadline.is_past:
                return file
            file.close()
    limit = f"{MAX_DOWNLOAD_SECONDS} seconds"
    raise MediaNotFoundError(f"{name} cannot be fetched: the download took more than {limit}")


def fetch(deadline: Deadline, url: str, name: str, max_bytes: int) -> BinaryIO:
    try:
        # spaces and letters beyond ASCII
        encoded = urllib.parse.quote(url, safe=string.punctuation)
        request = urllib.request.Request(encoded, headers={"User-Agent": "qwen25vl"})
        with deadline.opener().open(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            file = store(decoded(response, name), name, max_bytes)
            if response.length:  # what the server had announced and did not send
                file.close()
                raise MediaFormatError(
                    f"{name}: the connection ended {response.length} bytes early"
                )
            return file
    except MediaError:
        raise
    except urllib.error.HTTPError as error:
        raise MediaNotFoundError(
            f"{name}: the server answered {error.code} {error.reason}"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MediaNotFoundError(
            f"{name} cannot be fetched: {getattr(error, 'reason', None) or error}"
        ) from None


def decoded(response: Any, name: str) -> Readable:
    """The response with its Content-Encoding undone;
    some servers encode what nobody asked them to."""
    stream: Readable = response
    stated = ",".join(response.headers.get_all("Content-Encoding", []))
    encodings = [encoding.strip().lower() for encoding in stated.split(",")]
    for encoding in reversed(encodings):  # the last one was applied last
        if encoding in ("", "identity"):
            continue
        if encoding not in ("gzip", "x-gzip", "deflate"):
            known = "gzip and deflate are undone"
            raise MediaFormatError(
                f"{name} was sent with the content encoding {encoding!r}; {known}"
            )
        stream = Unpacked(stream, encoding, name)
    return stream


class Unpacked:
    """A stream in gzip or deflate, unpacked block by block, so that a small one cannot become a
    large one unseen.
    """

    def __init__(self, stream: Readable, encoding: str, name: str) -> None:
        self.stream = stream
        self.named = f"{name}, sent in the encoding {encoding},"
        self.is_deflate = encoding == "deflate"
        self.packed = b""
        self.decoder: Any = None
        self.is_begun = False

    def read(self, size: int, /) -> bytes:
        while True:
            if self.decoder is None and not self.begin():
                return b""
            if not self.packed and not (packed := self.stream.read(BLOCK_BYTES)):
                raise MediaFormatError(f"{self.named} is cut off")
            self.packed = self.packed or packed
            try:
                block: bytes = self.decoder.decompress(self.packed, size)
            except zlib.error as error:
                raise MediaFormatError(f"{self.named} is damaged: {error}") from None
            self.packed = self.decoder.unconsumed_tail
            if self.decoder.eof:
                self.packed = self.decoder.unused_data
                self.decoder = None
            if block:
                return block

    def begin(self) -> bool:
        """Make ready for a member, if one follows: gzip may have several, deflate has one."""
        while len(self.packed) < 2 and (more := self.stream.read(BLOCK_BYTES)):
            self.packed += more
        if self.is_begun and (self.is_deflate or not self.packed.startswith(GZIP_MAGIC)):
            while self.stream.read(BLOCK_BYTES):  # padding after the last member
                pass
            return False
        if not self.packed:
            return False
        self.is_begun = True
        if self.packed.startswith(GZIP_MAGIC):
            self.decoder = zlib.decompressobj(GZIP_BITS)
        elif self.is_deflate:
            header = int.from_bytes(self.packed[:2], "big")
            is_wrapped = self.packed[0] & 15 == 8 and header % 31 == 0
            self.decoder = zlib.decompressobj(ZLIB_BITS if is_wrapped else RAW_BITS)
        else:
            raise MediaFormatError(f"{self.named} is not in it")
        return True

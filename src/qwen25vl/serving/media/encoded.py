"""Base64 of a request, decoded in a thread so that a large one does not stop the event loop.

Nothing there is done to the whole text at once: one operation on a hundred megabytes holds the
interpreter, and with it the loop, as long as it takes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import urllib.parse

MAX_EXPANSION = 4  # characters for a byte: base64 with line breaks and percent-encoding
PIECE_CHARACTERS = 1 << 16
LARGE_CHARACTERS = 1 << 16  # from here on, decoding is done in a thread
TO_STANDARD = str.maketrans("-_", "+/")


class Base64Error(ValueError):
    """A text that is no base64."""


class TooLongError(ValueError):
    """A text of more bytes than are allowed."""


async def decode_base64(text: str, max_bytes: int) -> bytes:
    """In either alphabet, with or without padding, line breaks and percent-encoding. A length that
    cannot fit is refused before anything is decoded. Raises Base64Error, TooLongError."""
    if len(text) > MAX_EXPANSION * max_bytes:
        raise TooLongError
    if len(text) < LARGE_CHARACTERS:
        return decode(text, max_bytes)
    return await asyncio.to_thread(decode, text, max_bytes)


def decode(text: str, max_bytes: int) -> bytes:
    """Piece by piece. Raises as `decode_base64`."""
    pieces: list[bytes] = []
    num_bytes, start, packed, is_padded = 0, 0, "", False
    while start < len(text):
        stop = end_of_piece(text, start + PIECE_CHARACTERS)
        piece = pack(text[start:stop])
        start = stop
        body = piece.rstrip("=")
        if is_padded and body:
            raise Base64Error  # nothing but padding follows padding
        is_padded = is_padded or len(body) < len(piece)
        packed += body
        whole = len(packed) & ~3
        num_bytes += whole // 4 * 3
        if num_bytes > max_bytes:
            raise TooLongError
        pieces.append(to_bytes(packed[:whole]))
        packed = packed[whole:]
    if len(packed) == 1:
        raise Base64Error
    pieces.append(to_bytes(packed + "=" * (-len(packed) % 4)))
    if num_bytes + len(pieces[-1]) > max_bytes:
        raise TooLongError
    return b"".join(pieces)


def end_of_piece(text: str, stop: int) -> int:
    """Where a piece ends that is to have this end, without cutting a %2B in two."""
    cut = text.rfind("%", max(0, stop - 2), stop)
    return stop if cut < 0 else min(cut + 3, len(text))


def pack(piece: str) -> str:
    """The standard alphabet, without line breaks."""
    if "%" in piece:
        piece = urllib.parse.unquote(piece)
    return "".join(piece.split()).translate(TO_STANDARD)


def to_bytes(packed: str) -> bytes:
    try:
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):  # the latter: not ASCII
        raise Base64Error from None


def split_data_url(url: str) -> tuple[str, str]:
    """The media type of a data: address, in small letters, and its data. Raises Base64Error where
    the data are not in base64."""
    head, comma, payload = url.partition(",")
    kind, *parameters = head[len("data:") :].lower().split(";")
    if not comma or "base64" not in (word.strip() for word in parameters):
        raise Base64Error
    return kind.strip(), payload

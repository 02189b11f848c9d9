"""Base64 of a request, decoded in pieces so that a large one does not stop the event loop."""

from __future__ import annotations

import asyncio
import base64
import binascii
import urllib.parse

MAX_EXPANSION = 4  # characters for a byte: base64 with line breaks and percent-encoding
PIECE_CHARACTERS = 1 << 20  # a multiple of four
TO_STANDARD = str.maketrans("-_", "+/")


class Base64Error(ValueError):
    """A text that is no base64."""


class TooLongError(ValueError):
    """A text of more bytes than are allowed."""


async def decode_base64(text: str, max_bytes: int) -> bytes:
    """In either alphabet, with or without padding, line breaks and percent-encoding. The length is
    checked before anything is decoded. Raises Base64Error, TooLongError."""
    if len(text) > MAX_EXPANSION * max_bytes:
        raise TooLongError
    if "%" in text:
        text = urllib.parse.unquote(text)
    packed = "".join(text.split()).rstrip("=").translate(TO_STANDARD)
    if len(packed) * 3 // 4 > max_bytes:
        raise TooLongError
    if not packed.isascii() or len(packed) % 4 == 1:
        raise Base64Error
    pieces = []
    for start in range(0, len(packed), PIECE_CHARACTERS):
        piece = packed[start : start + PIECE_CHARACTERS]
        try:
            pieces.append(base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True))
        except binascii.Error:
            raise Base64Error from None
        if len(packed) > PIECE_CHARACTERS:
            await asyncio.sleep(0)
    return b"".join(pieces)


def split_data_url(url: str) -> tuple[str, str]:
    """The media type of a data: address, in small letters, and its data. Raises Base64Error where
    the data are not in base64."""
    head, comma, payload = url.partition(",")
    kind, *parameters = head[len("data:") :].lower().split(";")
    if not comma or "base64" not in (word.strip() for word in parameters):
        raise Base64Error
    return kind.strip(), payload

"""Base64 as people hand it over: in either alphabet, broken into lines, with blanks, without its
padding.
"""

from __future__ import annotations

import base64
import binascii
import re

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.content import identify

HEAD_CHARACTERS = 1024
# A text with this many characters of the alphabet in a row is base64, broken if it has others too.
MIN_RUN = 64
TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: bytes, name: str) -> bytes:
    """Raises MediaFormatError for other characters, and for a length that cannot be."""
    packed = b"".join(text.split()).translate(TO_STANDARD).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise MediaFormatError(f"{name} is not valid base64: {error}") from None


def decode_if_base64(text: str | bytes, name: str) -> bytes | None:
    """The content where this is base64 of a file of a known kind; None where it is anything else.

    Raises MediaFormatError where it begins as such and goes on otherwise.
    """
    if isinstance(text, bytes) and identify(text) is not None:
        return None
    head = text[:HEAD_CHARACTERS]
    packed = b"".join((head.encode("utf-8", "replace") if isinstance(head, str) else head).split())
    packed = packed.translate(TO_STANDARD)
    run = re.match(rb"[A-Za-z0-9+/]*", packed)
    characters = run[0] if run else b""
    is_whole = len(characters) == len(packed.rstrip(b"="))
    if len(characters) < (4 if is_whole else MIN_RUN):
        return None
    if identify(base64.b64decode(characters[: len(characters) // 4 * 4])) is None:
        return None
    return decode_base64(text.encode("utf-8", "replace") if isinstance(text, str) else text, name)

"""Base64 as people hand it over: in either alphabet, broken into lines, with blanks,
without its padding.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.content import identify

HEAD_CHARACTERS = 1024
# A text with this many characters of the alphabet in a row is base64, broken if it has others too.
MIN_RUN = 64
URI_START = re.compile(r"(?:[\s\ufeff]|b?['\"])*data:", re.IGNORECASE)
BOM = b"\xef\xbb\xbf"
QUOTED = re.compile(rb"b?(['\"])")
# What is left of a data URI without its "data:".
URI_REST = re.compile(rb"(?:[\w.+-]+/[\w.+-]+)?(?:;[\w=.-]+)*;?base64,", re.IGNORECASE)
TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def is_data_uri(source: str | bytes | bytearray) -> bool:
    """Whether this begins as one, behind blanks, a byte-order mark or a quotation mark."""
    head = source[:64]
    return bool(URI_START.match(head if isinstance(head, str) else head.decode("utf-8", "replace")))


def trim_text(text: bytes) -> bytes:
    """Without blanks, a byte-order mark and quotation marks around it."""
    text = text.strip().removeprefix(BOM).strip()
    if quoted := QUOTED.match(text):
        text = text[quoted.end() :].removesuffix(quoted[1]).strip()
    return text


def plain_base64(text: bytes) -> bytes:
    """Without what may stand around base64, percent-encoding undone."""
    text = trim_text(text)
    if rest := URI_REST.match(text[:HEAD_CHARACTERS]):
        text = text[rest.end() :]
    return urllib.parse.unquote_to_bytes(text) if b"%" in text else text


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
    head = plain_base64(head.encode("utf-8", "replace") if isinstance(head, str) else head)
    packed = b"".join(head.split()).translate(TO_STANDARD)
    run = re.match(rb"[A-Za-z0-9+/]*", packed)
    characters = run[0] if run else b""
    is_whole = len(characters) == len(packed.rstrip(b"="))
    if len(characters) < (4 if is_whole else MIN_RUN):
        return None
    if identify(base64.b64decode(characters[: len(characters) // 4 * 4])) is None:
        return None
    whole = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return decode_base64(plain_base64(whole), name)

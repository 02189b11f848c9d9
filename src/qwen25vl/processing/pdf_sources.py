"""Which sources are PDF documents, and their pages as sources of pictures.

A document is known by its content where that is at hand (bytes, base64, a file), and by the end of
its name where it is an address: `report.pdf`, `https://…/report.pdf`. Behind it may stand which
pages are meant, as PDF viewers have it: `report.pdf#page=3-7`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qwen25vl.errors import MediaFormatError, UsageError
from qwen25vl.processing.base64_text import is_data_uri
from qwen25vl.processing.content import HEAD_BYTES, PDF, identify
from qwen25vl.processing.pdf import PdfPage, read_pages
from qwen25vl.processing.sources import exists, is_pair, load_bytes, source_name

MAX_DOCUMENT_BYTES = 1 << 30
BASE64_START = "JVBERi0"  # %PDF-
REMOTE = ("http://", "https://")


class Document:
    """A source that is stated to be a PDF document, whatever its name is.

    name: what it is called; pages: those that its address names.
    """

    def __init__(self, source: Any, pages: str | None = None, name: str | None = None) -> None:
        self.source, self.pages = source, pages
        self.name = name or source_name(source)


def open_pages(source: Any, pages: Any = None) -> list[PdfPage] | None:
    """The pages of a document, or those that are chosen by `pages` (see `pdf.page_numbers`), else
    by its address; None for a source that is no document.

    Raises UsageError where both choose, and as `load_bytes` and `read_pages` do.
    """
    document = source if isinstance(source, Document) else find_document(source)
    if document is None:
        return None
    if pages is not None and document.pages is not None:
        got = f"{document.name}: its address chooses pages {document.pages!r}"
        raise UsageError(f"{got}, and so does pages={pages!r}; give only one")
    data = load_bytes(document.source, name=document.name, max_bytes=MAX_DOCUMENT_BYTES)
    if (content := identify(data)) is not PDF:
        if isinstance(source, Document):
            got = content.words if content else "something else"
            raise MediaFormatError(f"{document.name} is said to be a PDF document but is {got}")
        return None
    return read_pages(data, document.name, document.pages if pages is None else pages)


def find_document(source: Any) -> Document | None:
    """The document that a source leads to, by its first bytes or its name."""
    if isinstance(source, bytes | bytearray | memoryview):
        head = bytes(source[:HEAD_BYTES])
        is_encoded = head.lstrip().startswith(BASE64_START.encode()) or is_pdf_uri(head)
        return Document(source) if is_encoded or identify(head) is PDF else None
    if isinstance(source, str):
        return find_in_text(source)
    if isinstance(source, os.PathLike):
        return Document(source) if is_pdf_file(os.fsdecode(source)) else None
    if is_pair(source):
        inner = source["bytes"] if source["bytes"] is not None else source.get("path")
        found = find_document(inner)
        return found and Document(source, found.pages)
    return None


def find_in_text(source: str) -> Document | None:
    if is_data_uri(source):
        return Document(source) if is_pdf_uri(source[:HEAD_BYTES].encode()) else None
    address = source.strip()
    if address.lower().startswith(REMOTE):
        bare, pages = split_pages(address)
        is_pdf = urlsplit(bare).path.lower().endswith(".pdf")
        return Document(bare, pages) if is_pdf else None
    if address.startswith(BASE64_START) and not exists(source):
        return Document(source)
    for bare, pages in ((source, None), split_pages(source)):
        path = bare[len("file://") :] if bare[:7].lower() == "file://" else bare
        if is_pdf_file(path) or (not exists(path) and path.lower().endswith(".pdf")):
            return Document(bare, pages)
    return None


def split_pages(address: str) -> tuple[str, str | None]:
    """The address before #, and the pages that stand behind it; all of it where there are none."""
    bare, _, fragment = address.partition("#")
    stated = [word for word in fragment.split("&") if word.startswith("page=")]
    if stated:
        return bare, stated[0].removeprefix("page=")
    return (bare, None) if address.lower().startswith(REMOTE) else (address, None)


def is_pdf_uri(head: bytes) -> bool:
    """Whether a data URI says that it is one, or begins as one."""
    kind, _, payload = head.decode("latin-1").partition(",")
    return is_data_uri(kind) and (
        "application/pdf" in kind.lower() or payload.startswith(BASE64_START)
    )


def is_pdf_file(path: str) -> bool:
    """Whether there is a file, and no pipe, that begins as one."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            return identify(file.read(HEAD_BYTES)) is PDF
    except (OSError, ValueError):
        return False

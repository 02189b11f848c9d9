"""Pages of PDF documents as pictures: PDFium renders each at the size at which the model sees it.

A page has a size in points, 1/72 inch, and no pixels of its own. It counts as a picture of 144 dots
per inch, to which the usual bounds apply (min_pixels, max_pixels, resized_height). What comes out
is the model size, and exactly so many pixels are rendered: original size and model size are equal.

PDFium must not be called by two threads at once, so that everything here holds one lock. A document
is open only while a page of it is rendered, except for one that `keep_open` names.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen25vl.errors import DependencyError, MediaFormatError, MediaSizeError, UsageError

PIXELS_PER_POINT = 2.0
MAX_PAGES = 256
MAX_POINTS = 1e6
WHITE = (255, 255, 255, 255)
LOCK = threading.Lock()
PASSWORD_ERROR = 4  # PDFium's number for a document that asks for one


class PdfPage:
    """One page of a document, a source of a picture.

    number: counted from 1. size: (height, width) in points, as the page is shown.
    """

    def __init__(self, data: bytes, number: int, size: tuple[float, float], name: str) -> None:
        self.data, self.number, self.size = data, number, size
        self.name = f"page {number} of {name}"

    def __repr__(self) -> str:
        return f"PdfPage({self.name!r}, {self.size[1]:g}×{self.size[0]:g} points)"

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) at 144 dots per inch, from which the model size is chosen."""
        height, width = (max(1, round(side * PIXELS_PER_POINT)) for side in self.size)
        return height, width

    def render(self, height: int, width: int) -> np.ndarray[Any, Any]:
        """The page in RGB on white, uint8 [height, width, 3], with its annotations and filled-in
        forms. Raises MediaFormatError for a damaged page."""
        with open_document(self.data, self.name) as document:
            return render_page(document, self.number - 1, height, width, self.name)


def read_pages(
    data: bytes, name: str, pages: Any = None, max_pages: int = MAX_PAGES
) -> list[PdfPage]:
    """The pages of a document, or those that are chosen, in that order; see `page_numbers`.

    Raises MediaFormatError (damaged, encrypted, no pages), MediaSizeError (more than `max_pages`),
    UsageError (no such page), DependencyError.
    """
    with open_document(data, name) as document:
        total = len(document)
        if total < 1:
            raise MediaFormatError(f"{name} is a PDF document without pages")
        numbers = page_numbers(pages, total, name, max_pages)
        sizes = [page_size(document, number - 1, name) for number in numbers]
    return [PdfPage(data, number, size, name) for number, size in zip(numbers, sizes, strict=True)]


def page_numbers(pages: Any, total: int, name: str, max_pages: int = MAX_PAGES) -> list[int]:
    """What a choice of pages stands for: a number from 1, a text such as "1,3-5,8-" (8- is from
    page 8 on, -3 up to page 3), or a list or range of these; None is all.

    Raises UsageError for a page that the document does not have, and for anything else;
    MediaSizeError for more than `max_pages`.
    """
    words = "1-" if pages is None else pages
    words = words.split(",") if isinstance(words, str) else words
    if isinstance(words, int) or not isinstance(words, Sequence):
        words = [words]
    numbers: list[int] = []
    for word in words:
        first, last = page_range(word, total)
        if not 1 <= first <= last:
            wanted = "expected numbers from 1, as 3, '3-7', '1,4-6' or [1, 4]"
            raise UsageError(f"pages is {pages!r:.60}; {wanted}")
        if last > total:
            have = f"{total} page{'s' if total > 1 else ''}"
            raise UsageError(f"pages asks for page {last} of {name}, which has {have}")
        if len(numbers) + last - first + 1 > max_pages:
            remedy = "choose some of them, as with pages='1-20'"
            raise MediaSizeError(
                f"{name} has {total} pages, of which at most {max_pages} are taken; {remedy}"
            )
        numbers += range(first, last + 1)
    if not numbers:
        raise UsageError(f"pages of {name} is empty; expected at least one page")
    return numbers


def page_range(word: Any, total: int) -> tuple[int, int]:
    """First and last page of one word of a choice; (0, 0) where it is none."""
    if isinstance(word, int) and not isinstance(word, bool):
        return word, word
    if not isinstance(word, str) or len(word) > 20:
        return 0, 0
    first, dash, last = (part.strip() for part in word.partition("-"))
    if not all(part.isascii() and (part.isdigit() or not part) for part in (first, last)):
        return 0, 0
    if not dash or not (first or last):
        return (int(first), int(first)) if first and not dash else (0, 0)
    return int(first or 1), int(last or total)


@dataclass
class KeptDocument:
    """The document that stays open, and its bytes."""

    data: bytes | None = None
    document: Any = None


KEPT = KeptDocument()


def keep_open(data: bytes | None) -> None:
    """Leave this document open once a page of it was read, and close the one before: PDFium finds a
    page by counting from the first one, once for each time that the document is opened."""
    with LOCK:
        if data is not KEPT.data:
            if KEPT.document is not None:
                KEPT.document.close()
            KEPT.data, KEPT.document = data, None


@contextmanager
def open_document(data: bytes, name: str) -> Iterator[Any]:
    """PDFium's document, under the lock, closed at the end."""
    try:
        import pypdfium2
    except ImportError:
        remedy = 'pip install "qwen25vl[pdf]"'
        raise DependencyError(f"{name} is a PDF document, which needs {remedy}") from None
    with LOCK, ExitStack() as opened:
        if data is KEPT.data and KEPT.document is not None:
            yield KEPT.document
            return
        try:
            document = pypdfium2.PdfDocument(data)
            if data is KEPT.data:
                KEPT.document = document
            else:
                opened.callback(document.close)
            document.init_forms()
        except pypdfium2.PdfiumError as error:
            if error.err_code == PASSWORD_ERROR:
                remedy = "save it without its password first"
                raise MediaFormatError(f"{name} is an encrypted PDF document; {remedy}") from None
            raise MediaFormatError(f"{name} is cut off or damaged: no PDF document") from None
        yield document


def page_size(document: Any, index: int, name: str) -> tuple[float, float]:
    """(height, width) of a page in points."""
    import pypdfium2

    try:
        width, height = document.get_page_size(index)
    except pypdfium2.PdfiumError:
        raise MediaFormatError(f"page {index + 1} of {name} is damaged") from None
    if not all(math.isfinite(side) and 0 < side <= MAX_POINTS for side in (height, width)):
        got = f"page {index + 1} of {name} has {width:g}×{height:g} points"
        raise MediaSizeError(f"{got}; a side may have up to {MAX_POINTS:g}")
    return height, width


def render_page(
    document: Any, index: int, height: int, width: int, name: str
) -> np.ndarray[Any, Any]:
    """Both sides are scaled on their own, which makes a page as wide and high as the model wants
    it."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    flags = pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER
    with ExitStack() as opened:
        try:
            page = document[index]
            opened.callback(page.close)
            bitmap = pypdfium2.PdfBitmap.new_native(
                width, height, pdfium.FPDFBitmap_BGR, rev_byteorder=True
            )
            opened.callback(bitmap.close)
        except (pypdfium2.PdfiumError, ValueError, MemoryError):
            raise MediaFormatError(f"{name} is damaged") from None
        bitmap.fill_rect(WHITE, 0, 0, width, height)
        place = (0, 0, width, height, 0, flags)
        pdfium.FPDF_RenderPageBitmap(bitmap, page, *place)
        if document.formenv:
            pdfium.FPDF_FFLDraw(document.formenv, bitmap, page, *place)
        return np.array(bitmap.to_numpy()[..., :3])

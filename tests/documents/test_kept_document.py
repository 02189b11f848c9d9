"""A document stays open in the process that reads its pages."""

import io

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from qwen25vl.processing import pdf


def document(numbers: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    first, *others = [Image.new("RGB", (60, 40), (number, 0, 0)) for number in numbers]
    first.save(file, "PDF", save_all=True, append_images=others)
    return file.getvalue()


def test_open_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """PDFium counts to a page from the first one each time that it opens a document: the last pages
    of ten thousand took a tenth of a second each."""
    data = document((10, 90, 170))
    alone = [page.render(28, 56) for page in pdf.read_pages(data, "a")]
    number = 0
    make = pypdfium2.PdfDocument

    def count(*arguments: object) -> object:
        nonlocal number
        number += 1
        return make(*arguments)

    monkeypatch.setattr(pypdfium2, "PdfDocument", count)
    try:
        pdf.keep_open(data)
        together = [page.render(28, 56) for page in pdf.read_pages(data, "a")]
        assert number == 1
        other = document((200,))
        assert pdf.read_pages(other, "b")[0].render(28, 56)[0, 0, 0] > 190
        assert number == 3  # which does not stay open
        pdf.keep_open(other)
        assert pdf.read_pages(other, "b")[0].render(28, 56)[0, 0, 0] > 190
    finally:
        pdf.keep_open(None)
    assert all(np.array_equal(one, two) for one, two in zip(alone, together, strict=True))

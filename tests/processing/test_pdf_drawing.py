"""Answers written back into PDF documents: where the annotations stand, and what they say."""

import ctypes
import io
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
import pytest

from qwen25vl.answer import Answer, Timings, Usage
from qwen25vl.errors import UsageError
from qwen25vl.inputs import MediaItem
from qwen25vl.processing.pdf import PdfPage, read_pages

RECTANGLE = 90.0, 210.0, 190.0, 270.0  # left, bottom, right, top in the page's own coordinates
CROPS = (None, (50.0, 120.0, 350.0, 420.0))
BLUE = 0, 0, 255, 255


def document(turns: int, crop: tuple[float, ...] | None, num_pages: int = 1) -> bytes:
    """Pages of 400×500 points with a blue rectangle, turned and cropped."""
    made = pypdfium2.PdfDocument.new()
    for _ in range(num_pages):
        page = made.new_page(400, 500)
        left, bottom, right, top = RECTANGLE
        rectangle = pdfium.FPDFPageObj_CreateNewRect(left, bottom, right - left, top - bottom)
        pdfium.FPDFPageObj_SetFillColor(rectangle, *BLUE)
        pdfium.FPDFPath_SetDrawMode(rectangle, pdfium.FPDF_FILLMODE_ALTERNATE, False)
        pdfium.FPDFPage_InsertObject(page, rectangle)
        page.gen_content()
        page.set_rotation(90 * turns)
        if crop is not None:
            page.set_cropbox(*crop)
    file = io.BytesIO()
    made.save(file)
    made.close()
    return file.getvalue()


def blue_box(pixels: Any) -> tuple[int, int, int, int]:
    """What a perfect model would say of the rectangle: its pixels in the rendered page."""
    rows, columns = np.nonzero((pixels[..., 2] > 200) & (pixels[..., 0] < 60))
    return (
        int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    )  # fmt: skip


def answer_about(page: PdfPage, text: str) -> Answer:
    size = page.pixels
    item = MediaItem(
        "image", page.name, 0, size, size, 4, 1, None, b"", page=page.number, page_size=page.size
    )
    usage, timings = Usage(1, 1, 1, 0), Timings(0.0, 0.0, 0.0, 0.0, 0.0)
    return Answer(text, "stop", usage, timings, (item,), text, (page,))


def annotations(data: bytes, number: int = 0) -> list[tuple[int, tuple[float, ...], str]]:
    """Kind, rectangle (left, bottom, right, top) and text of each."""
    found = []
    read = pypdfium2.PdfDocument(data)
    page = read[number]
    for place in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, place)
        area = pdfium.FS_RECTF()
        pdfium.FPDFAnnot_GetRect(annotation, area)
        length = pdfium.FPDFAnnot_GetStringValue(annotation, b"Contents", None, 0)
        letters = ctypes.create_string_buffer(length)
        wide = ctypes.cast(letters, ctypes.POINTER(pdfium.FPDF_WCHAR))
        pdfium.FPDFAnnot_GetStringValue(annotation, b"Contents", wide, length)
        rectangle = area.left, area.bottom, area.right, area.top
        text = letters.raw.decode("utf-16-le").rstrip("\0")
        found.append((pdfium.FPDFAnnot_GetSubtype(annotation), rectangle, text))
        pdfium.FPDFPage_CloseAnnot(annotation)
    read.close()
    return found


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("crop", CROPS)
def test_boxes_stand_where_the_page_has_them(
    turns: int, crop: tuple[float, ...] | None, tmp_path: Path
) -> None:
    """Annotations are in the page's own coordinates: forgetting its rotation or its crop box puts
    them elsewhere."""
    data = document(turns, crop)
    (page,) = read_pages(data, "a.pdf")
    x1, y1, x2, y2 = blue_box(page.render(*page.pixels))
    middle = (x1 + x2) // 2, (y1 + y2) // 2
    text = (
        f'[{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "総額 Σ"}}, '
        f'{{"point_2d": [{middle[0]}, {middle[1]}], "label": "middle"}}]'
    )
    path = tmp_path / "out.pdf"
    answer_about(page, text).save_pdf(path)
    square, circle, *stamps = annotations(path.read_bytes())
    assert square[0] == pdfium.FPDF_ANNOT_SQUARE
    assert square[1] == pytest.approx(RECTANGLE, abs=1)
    assert square[2] == "総額 Σ"
    left, bottom, right, top = circle[1]
    assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx((140, 240), abs=1)
    assert [stamp[2] for stamp in stamps] == ["総額 Σ", "middle"]


@pytest.mark.parametrize("turns", range(4))
def test_what_is_shown(turns: int, tmp_path: Path) -> None:
    """The frame is drawn around the rectangle, the label upright above it, and all else stays."""
    data = document(turns, CROPS[1])
    (page,) = read_pages(data, "a.pdf")
    before = page.render(*page.pixels)
    x1, y1, x2, y2 = blue_box(before)
    path = tmp_path / "out.pdf"
    text = f'{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "a rectangle"}}'
    answer_about(page, text).save_pdf(path)
    (drawn,) = read_pages(path.read_bytes(), "out.pdf")
    after = drawn.render(*page.pixels)
    rows, columns = np.nonzero((after != before).any(-1))
    edge = 3
    frame = after[y2 - edge : y2, x1 + 6 : x2 - 6].reshape(-1, 3)
    assert (frame == (230, 25, 75)).all(-1).mean() > 0.5
    assert (
        after[y1 + 6 : y2 - 6, x1 + 6 : x2 - 6] == before[y1 + 6 : y2 - 6, x1 + 6 : x2 - 6]
    ).all()
    assert rows.max() <= y2 + 2
    label = after[rows.min() : y1 - 2, columns.min() : columns.max()]
    assert label.shape[1] > 2 * label.shape[0]  # along the lines of the page as it is shown


def test_pages_one_after_the_other(tmp_path: Path) -> None:
    """Answers about two pages end in one document."""
    data = document(0, None, 3)
    first, _, third = read_pages(data, "a.pdf")
    path = tmp_path / "out.pdf"
    answer_about(first, '{"bbox_2d": [10, 10, 50, 50], "label": "one"}').save_pdf(path)
    answer_about(third, '{"bbox_2d": [10, 10, 50, 50], "label": "three"}').save_pdf(path, path)
    labels = [{each[2] for each in annotations(path.read_bytes(), page)} for page in range(3)]
    assert labels == [{"one"}, set(), {"three"}]


def test_what_is_no_page(tmp_path: Path) -> None:
    (page,) = read_pages(document(0, None), "a.pdf")
    answer = answer_about(page, "")
    item = MediaItem("image", "a.png", 0, (56, 56), (56, 56), 4, 1, None, b"")
    picture = Answer("", "stop", answer.usage, answer.timings, (item,), "", (b"",))
    with pytest.raises(UsageError, match=r"a\.png is no page of a PDF document"):
        picture.save_pdf(tmp_path / "out.pdf")
    assert not (tmp_path / "out.pdf").exists()

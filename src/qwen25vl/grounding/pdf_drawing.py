"""Boxes and points as annotations of a PDF document: what was there stays as it is, and any viewer
shows, lists and removes them.

A box is a square annotation, a point a circle, and each has its label as its text. The label is
also shown: as a stamp, a picture of letters, which needs no font in the document.

A place is given in points from the upper left corner of the page *as it is shown*. Annotations are
in the page's own coordinates: upwards from the lower left, before its rotation, and not from the
corner of its crop box.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen25vl.errors import MediaFormatError, UsageError
from qwen25vl.grounding.boxes import Box, Point
from qwen25vl.grounding.captions import Caption, caption_labels
from qwen25vl.grounding.drawing import COLOURS

if TYPE_CHECKING:
    from PIL import Image

AUTHOR = "qwen25vl"
LINE, RADIUS = 1.5, 3.0  # points
LETTERS = 9.0  # points high
DOTS_PER_POINT = 4  # of a label's picture
PADDING = 2.0  # points
PRINTED = 4  # the flag of an annotation that is printed too
Area = tuple[float, float, float, float]


def annotate_page(
    document: Any,
    number: int,
    boxes: Sequence[Box],
    points: Sequence[Point],
    font: str | Path | None = None,
) -> bytes:
    """A document of PDFium with annotations on one of its pages, counted from 1, as a file. Places
    are in points from the upper left corner of the page as it is shown. Raises UsageError for a
    page that it does not have, and for a font that cannot be used."""
    if not 1 <= number <= len(document):
        raise UsageError(f"the document has {len(document)} pages; there is no page {number}")
    with opened(document[number - 1]) as page:
        Pen(document, page).write(boxes, points, font)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


@contextmanager
def opened(page: Any) -> Iterator[Any]:
    try:
        yield page
    finally:
        page.close()


@dataclass(frozen=True)
class Shown:
    """A page as it is shown. left, bottom, right, top: of what is visible, in its own coordinates;
    turns: quarters of a circle, clockwise."""

    left: float
    bottom: float
    right: float
    top: float
    turns: int

    @classmethod
    def of(cls, page: Any) -> Shown:
        left, bottom, right, top = page.get_bbox()
        return cls(left, bottom, right, top, page.get_rotation() // 90 % 4)

    def to_page(self, across: float, down: float) -> tuple[float, float]:
        """A place of the page as it is shown in the page's own coordinates."""
        corners = (
            (self.left + across, self.top - down),
            (self.left + down, self.bottom + across),
            (self.right - across, self.bottom + down),
            (self.right - down, self.top - across),
        )
        return corners[self.turns]

    def area_to_page(self, area: Area) -> Area:
        """(left, bottom, right, top) of (left, upper, right, lower) as it is shown."""
        (x1, y1), (x2, y2) = self.to_page(*area[:2]), self.to_page(*area[2:])
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height as it is shown."""
        width, height = self.right - self.left, self.top - self.bottom
        return (height, width) if self.turns % 2 else (width, height)


class Pen:
    """Writes annotations on one page."""

    def __init__(self, document: Any, page: Any) -> None:
        import pypdfium2.raw as pdfium

        self.pdfium, self.document, self.page = pdfium, document, page
        self.shown = Shown.of(page)

    def write(self, boxes: Sequence[Box], points: Sequence[Point], font: str | Path | None) -> None:
        places: list[Box | Point] = [*boxes, *points]
        labels = list(dict.fromkeys(place.label for place in places))
        colour_of = dict(zip(labels, cycle(COLOURS), strict=False))
        captions = captions_of(labels, font)
        for place in places:
            if isinstance(place, Box):
                kind, area = self.pdfium.FPDF_ANNOT_SQUARE, (place.x1, place.y1, place.x2, place.y2)
            else:
                kind = self.pdfium.FPDF_ANNOT_CIRCLE
                area = (place.x - RADIUS, place.y - RADIUS, place.x + RADIUS, place.y + RADIUS)
            self.outline(kind, area, place.label, colour_of[place.label])
        for place in places:  # last, so that no line runs through a label
            if place.label in captions:
                corner = (place.x1, place.y1) if isinstance(place, Box) else (place.x, place.y)
                self.stamp(captions[place.label], corner, place.label, colour_of[place.label])

    @contextmanager
    def annotation(self, kind: int, area: Area, text: str) -> Iterator[Any]:
        pdfium = self.pdfium
        annotation = pdfium.FPDFPage_CreateAnnot(self.page, kind)
        if not annotation:
            raise MediaFormatError("the page takes no annotations")
        try:
            left, bottom, right, top = self.shown.area_to_page(area)
            pdfium.FPDFAnnot_SetRect(annotation, pdfium.FS_RECTF(left, top, right, bottom))
            pdfium.FPDFAnnot_SetFlags(annotation, PRINTED)
            for key, value in ((b"Contents", text), (b"T", AUTHOR)):
                letters = ctypes.create_string_buffer((value + "\0").encode("utf-16-le"))
                wide = ctypes.cast(letters, pdfium.FPDF_WIDESTRING)
                pdfium.FPDFAnnot_SetStringValue(annotation, key, wide)
            yield annotation
        finally:
            pdfium.FPDFPage_CloseAnnot(annotation)

    def outline(self, kind: int, area: Area, label: str, colour: str) -> None:
        from PIL import ImageColor

        pdfium = self.pdfium
        with self.annotation(kind, area, label) as annotation:
            rgba = (*ImageColor.getrgb(colour)[:3], 255)
            pdfium.FPDFAnnot_SetColor(annotation, pdfium.FPDFANNOT_COLORTYPE_Color, *rgba)
            if kind == pdfium.FPDF_ANNOT_CIRCLE:
                inner = pdfium.FPDFANNOT_COLORTYPE_InteriorColor
                pdfium.FPDFAnnot_SetColor(annotation, inner, *rgba)
            pdfium.FPDFAnnot_SetBorder(annotation, 0.0, 0.0, LINE)

    def stamp(self, caption: Caption, corner: tuple[float, float], label: str, colour: str) -> None:
        """The label above a corner, or below it where there is no room; inside the page."""
        import pypdfium2

        picture = draw_caption(caption, colour)
        width, height = (side / DOTS_PER_POINT for side in picture.size)
        room = self.shown.size
        x = max(0.0, min(corner[0], room[0] - width))
        y = corner[1] - height if corner[1] >= height else min(corner[1], room[1] - height)
        with self.annotation(
            self.pdfium.FPDF_ANNOT_STAMP, (x, y, x + width, y + height), label
        ) as annotation:
            image = pypdfium2.PdfImage.new(self.document)
            bitmap = pypdfium2.PdfBitmap.from_pil(picture)
            image.set_bitmap(bitmap)
            bitmap.close()
            origin = self.shown.to_page(x, y + height)
            right = self.shown.to_page(x + width, y + height)
            up = self.shown.to_page(x, y)
            image.set_matrix(
                pypdfium2.PdfMatrix(
                    right[0] - origin[0], right[1] - origin[1],
                    up[0] - origin[0], up[1] - origin[1], *origin,
                )
            )  # fmt: skip
            if not self.pdfium.FPDFAnnot_AppendObject(annotation, image):
                raise MediaFormatError("a label cannot be written to the page")
            image._detach_finalizer()  # it belongs to the annotation now


def captions_of(labels: Sequence[str], font: str | Path | None) -> dict[str, Caption]:
    from PIL import ImageFont

    size = int(LETTERS * DOTS_PER_POINT)
    try:
        main_font = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    except OSError as error:
        raise UsageError(f"the font {font} cannot be used: {error}") from None
    return caption_labels(labels, main_font, size)


def draw_caption(caption: Caption, colour: str) -> Image.Image:
    """The label on a ground of its colour, in black or white, as is readable."""
    from PIL import Image, ImageColor, ImageDraw

    space = round(PADDING * DOTS_PER_POINT)
    left, top, right, bottom = (round(side) for side in caption.font.getbbox(caption.text))
    picture = Image.new("RGB", (right - left + 2 * space, bottom - top + 2 * space), colour)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    ImageDraw.Draw(picture).text(
        (space - left, space - top), caption.text, fill="black" if is_light else "white",
        font=caption.font,
    )  # fmt: skip
    return picture

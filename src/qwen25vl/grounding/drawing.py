"""Boxes and points drawn on a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from qwen25vl.errors import UsageError
from qwen25vl.grounding.boxes import Box, Point
from qwen25vl.grounding.captions import Caption, caption_labels

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

COLOURS = ("#e6194b", "#3cb44b", "#0082c8", "#f58230", "#911eb4", "#ffe119", "#46f0f0")
MAX_COMPARED_LABELS = 200  # how many of the labels before are kept clear of
MAX_ROWS = 10  # how far from its box, in rows, a label may go to find room
PADDING = 2
Rectangle = tuple[float, float, float, float]


def draw(
    picture: Image.Image,
    boxes: Sequence[Box] = (),
    points: Sequence[Point] = (),
    *,
    font: str | Path | None = None,
) -> Image.Image:
    """A copy of the original picture with the boxes and points drawn on it, one colour per label.

    Lines and letters grow with the picture. Labels stay inside the picture: long ones are
    shortened, and where not even one letter fits there is none. `font` is a TrueType or OpenType
    file; the default is Pillow's own font, which has the letters of English. For a label with
    other letters an installed font is used. Letters that no font has are written as code points,
    emoji by name, accented letters without accent, and a UserWarning names them. Raises UsageError
    for a font that cannot be used.
    """
    from PIL import ImageDraw, ImageFont

    canvas = picture.convert("RGB")
    short_side = min(canvas.size)
    line = max(1, round(short_side / 200))
    size = max(10, round(short_side / 35))
    try:
        main_font = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    except OSError as error:
        raise UsageError(f"the font {font} cannot be used: {error}") from None
    places: list[Box | Point] = [*boxes, *points]
    labels = list(dict.fromkeys(place.label for place in places))
    colour_of = dict(zip(labels, cycle(COLOURS), strict=False))
    captions = caption_labels(labels, main_font, size)

    pen = ImageDraw.Draw(canvas)
    right, bottom = canvas.width - 1, canvas.height - 1
    for box in boxes:
        x1, x2 = sorted(min(max(x, 0), right) for x in (box.x1, box.x2))
        y1, y2 = sorted(min(max(y, 0), bottom) for y in (box.y1, box.y2))
        pen.rectangle((x1, y1, x2, y2), outline=colour_of[box.label], width=line)
    for point in points:
        centre = min(max(point.x, 0), right), min(max(point.y, 0), bottom)
        colour = colour_of[point.label]
        pen.circle(centre, 2 * line + 1, fill=colour, outline="white", width=line)
    taken: list[Rectangle] = []
    for place in places:  # last, so that no line runs through a label
        if place.label in captions:
            caption, colour = captions[place.label], colour_of[place.label]
            write_label(pen, caption, area_of(place, line), taken, colour=colour)
    return canvas


def area_of(place: Box | Point, line: int) -> Rectangle:
    """Where the label of a place belongs: above, or beside a point's circle."""
    if isinstance(place, Box):
        return place.x1, place.y1, place.x2, place.y2
    x = place.x + 3 * line
    return x, place.y, x, place.y


def write_label(
    pen: ImageDraw.ImageDraw,
    caption: Caption,
    area: Rectangle,
    taken: list[Rectangle],
    *,
    colour: str,
) -> None:
    """The label on a ground of its colour where there is room; black or white, as is readable."""
    from PIL import ImageColor

    canvas_width, canvas_height = pen.im.size
    text = caption.text
    left, top, right, bottom = pen.textbbox((0, 0), text, font=caption.font)
    while right - left + 2 * PADDING > canvas_width and len(text) > 1:
        text = text[:-2] + "…"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=caption.font)
    width, height = right - left + 2 * PADDING, bottom - top + 2 * PADDING
    if width > canvas_width or height > canvas_height:
        return
    x = max(0, min(area[0], canvas_width - width))
    recent = taken[-MAX_COMPARED_LABELS:]
    lowest = canvas_height - height
    tops = [y for y in rows_near(area, height) if 0 <= y <= lowest]
    tops = tops or [max(0, min(area[1], lowest))]
    spots = [(x, y, x + width, y + height) for y in tops]
    free = (spot for spot in spots if not any(overlap(spot, other) for other in recent))
    spot = next(free, spots[0])
    taken.append(spot)
    pen.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=colour)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    place = spot[0] + PADDING - left, spot[1] + PADDING - top
    pen.text(place, text, fill="black" if is_light else "white", font=caption.font)


def rows_near(area: Rectangle, height: float) -> Iterator[float]:
    """Where the top of a label may be: above its place, inside, below, then row by row away."""
    yield from (area[1] - height, area[1], area[3])
    for row in range(1, MAX_ROWS):
        yield area[1] + row * height
        yield area[1] - (row + 1) * height


def overlap(first: Rectangle, second: Rectangle) -> bool:
    across = first[0] < second[2] and second[0] < first[2]
    return across and first[1] < second[3] and second[1] < first[3]

"""Boxes and points drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from qwen25vl.errors import UsageError
from qwen25vl.grounding.boxes import Box, Point

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

COLOURS = ("#e6194b", "#3cb44b", "#0082c8", "#f58230", "#911eb4", "#ffe119", "#46f0f0")
MAX_LABEL_LENGTH = 30


def draw(
    picture: Image.Image, boxes: Sequence[Box] = (), points: Sequence[Point] = (), *, font: str | Path | None = None
) -> Image.Image:
    """A copy of the original picture with the boxes and points drawn on it, one colour per label.

    Lines and letters grow with the picture, long labels are shortened. `font` is a TrueType file, for labels that
    Pillow's own font lacks letters for (Chinese, for one).
    """
    from PIL import ImageDraw, ImageFont

    canvas = picture.convert("RGB")
    short_side = min(canvas.size)
    line = max(1, round(short_side / 200))
    letters = max(10, round(short_side / 35))
    try:
        typeface = ImageFont.truetype(font, letters) if font else ImageFont.load_default(letters)
    except OSError as error:
        raise UsageError(f"the font {font} can not be used: {error}") from None
    places: list[Box | Point] = [*boxes, *points]
    colour_of = dict(zip(dict.fromkeys(place.label for place in places), cycle(COLOURS), strict=False))

    pen = ImageDraw.Draw(canvas)
    right, bottom = canvas.width - 1, canvas.height - 1
    for box in boxes:
        corners = min(box.x1, right), min(box.y1, bottom), min(box.x2, right), min(box.y2, bottom)
        pen.rectangle(corners, outline=colour_of[box.label], width=line)
    for point in points:
        centre = min(point.x, right), min(point.y, bottom)
        pen.circle(centre, 2 * line + 1, fill=colour_of[point.label], outline="white", width=line)
    for place in places:  # last, so that no line runs through a label
        corner = (place.x1, place.y1) if isinstance(place, Box) else (place.x + 3 * line, place.y)
        write_label(pen, place.label, corner, colour=colour_of[place.label], font=typeface)
    return canvas


def write_label(pen: ImageDraw.ImageDraw, label: str, place: tuple[float, float], *, colour: str, font: Font) -> None:
    """The label on a ground of its colour, above the place or where there is room; black or white, as is readable."""
    from PIL import ImageColor

    if not label:
        return
    label = label if len(label) <= MAX_LABEL_LENGTH else label[: MAX_LABEL_LENGTH - 1] + "…"
    left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(place[0], pen.im.size[0] - width))
    y = place[1] - height if place[1] >= height else min(place[1], pen.im.size[1] - height)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    pen.text((x + 2 - left, y + 2 - top), label, fill="black" if is_light else "white", font=font)

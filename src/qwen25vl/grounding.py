"""Boxes and points in an answer: read them, map them back to the original picture, draw them.

Qwen2.5-VL answers in pixels of the picture as it saw it (the model size), not of the picture it was given. It
writes places in four ways, which are all read here, wherever they stand in the text:

    {"bbox_2d": [x1, y1, x2, y2], "label": "cup"}, {"point_2d": [x, y], "label": "cup"}    JSON, fenced or cut off
    <|object_ref_start|>cup<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>       the special tokens
    <points x1="…" y1="…" x2="…" y2="…" alt="cup">cup</points>                             XML
    <p data-bbox="x1 y1 x2 y2">text</p>                                                    document HTML

A place counts as soon as its coordinates are complete, also in an object that is cut off or not quite JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from qwen25vl.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Size = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of the original picture, x1 ≤ x2 and y1 ≤ y2, inside the picture.

    The original is the picture as it is shown: a photo that is stored on its side with an EXIF rotation, upright.
    `clipped` says that the model's box reached outside; `raw` is what it wrote, in pixels of the model size;
    `picture` is the index of the picture among the media of the prompt.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    clipped: bool = False
    picture: int = 0
    raw: tuple[float, ...] = ()

    @property
    def pixels(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) as whole pixels, as `picture.crop` takes it."""
        return round(self.x1), round(self.y1), round(self.x2), round(self.y2)


@dataclass(frozen=True)
class Point:
    """A labelled place in pixels of the original picture; the other fields are as in Box."""

    label: str
    x: float
    y: float
    clipped: bool = False
    picture: int = 0
    raw: tuple[float, ...] = ()


def read_boxes(text: str, *, original_size: Size, model_size: Size, picture: int = 0) -> list[Box]:
    """All boxes of a text in the order they stand in it. Sizes are (height, width) in pixels."""
    boxes = []
    for label, raw in find_places(text, num_coordinates=4):
        places = [to_original(raw[:2], original_size, model_size), to_original(raw[2:], original_size, model_size)]
        (x1, x2), (y1, y2) = (sorted(values) for values in zip(*(place[:2] for place in places), strict=True))
        boxes.append(Box(label, x1, y1, x2, y2, any(place[2] for place in places), picture, raw))
    return boxes


def read_points(text: str, *, original_size: Size, model_size: Size, picture: int = 0) -> list[Point]:
    """All points of a text in the order they stand in it. Sizes are (height, width) in pixels."""
    places = find_places(text, num_coordinates=2)
    return [Point(label, *to_original(raw, original_size, model_size), picture, raw) for label, raw in places]


def to_original(raw: Sequence[float], original_size: Size, model_size: Size) -> tuple[float, float, bool]:
    """x, y in model pixels to x, y in original pixels, and whether they had to be clipped."""
    x = raw[0] * original_size[1] / model_size[1]
    y = raw[1] * original_size[0] / model_size[0]
    inside_x, inside_y = min(max(x, 0.0), float(original_size[1])), min(max(y, 0.0), float(original_size[0]))
    return inside_x, inside_y, (x, y) != (inside_x, inside_y)


# --- reading -------------------------------------------------------------------------------------------------

Place = tuple[str, tuple[float, ...]]

MAX_OBJECT_LENGTH = 10_000  # bounds what is tried for the label of one place, whatever the answer is
MAX_OBJECTS_TRIED = 4
DECODER = json.JSONDecoder(strict=False)
NUMBER = r"\s*+(-?\d+(?:\.\d+)?)\s*+"
JSON_NUMBER = r"""["']?-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?\s*+["']?\s*+"""
STRING = r"""("(?:\\.|[^"\\])*+"|'(?:\\.|[^'\\])*+')"""
KEY = re.compile(r"""(["'])(bbox|point)_2d\1\s*+:""")
JSON_PLACE = re.compile(
    rf"""[\s\[\],"']*+((?:{JSON_NUMBER},\s*+)*{JSON_NUMBER})(?=[\]}}"']|,\s*+(?:[\]}}]|["'][a-z_]))"""
)
LABEL = re.compile(rf"""["'](?:label|text_content)["']\s*+:\s*+{STRING}""", re.DOTALL)
LABEL_AFTER = re.compile(rf"[^{{}}]{{0,200}}?{LABEL.pattern}", re.DOTALL)
PAIR = re.compile(rf"\({NUMBER},{NUMBER}\)")
SPECIAL = re.compile(
    r"<\|object_ref_start\|>(.{0,1000}?)<\|object_ref_end\|>|<\|box_start\|>([^<]*)(<\|box_end\|>)?", re.DOTALL
)
POINTS = re.compile(r"<points?\s([^<>]*)>([^<]*)")
COORDINATE = re.compile(rf"""\b[xy]\d*=["']{NUMBER}["']""")
ALT = re.compile(r"""\balt=(["'])(.*?)\1""", re.DOTALL)
HTML = re.compile(r"""<(\w+)\s[^<>]*?\bdata-bbox=["']([^"'<>]*)["'][^<>]*>([^<]*)""")


def find_places(text: str, *, num_coordinates: int) -> list[Place]:
    """(label, coordinates) of all places with so many coordinates: 2 for points, 4 for boxes."""
    found = [*find_json(text), *find_special_tokens(text), *find_points_tags(text), *find_document_tags(text)]
    found.sort(key=lambda item: item[0])
    return [place for _, place in found if len(place[1]) == num_coordinates]


def find_json(text: str) -> Iterator[tuple[int, Place]]:
    """Coordinates are read wherever the key stands, one place or a list of places: the object around it, which is
    wanted for the label alone, may be cut off or not quite JSON."""
    end = 0
    for key in KEY.finditer(text):
        position, label = key.end(), None
        while match := JSON_PLACE.match(text, position):
            position = match.end()
            numbers = as_numbers(re.findall(r"[^\s,\"']+", match[1]))
            if len(numbers) == (4 if key[2] == "bbox" else 2):
                label = find_label(text, key.start(), position, end) if label is None else label
                yield key.start(), (label, numbers)
        end = position


def find_label(text: str, key: int, stop: int, previous: int) -> str:
    """The label in the object around a key, else the one that stands nearest in what is left of the object."""
    start = key
    for _ in range(MAX_OBJECTS_TRIED):
        start = text.rfind("{", max(0, key - MAX_OBJECT_LENGTH), start)
        if start < 0:
            break
        try:
            value, length = DECODER.raw_decode(text[start : start + MAX_OBJECT_LENGTH])
        except (ValueError, RecursionError):
            continue
        if start + length > key:
            return next((str(value[name]) for name in ("label", "text_content") if value.get(name) is not None), "")
    start = text.rfind("{", previous, key)
    match = (start >= 0 and LABEL.search(text, start, key)) or LABEL_AFTER.match(text, stop)
    return unquote(match[1]) if match else ""


def unquote(string: str) -> str:
    """The text of a string in double or single quotes."""
    try:
        return str(DECODER.decode(string))
    except ValueError:
        return re.sub(r"\\(.)", r"\1", string[1:-1])


def find_special_tokens(text: str) -> Iterator[tuple[int, Place]]:
    """A label stands before its boxes; two pairs are a box, one pair is a point if nothing was cut off."""
    label = ""
    for match in SPECIAL.finditer(text):
        if match[1] is not None:
            label = match[1].strip()
        elif len(pairs := PAIR.findall(match[2])) == 2 or match[3]:
            yield match.start(), (label, as_numbers(value for pair in pairs for value in pair))


def find_points_tags(text: str) -> Iterator[tuple[int, Place]]:
    for match in POINTS.finditer(text):
        alt = ALT.search(match[1])
        label = alt[2] if alt else match[2].strip()
        numbers = as_numbers(COORDINATE.findall(match[1]))
        for index in range(0, len(numbers) - 1, 2):
            yield match.start(), (label, numbers[index : index + 2])


def find_document_tags(text: str) -> Iterator[tuple[int, Place]]:
    for match in HTML.finditer(text):
        yield match.start(), (match[3].strip() or match[1], as_numbers(re.split(r"[\s,]+", match[2].strip())))


def as_numbers(values: Iterable[str]) -> tuple[float, ...]:
    """Finite numbers; nothing at all if one is something else."""
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


# --- drawing -------------------------------------------------------------------------------------------------

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

"""Places between marks: special tokens, <ref> and <box> of the first Qwen-VL,
<point>x y</point>, <points x1="…">."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from qwen25vl.grounding.coordinates import (
    Numbers,
    Place,
    as_numbers,
    in_pairs,
    numbers_in,
    split_numbers,
)
from qwen25vl.grounding.keys import PlaceKind
from qwen25vl.grounding.tags import Tag, read_tags

MARK = re.compile(
    r"<\|(object_ref|box|quad|point)_start\|>"
    r"|<(ref|box|bbox|quad|polygon|points?|coordinates?)>",
    re.IGNORECASE,
)
KINDS: dict[str, PlaceKind] = {
    "quad": "polygon",
    "polygon": "polygon",
    "point": "point",
    "points": "point",
}
MAX_LABEL_LENGTH = 1000
COORDINATE = re.compile(r"([xy])(\d*)")


def find_marked(text: str) -> Iterator[Place]:
    """A label stands before its places.
    A box that is no longer closed counts if all its corners are there."""
    label = ""
    for match in MARK.finditer(text):
        name = (match[1] or match[2]).lower()
        closing = f"<|{name}_end|>" if match[1] else f"</{match[2]}>"
        if name in ("object_ref", "ref"):
            end = text.find(closing, match.end(), match.end() + MAX_LABEL_LENGTH + len(closing))
            label = text[match.end() : end].strip() if end >= 0 else label
            continue
        next_tag = text.find("<", match.end())
        end = len(text) if next_tag < 0 else next_tag
        content = text[match.end() : end]
        is_closed = text.startswith(closing, end)
        kind = KINDS.get(name, "any")
        for numbers in places_in(content, kind, is_closed=is_closed):
            yield Place(label, numbers, match.start(), end + len(closing) if is_closed else end)


def places_in(content: str, kind: PlaceKind, *, is_closed: bool) -> list[Numbers]:
    """What stands between two marks: one box, polygon or point, or, in points, several."""
    numbers = numbers_in(content)
    if kind == "point" and is_closed:
        return in_pairs(numbers) if len(numbers) % 2 == 0 else []
    least = {"any": 4, "polygon": 8}.get(kind, 0)
    is_whole = is_closed or (content.rstrip().endswith((")", "]")) and len(numbers) == least)
    return split_numbers(numbers, kind) if is_whole else []


def find_attributes(text: str) -> Iterator[Place]:
    """<points x1="…" y1="…" alt="cup">cup</points>, <point x="…" y="…"> and
    <box x1="…" y1="…" x2="…" y2="…">."""
    if "<point" not in text and "box" not in text:
        return
    for tag in read_tags(text):
        if tag.name in ("point", "points", "box", "bbox") and "=" in tag.inside:
            yield from places_of(tag, text)


def places_of(tag: Tag, text: str) -> Iterator[Place]:
    attributes = tag.attributes()
    found = {name: value for name, value in attributes.items() if COORDINATE.fullmatch(name)}
    suffixes = [name[1:] for name in found if name[0] == "x" and "y" + name[1:] in found]
    points = [as_numbers((found["x" + suffix], found["y" + suffix])) for suffix in suffixes]
    end = text.find("<", tag.end)
    content = html.unescape(text[tag.end : end if end >= 0 else len(text)]).strip()
    label = next((attributes[name] for name in ("alt", "label") if attributes.get(name)), content)
    if tag.name.startswith("point"):
        yield from (Place(label, point, tag.start, tag.end) for point in points if point)
    elif len(points) == 2 and all(points):
        yield Place(label, points[0] + points[1], tag.start, tag.end)

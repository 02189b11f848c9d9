"""Places in document HTML: <p data-bbox="x1 y1 x2 y2">text</p>, with any elements inside."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qwen25vl.grounding.coordinates import Numbers, Place, numbers_in, split_numbers
from qwen25vl.grounding.tags import Tag, read_tags

MAY_HOLD_PLACES = re.compile(r"bbox|data-", re.IGNORECASE)
BOX_ATTRIBUTES = ("data-bbox", "data_bbox", "bbox")
POLYGON_ATTRIBUTES = ("data-polygon", "data-quad")
VOID = set("area base br col embed hr img input link meta param source track wbr".split())
INLINE = set(
    """a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q ruby s
    samp small span strike strong sub sup time tt u var wbr""".split()
)
CLOSED_BY = {  # elements whose end tag may be left out, and the start tags that then end them
    "p": set(
        """address article aside blockquote div dl fieldset figure footer form h1 h2 h3 h4 h5 h6
        header hr main nav ol p pre section table ul""".split()
    ),
    "li": {"li"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
    "td": {"td", "th", "tr", "tbody", "tfoot"},
    "th": {"td", "th", "tr", "tbody", "tfoot"},
    "tr": {"tr", "tbody", "tfoot"},
}
MAX_DEPTH = 100  # of nested elements; the text of each is a copy


@dataclass(slots=True)
class Element:
    """An open element: its start tag, where its text begins in the document's text, and its number
    among the places."""

    tag: Tag
    text_start: int
    place: int | None


class DocumentReader:
    """Walks the tags once. `text` is the document's text so far; an element's label is the part
    written within it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.text: list[str] = []
        self.length = 0
        self.open: list[Element] = []
        self.found: list[tuple[Tag, Numbers]] = []
        self.spans: list[tuple[int, int]] = []  # text of each place
        self.ends: list[int] = []  # where each place's element ends in the source

    def read(self) -> Iterator[Place]:
        position = 0
        for tag in read_tags(self.source):
            self.add_text(html.unescape(self.source[position : tag.start]))
            position = tag.end
            if tag.name and tag.is_end:
                self.end_element(tag)
            elif tag.name:
                self.start_element(tag)
        self.add_text(html.unescape(self.source[position:]))
        while self.open:
            self.close()
        text = "".join(self.text)
        for index, (tag, numbers) in enumerate(self.found):
            start, end = self.spans[index]
            label = " ".join(text[start:end].split()) or name_of(tag)
            yield Place(label, numbers, tag.start, self.ends[index])

    def add_text(self, text: str) -> None:
        self.text.append(text)
        self.length += len(text)

    def start_element(self, tag: Tag) -> None:
        while self.open and tag.name in CLOSED_BY.get(self.open[-1].tag.name, ()):
            self.close()
        if tag.name not in INLINE:
            self.add_text(" ")
        place = None
        if numbers := coordinates_of(tag):
            place = len(self.found)
            self.found.append((tag, numbers))
            self.spans.append((self.length, self.length))
            self.ends.append(tag.end)
        if not tag.is_empty and tag.name not in VOID and len(self.open) < MAX_DEPTH:
            self.open.append(Element(tag, self.length, place))

    def end_element(self, tag: Tag) -> None:
        """Ends the innermost open element of this name and all within it; an end tag without a
        start ends nothing."""
        if any(element.tag.name == tag.name for element in self.open):
            while self.open[-1].tag.name != tag.name:
                self.close()
            self.close(tag.end)
        if tag.name not in INLINE:
            self.add_text(" ")

    def close(self, end: int | None = None) -> None:
        element = self.open.pop()
        if element.place is not None:
            self.spans[element.place] = element.text_start, self.length
            if end is not None:
                self.ends[element.place] = end


def find_in_document(text: str) -> Iterator[Place]:
    """Elements with coordinates in an attribute;
    the label is their text, without tags and with single blanks."""
    if MAY_HOLD_PLACES.search(text):
        yield from DocumentReader(text).read()


def coordinates_of(tag: Tag) -> Numbers:
    """The box of a start tag, else its polygon; () if it has none that can be read."""
    attributes = tag.attributes() if "=" in tag.inside else {}
    for name in BOX_ATTRIBUTES:
        if numbers := split_numbers(numbers_in(attributes.get(name, "")), "box"):
            return numbers[0]
    for name in POLYGON_ATTRIBUTES:
        if numbers := split_numbers(numbers_in(attributes.get(name, "")), "polygon"):
            return numbers[0]
    return ()


def name_of(tag: Tag) -> str:
    """What an element without text is called: its alternative text, its class, or its tag."""
    attributes = tag.attributes()
    return attributes.get("alt", "").strip() or attributes.get("class", "").strip() or tag.name

"""From numbers to places: what four numbers, two corners or a list of corners
under a key stand for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from qwen25vl.grounding.keys import PlaceKind, plain
from qwen25vl.grounding.values import Node, Value

Numbers = tuple[float, ...]

MAX_DEPTH = 4
MAX_STRING_LENGTH = 2000
ARRAY_CALLS = {"array", "asarray", "tensor", "list", "tuple"}
TAG = re.compile(r"<\|?/?\w{1,20}\|?>")
SEPARATORS = re.compile(r"[\s\[\](){},，;]+")
NUMBER = re.compile(r"([+-]?+(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?\d++)?+)(?:px)?")


@dataclass(frozen=True, slots=True)
class Place:
    """2 numbers (x, y) or those of a box (x1, y1, x2, y2) or of three corners and more (x, y, x, y,
    …), in pixels of the model size, and where in the text they stand.

    implied: no key says that these are coordinates; they only look like it.
    """

    label: str
    numbers: Numbers
    start: int
    end: int
    implied: bool = False

    @property
    def corners(self) -> Numbers:
        """(x1, y1, x2, y2) of the upright box around a box or polygon, x1 ≤ x2 and y1 ≤ y2."""
        xs, ys = self.numbers[::2], self.numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)

    def moved(self, start: int, end: int) -> Place:
        """The same place at another position of the text."""
        return replace(self, start=start, end=end)


@dataclass(frozen=True, slots=True)
class Shape:
    """The coordinates of one place and where they stand."""

    numbers: Numbers
    start: int
    end: int


def numbers_in(string: str) -> Numbers:
    """The numbers of a text that holds nothing but numbers, brackets, commas and tags;
    () for every other text."""
    if len(string) > MAX_STRING_LENGTH:
        return ()
    words = SEPARATORS.split(TAG.sub(" ", string).strip())
    return as_numbers(word for word in words if word)


def as_numbers(words: Iterable[str]) -> Numbers:
    """Finite numbers; nothing at all if one word is something else."""
    numbers = []
    for word in words:
        match = NUMBER.fullmatch(word)
        number = float(match[1]) if match else math.nan
        if not math.isfinite(number):
            return ()
        numbers.append(number)
    return tuple(numbers)


def split_numbers(numbers: Numbers, kind: PlaceKind) -> list[Numbers]:
    """Numbers in a row as places of a kind; none if their count does not fit."""
    if kind == "box" and len(numbers) == 5 and 0 <= numbers[4] <= 1:
        numbers = numbers[:4]  # a score stands behind the box
    count = len(numbers)
    if kind == "point":
        return [numbers] if count == 2 else []
    is_box = count in (4, 8)
    is_point = kind == "any" and count == 2
    is_polygon = kind == "polygon" and count >= 6 and count % 2 == 0
    return [numbers] if is_box or is_point or is_polygon else []


def from_size(numbers: Numbers) -> Numbers:
    """(x1, y1, x2, y2) of x, y, width, height."""
    if len(numbers) != 4:
        return numbers
    x, y, width, height = numbers
    return x, y, x + width, y + height


def is_certain_box(numbers: Numbers) -> bool:
    if len(numbers) != 4 or min(numbers) < 0:
        return False
    x1, y1, x2, y2 = numbers
    return x1 < x2 and y1 < y2


def in_pairs(numbers: Numbers) -> list[Numbers]:
    return [numbers[index : index + 2] for index in range(0, len(numbers), 2)]


def number_of(value: Value | Node | None) -> float | None:
    """A number, or a text that is one; also as the single element of a list."""
    if isinstance(value, Node):
        is_single = len(value.entries) == 1 and value.complete
        return number_of(value.entries[0].value) if is_single else None
    if value is None or not value.quoted:
        return value.number if value else None
    numbers = numbers_in(value.text)
    return numbers[0] if len(numbers) == 1 else None


def pair_of(value: Value | Node | None) -> Numbers:
    """The two numbers of a complete list, text or {"x": …, "y": …}; () if it is none."""
    if isinstance(value, Value):
        numbers = numbers_in(value.text) if value.quoted else ()
        return numbers if len(numbers) == 2 else ()
    if value is None or not value.complete or len(value.entries) < 2:
        return ()
    entries = value.entries
    keys = [plain(entry.key or "") for entry in entries]
    if "x" in keys and "y" in keys:
        entries = [entries[keys.index("x")], entries[keys.index("y")]]
    elif len(entries) > 2 or any(keys):
        return ()
    x, y = (number_of(entry.value) for entry in entries)
    return () if x is None or y is None else (x, y)


def read_shapes(value: Value | Node | None, kind: PlaceKind, depth: int = 0) -> Iterator[Shape]:
    """The places of a kind in a value: one, or a list of them. What is incomplete or something else
    is left out."""
    if isinstance(value, Value):
        yield from shapes_in_string(value, kind)
    elif value is not None and depth <= MAX_DEPTH:
        if plain(value.name.rpartition(".")[2]) in ARRAY_CALLS and value.entries:
            yield from read_shapes(value.entries[0].value, kind, depth + 1)
        elif is_list(value):
            yield from shapes_in_list(value, kind, depth)


def is_list(node: Node) -> bool:
    """Whether it is a list or tuple of values without keys."""
    has_keys = any(entry.key is not None for entry in node.entries)
    return node.bracket != "{" and not node.name and not has_keys


def shapes_in_list(node: Node, kind: PlaceKind, depth: int) -> Iterator[Shape]:
    """Numbers are one place; two corners or more are one box or polygon;
    else each element is read by itself."""
    values = [entry.value for entry in node.entries]
    numbers = [number_of(value) if isinstance(value, Value) else None for value in values]
    known = tuple(number for number in numbers if number is not None)
    if known and len(known) == len(values):
        found = split_numbers(known, kind) if node.complete else []
        yield from (Shape(place, node.start, node.end) for place in found)
    elif kind in ("box", "polygon") and node.complete and (corners := join_corners(node, kind)):
        yield Shape(corners, node.start, node.end)
    else:
        for value in values:
            yield from read_shapes(value, kind, depth + 1)


def join_corners(value: Node, kind: PlaceKind) -> Numbers:
    """The numbers of a list of corners: two or four of a box, three and more of a polygon."""
    pairs = [pair_of(entry.value) for entry in value.entries]
    fits = len(pairs) in (2, 4) or (kind == "polygon" and len(pairs) > 2)
    return tuple(number for pair in pairs for number in pair) if fits and all(pairs) else ()


def shapes_in_string(value: Value, kind: PlaceKind) -> Iterator[Shape]:
    """A text holds one place, or, under the key of points, several."""
    numbers = numbers_in(value.text) if value.quoted else ()
    are_points = kind == "point" and len(numbers) % 2 == 0
    places = in_pairs(numbers) if are_points else split_numbers(numbers, kind)
    yield from (Shape(place, value.start, value.end) for place in places)

"""What the values of an object say: numbers under its keys, points, actions, lists of boxes."""

from __future__ import annotations

from collections.abc import Iterator

from qwen25vl.grounding.coordinates import (
    Numbers,
    Place,
    Shape,
    is_certain_box,
    number_of,
    pair_of,
    read_shapes,
)
from qwen25vl.grounding.keys import GEOGRAPHIC_KEYS, action_name, place_kind, plain
from qwen25vl.grounding.labels import Group, text_of
from qwen25vl.grounding.values import Node, Value

GEOJSON = {"point", "multipoint", "linestring", "multilinestring", "polygon", "multipolygon"}


def is_object(value: Value) -> bool:
    """Whether a string holds an object, a list or an element as a whole."""
    return value.quoted and value.text.lstrip().startswith(("{", "[", "```", "<"))


def values_of(group: Group, names: tuple[str, ...]) -> Numbers:
    """The numbers under all of these keys; () if one is missing."""
    numbers = [number_of(group[name].value) if name in group else None for name in names]
    known = tuple(number for number in numbers if number is not None)
    return known if len(known) == len(names) else ()


def named_points(group: Group) -> Iterator[Place]:
    """{"keypoints": {"nose": [5, 6], …}}: each point is called by its key."""
    for entry in group.values():
        value, key = entry.value, entry.key or ""
        if not isinstance(value, Node) or value.bracket == "{" or place_kind(key):
            continue
        if pair := pair_of(value):
            yield Place(key, pair, value.start, value.end)


def sides_of(group: Group) -> Numbers:
    """{"x": [1, 30], "y": [2, 40]}: both sides of a box on each axis; () if it is none."""
    xs, ys = (pair_of(group[name].value) if name in group else () for name in ("x", "y"))
    return (xs[0], ys[0], xs[1], ys[1]) if xs and ys else ()


def action_of(group: Group) -> str:
    name = next((name for name in ("action", "actiontype") if name in group), None)
    return action_name(text_of(group[name].value)) if name else ""


def is_geographic(group: Group) -> bool:
    """GeoJSON, and numbers as exact as longitude and latitude are."""
    if "type" in group and plain(text_of(group["type"].value)) in GEOJSON:
        return True
    entry = next(group[name] for name in GEOGRAPHIC_KEYS if name in group)
    numbers = [number for shape in read_shapes(entry.value, "any") for number in shape.numbers]
    return any(round(number, 2) != number for number in numbers)


def certain_boxes(value: Value | Node | None) -> list[Shape]:
    """The boxes of a list that holds nothing else: four numbers or two corners each, from top left
    to bottom right."""
    if isinstance(value, Value):
        is_list = value.text.startswith(("[", "("))
        shapes = [*read_shapes(value, "box")] if is_list else []
        return [shape for shape in shapes if is_certain_box(shape.numbers)]
    if value is None or value.mixed:
        return []
    shapes = [*read_shapes(value, "box")]
    is_one = len(shapes) == 1 and shapes[0].start == value.start
    num_elements = len(value.entries) if value.complete else len(shapes)
    if not is_one and len(shapes) != num_elements:
        return []
    return shapes if all(is_certain_box(shape.numbers) for shape in shapes) else []


def may_hold_numbers(value: Value | Node | None) -> bool:
    if isinstance(value, Value):
        return value.number is not None or value.quoted
    return (
        value is not None and bool(value.entries) and (value.bracket != "{" or bool(pair_of(value)))
    )


def holds_numbers(value: Value | Node | None) -> bool:
    """A number or a list of anything: what does not stand beside boxes that are keyed by label."""
    if isinstance(value, Value):
        return value.number is not None
    return value is not None and value.bracket != "{" and bool(value.entries)


def place_all(shapes: list[Shape], labels: list[str], *, implied: bool = False) -> Iterator[Place]:
    for shape, label in zip(shapes, labels, strict=True):
        yield Place(label, shape.numbers, shape.start, shape.end, implied)

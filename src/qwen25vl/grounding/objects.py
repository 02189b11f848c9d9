"""Places in the objects of an answer: {"bbox_2d": …, "label": …}, x1 … y2, {"cup": […]}."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from qwen25vl.grounding.coordinates import (
    Numbers,
    Place,
    Shape,
    from_size,
    pair_of,
    read_shapes,
)
from qwen25vl.grounding.keys import (
    ARGUMENT_KEYS,
    CORNER_KEYS,
    GEOGRAPHIC_KEYS,
    LABEL_KEYS,
    OPPOSITE_CORNERS,
    PATH_ACTIONS,
    PATH_KEYS,
    POSSIBLE_BOX_KEYS,
    POSSIBLE_POINT_KEYS,
    QUAD_KEYS,
    SIZE_KEYS,
    THOUGHT_KEYS,
    action_name,
    is_generic,
    names_numbers,
    place_kind,
    plain,
    singular,
    stem,
)
from qwen25vl.grounding.labels import MAX_LEVELS, Group, context, label_list, own_label
from qwen25vl.grounding.object_values import (
    action_of,
    certain_boxes,
    holds_numbers,
    is_geographic,
    is_object,
    may_hold_numbers,
    named_points,
    place_all,
    sides_of,
    values_of,
)
from qwen25vl.grounding.values import Node, Value

ReadString = Callable[[Value], Iterable[Place]]

STYLE_KEYS = {"margin", "padding", "border", "inset", "offset"}


class ObjectReader:
    """Reads the places of one object after another.

    read_string: reads the places of a text that stands in a string. is_code: whether a node is part
    of a program, where numbers that merely look like a box are none.
    """

    def __init__(self, read_string: ReadString, is_code: Callable[[Node], bool]) -> None:
        self.read_string = read_string
        self.is_code = is_code
        self.known_groups: dict[int, list[Group]] = {}

    def read(self, node: Node) -> Iterator[Place]:
        """The places that stand in the node itself; its inner objects are read by themselves."""
        keyed = False
        for entry in node.entries:
            keyed = keyed or entry.key is not None
            if entry.key is None and isinstance(entry.value, Value) and is_object(entry.value):
                yield from self.read_string(entry.value)
        for group in self.groups(node) if keyed else ():
            found = [*self.keyed_places(node, group)]
            has_numbers = any(may_hold_numbers(entry.value) for entry in group.values())
            if has_numbers and not found and not self.is_code(node):
                found = [*self.places_by_form(node, group)]
            yield from found
            yield from self.places_in_strings(group, has_places=bool(found))

    def groups(self, node: Node) -> list[Group]:
        """Entries by key. A place or label that comes again begins another thing:
        a brace was left out."""
        groups = self.known_groups.get(id(node))
        if groups is None:
            groups = self.known_groups[id(node)] = [{}]
            for entry in node.entries:
                if entry.key is None:
                    continue
                name = plain(entry.key)
                if name in groups[-1] and (name in LABEL_KEYS or place_kind(entry.key)):
                    groups.append({})
                groups[-1][name] = entry
        return groups

    # --- labels ---

    def label(self, node: Node, group: Group, level: int = 0) -> str:
        """Its own label, the key that it stands under, or the label of the object around it."""
        if own := own_label(group):
            return own
        key, owner, is_element = context(node)
        if key is not None and not is_generic(key):
            return key
        if key is None or owner is None or level == MAX_LEVELS or plain(key) in ARGUMENT_KEYS:
            return ""
        if is_element and place_kind(key) is None:
            return ""
        return self.label(owner, self.groups(owner)[0], level + 1)

    def keyed_places(self, node: Node, group: Group) -> Iterator[Place]:
        """Places under a key that says so. Where a thing has a box and a polygon,
        the box counts."""
        kinds = {name: kind for name, entry in group.items() if (kind := place_kind(entry.key))}
        label = ""
        for name, kind in kinds.items():
            if kind == "polygon" and "box" in kinds.values():
                continue
            if name in GEOGRAPHIC_KEYS and is_geographic(group):
                continue
            shapes = [*read_shapes(group[name].value, kind)]
            if stem(name).endswith("xywh"):
                shapes = [replace(shape, numbers=from_size(shape.numbers)) for shape in shapes]
            label = label or (self.label(node, group) if shapes else "")
            labels = label_list(group, len(shapes)) or [label] * len(shapes)
            yield from place_all(shapes, labels)

    # --- coordinates by their own names, and numbers that look like a box ---

    def places_by_form(self, node: Node, group: Group) -> Iterator[Place]:
        found = self.named_coordinates(node, group)
        if found:
            label = self.label(node, group)
            yield from (Place(label, numbers, node.start, node.end) for numbers in found)
        elif place_kind(context(node)[0]) == "point":
            yield from named_points(group)
        elif own_label(group):
            yield from self.possible_boxes(node, group)
        elif not node.implied:
            yield from self.boxes_by_label(node, group)

    def named_coordinates(self, node: Node, group: Group) -> list[Numbers]:
        """x1, y1, x2, y2; left, top, right, bottom; x, y, width, height; x, y."""
        key, _, _ = context(node)
        if key is not None and singular(stem(key), STYLE_KEYS) in STYLE_KEYS:
            return []
        if quad := values_of(group, QUAD_KEYS):
            return [quad]
        is_path = action_of(group) in PATH_ACTIONS or action_name(node.name) in PATH_ACTIONS
        for names in (*PATH_KEYS, *CORNER_KEYS):
            if numbers := values_of(group, names):
                return [numbers[:2], numbers[2:]] if is_path or names in PATH_KEYS else [numbers]
        for names in SIZE_KEYS:
            if numbers := values_of(group, names):
                return [from_size(numbers)]
        for first, second in OPPOSITE_CORNERS:
            if first in group and second in group:
                corners = pair_of(group[first].value), pair_of(group[second].value)
                return [corners[0] + corners[1]] if all(corners) else []
        return self.sides_or_point(node, group)

    def sides_or_point(self, node: Node, group: Group) -> list[Numbers]:
        """{"x": [1, 30], "y": [2, 40]} under the key of a box, {"x": 5, "y": 6}."""
        key, _, _ = context(node)
        if place_kind(key) in ("box", "any") and (sides := sides_of(group)):
            return [sides]
        point = values_of(group, ("x", "y"))
        return [point] if point and "z" not in group and self.is_point(node, group) else []

    def is_point(self, node: Node, group: Group) -> bool:
        """x and y alone may be anything, a value in a chart too:
        something must say that they are a place."""
        key, owner, _ = context(node)
        kind = place_kind(key)
        if kind is not None:
            return kind in ("point", "any")
        if own_label(group) or action_of(group) or action_name(node.name):
            return True
        if key is None or owner is None:
            return False
        if plain(key) in POSSIBLE_POINT_KEYS:
            return bool(own_label(self.groups(owner)[0]))
        if plain(key) not in ARGUMENT_KEYS:
            return False
        return bool(action_name(own_label(self.groups(owner)[0])))

    def possible_boxes(self, node: Node, group: Group) -> Iterator[Place]:
        """{"label": "cup", "location": [1, 2, 30, 40]}, or [5, 6] for a point."""
        for entry in group.values():
            value = entry.value
            if plain(entry.key or "") in POSSIBLE_POINT_KEYS and (pair := pair_of(value)):
                if isinstance(value, Node) and value.bracket != "{":
                    yield Place(self.label(node, group), pair, value.start, value.end, True)
                continue
            if singular(stem(entry.key or ""), POSSIBLE_BOX_KEYS) in POSSIBLE_BOX_KEYS:
                shapes = certain_boxes(entry.value)
                yield from place_all(shapes, [self.label(node, group)] * len(shapes), implied=True)

    def boxes_by_label(self, node: Node, group: Group) -> Iterator[Place]:
        """{"cup": [1, 2, 30, 40], "plates": [[…], […]]}: no other numbers in the object, and no
        key that names numbers."""
        key, _, _ = context(node)
        if node.bracket != "{" or (key is not None and not is_generic(key) and names_numbers(key)):
            return
        found: list[tuple[str, list[Shape]]] = []
        for entry in group.values():
            shapes = certain_boxes(entry.value)
            key = entry.key or ""
            if shapes and not names_numbers(key) and not place_kind(key):
                found.append((key, shapes))
            elif shapes or holds_numbers(entry.value):
                return
        for label, shapes in found:
            yield from place_all(shapes, [label] * len(shapes), implied=True)

    # --- strings ---

    def places_in_strings(self, group: Group, *, has_places: bool) -> Iterator[Place]:
        """Objects, tags and calls that stand in a string. A label is a text, unless it is an object
        as a whole."""
        for name, entry in group.items():
            value = entry.value
            if not isinstance(value, Value) or not value.quoted or name in THOUGHT_KEYS:
                continue
            if place_kind(entry.key) and has_places:
                continue
            if name not in LABEL_KEYS or (is_object(value) and not has_places):
                yield from self.read_string(value)

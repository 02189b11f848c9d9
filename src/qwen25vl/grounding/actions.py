"""Places in the calls of an agent that operates a screen:
click(x=100, y=250), swipe(100, 250, 100, 50)."""

from __future__ import annotations

from collections.abc import Iterator

from qwen25vl.grounding.coordinates import Place, number_of, read_shapes
from qwen25vl.grounding.keys import PATH_ACTIONS, POINT_ACTIONS, action_name, place_kind
from qwen25vl.grounding.objects import ObjectReader
from qwen25vl.grounding.values import Node, Value


def find_in_call(node: Node, reader: ObjectReader) -> Iterator[Place]:
    """Named arguments as in an object; the others by their number:
    a point, or the two ends of a path."""
    action = action_name(node.name)
    if not action:
        return
    yield from leading_numbers(node, action)
    for entry in node.entries:
        is_place = place_kind(entry.key) is not None or isinstance(entry.value, Node)
        if is_place or (entry.key is None and action in POINT_ACTIONS | PATH_ACTIONS):
            for shape in read_shapes(entry.value, "any"):
                yield Place("", shape.numbers, shape.start, shape.end)
    for group in reader.groups(node):
        for numbers in reader.named_coordinates(node, group):
            yield Place("", numbers, node.start, node.end)


def leading_numbers(node: Node, action: str) -> Iterator[Place]:
    """click(x, y, …) and swipe(x1, y1, x2, y2, …). The lone numbers of a scroll or of a
    relative move are no place."""
    numbers: list[float] = []
    for entry in node.entries:
        is_positional = entry.key is None and isinstance(entry.value, Value)
        number = number_of(entry.value) if is_positional else None
        if number is None:
            break
        numbers.append(number)
    if action in POINT_ACTIONS and len(numbers) >= 2:
        yield Place("", tuple(numbers[:2]), node.start, node.end)
    elif action in PATH_ACTIONS and len(numbers) >= 4:
        yield Place("", tuple(numbers[:2]), node.start, node.end)
        yield Place("", tuple(numbers[2:4]), node.start, node.end)

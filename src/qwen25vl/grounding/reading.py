"""All places of an answer in the order in which they stand there, whatever the form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from qwen25vl.grounding.actions import find_in_call
from qwen25vl.grounding.coordinates import Place
from qwen25vl.grounding.documents import find_in_document
from qwen25vl.grounding.keys import action_name, is_known_key
from qwen25vl.grounding.marks import find_attributes, find_marked
from qwen25vl.grounding.objects import ObjectReader
from qwen25vl.grounding.values import Node, Value, read_values

MAX_DEPTH = 3  # of objects in strings of objects in strings
DIGIT = re.compile(r"\d")
THOUGHT = re.compile(r"<(think|thinking)>|</(think|thinking)>")
FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#-]*)", re.MULTILINE)
DATA_LANGUAGES = {"", "json", "jsonc", "json5", "jsonl", "yaml", "text", "txt", "markdown", "html"}
ASSIGNED = re.compile(r"(?:=|\breturn)\s*\Z")


def read_places(text: str, depth: int = 0) -> list[Place]:
    """The places of a text. What a model writes between <think> and </think> is not its answer."""
    text = without_thoughts(text)
    if not DIGIT.search(text):
        return []
    found = [
        [*find_marked(text)],
        [*find_attributes(text)],
        [*find_in_document(text)],
        [*find_in_values(text, depth)],
    ]
    return outermost(found)


def outermost(found: list[list[Place]]) -> list[Place]:
    """The places of several readers in the order of the text. Where one reader's place stands
    inside of another's, as a point's tag in the string of a call does, the outer one counts."""
    ordered = [(place, reader) for reader, places in enumerate(found) for place in places]
    ordered.sort(key=lambda item: (item[0].start, -item[0].end))
    kept: list[Place] = []
    covered, covered_by = -1, -1
    for place, reader in ordered:
        if place.start < covered and reader != covered_by:
            continue
        kept.append(place)
        if place.end > covered:
            covered, covered_by = place.end, reader
    return kept


def without_thoughts(text: str) -> str:
    """The text with blanks in place of its thoughts, whose first tag may stand in the prompt."""
    parts, position, start = [], 0, 0
    for match in THOUGHT.finditer(text):
        if match[1]:
            start = match.start()
        elif match.end() > position:
            start = max(start, position)
            parts += [text[position:start], " " * (match.end() - start)]
            position = start = match.end()
    return "".join(parts) + text[position:]


def find_in_values(text: str, depth: int) -> Iterator[Place]:
    """Places in objects, lists and calls."""

    def read_string(value: Value) -> Iterable[Place]:
        if depth >= MAX_DEPTH or not any(sign in value.text for sign in "{[(<"):
            return ()
        return (place.moved(value.start, value.end) for place in read_places(value.text, depth + 1))

    nodes = read_values(text, is_known_key)
    code = CodeFinder(text)
    reader = ObjectReader(read_string, code.holds)
    for node in nodes:
        code.add(node)
        if not node.entries:
            continue
        if node.name:
            yield from find_in_call(node, reader)
        else:
            yield from reader.read(node)


class CodeFinder:
    """Which nodes are part of a program:
    assigned, returned, passed to a function, or in a block of code."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.nodes: set[int] = set()
        self.blocks: list[tuple[int, int]] = []
        fences = [*FENCE.finditer(text)]
        for opening, closing in zip(fences[::2], [*fences[1::2], None], strict=False):
            if opening[1].lower() not in DATA_LANGUAGES:
                self.blocks.append((opening.end(), closing.start() if closing else len(text)))
        self.block = 0

    def add(self, node: Node) -> None:
        """Looks at a node; the one around it has been seen before,
        and nodes come in the order of the text."""
        while self.block < len(self.blocks) and self.blocks[self.block][1] <= node.start:
            self.block += 1
        in_block = self.block < len(self.blocks) and self.blocks[self.block][0] <= node.start
        is_assigned = node.key is None and self.is_assigned(node.start)
        is_passed = bool(node.name) and not action_name(node.name)
        is_inside = node.parent is not None and id(node.parent) in self.nodes
        if in_block or is_assigned or is_passed or is_inside:
            self.nodes.add(id(node))

    def is_assigned(self, start: int) -> bool:
        before = self.text[max(0, start - 20) : start]
        return before.endswith(("=", " ", "\n")) and ASSIGNED.search(before) is not None

    def holds(self, node: Node) -> bool:
        return id(node) in self.nodes

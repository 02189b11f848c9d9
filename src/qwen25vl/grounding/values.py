"""A forgiving reader for the objects, lists and calls that stand in an answer.

It reads JSON, Python literals, calls such as click(x=1, y=2), and what a model makes of them:
unquoted keys, missing or trailing commas, missing brackets, unescaped quotes, an end that was cut
off. The text around is skipped. Nothing is an error, and the time is linear in the length of the
text.

It is a tokenizer and a stack of open brackets. Outside of all brackets only the next bracket
counts, or a known key, which starts an object whose opening brace is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from qwen25vl.grounding.strings import StringEnds, unescape

OPENING = {"}": "{", "]": "[", ")": "("}
ROOT = re.compile(
    r"""[\[{(]|(?P<quote>["'])(?P<key>[A-Za-z]\w{0,30}+)(?P=quote)\s*+:"""
    r"""|(?<![\w"'])(?P<bare>(?:bbox|point)_2d)\s*+:|^[\t -]*+(?P<label>label)[\t ]*+:""",
    re.MULTILINE,
)
TOKEN = re.compile(
    r"""
      (?P<space> \s++)
    | (?P<open> [\[{(])
    | (?P<close> [\]})])
    | (?P<comma> [,，;])
    | (?P<colon> [:：=])
    | (?P<quote> \\?["'] | “)
    | (?P<number> [+-]?+(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?\d++)?+(?![\w.%]))
    | (?P<word> [^\s\[\]{}(),，;:：="'“\\]++ | .)
    """,
    re.VERBOSE | re.DOTALL,
)
NEXT_KEY = re.compile(r"""\s*+,\s*+["']?\w++["']?\s*+:""")
NAME = re.compile(r"[A-Za-z_][\w.]*\Z")
MAX_NAME_LENGTH = 40
BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(eq=False, slots=True)
class Value:
    """A number, a string or bare words: `text` as written (a string without quotes and escapes),
    from start to end."""

    text: str
    start: int
    end: int
    number: float | None = None
    quoted: bool = False


@dataclass(slots=True)
class Entry:
    """An element of a node; None stands for one that is missing or makes no sense."""

    key: str | None
    value: Value | Node | None


@dataclass(eq=False, slots=True)
class Node:
    """An object, a list, a tuple or, with a name, a call.

    complete: a bracket closed it, its own or that of an enclosing node. implied: its opening brace
    is missing. mixed: other words stand beside it in the same element.
    """

    bracket: str
    start: int
    name: str = ""
    key: str | None = None
    parent: Node | None = None
    entries: list[Entry] = field(default_factory=list)
    end: int = 0
    complete: bool = False
    implied: bool = False
    mixed: bool = False
    pending: list[Value | Node] = field(default_factory=list)
    pending_key: str | None = None


def read_values(text: str, is_known_key: Callable[[str], bool]) -> list[Node]:
    """All nodes of a text, nested ones too, in the order in which they begin."""
    return Reader(text, is_known_key).run()


class Reader:
    def __init__(self, text: str, is_known_key: Callable[[str], bool]) -> None:
        self.text = text
        self.is_known_key = is_known_key
        self.nodes: list[Node] = []
        self.stack: list[Node] = []
        self.num_open = dict.fromkeys(OPENING.values(), 0)
        self.strings: dict[str, StringEnds] = {}

    def run(self) -> list[Node]:
        position = 0
        while position < len(self.text):
            if self.stack:
                position = self.read_token(position)
                continue
            match = ROOT.search(self.text, position)
            if match is None:
                break
            key = match["key"] or match["bare"] or match["label"]
            if key is None:
                position = self.read_opening(match)
            elif self.is_known_key(key):
                position = match.start()
                self.push(Node("{", position, implied=True))
            else:
                position = match.end()
        self.end_of_text()
        return self.nodes

    def read_token(self, position: int) -> int:
        match = TOKEN.match(self.text, position)
        assert match is not None
        kind = match.lastgroup
        if kind == "open":
            return self.read_opening(match)
        if kind == "quote":
            return self.read_string(match)
        if kind == "close":
            self.read_closing(match)
        elif kind == "comma":
            self.finish_element(self.stack[-1])
        elif kind == "colon":
            self.read_colon(match)
        elif kind == "number":
            self.read_number(match)
        elif kind == "word":
            self.stack[-1].pending.append(Value(match[0], match.start(), match.end()))
        elif self.stack[0].implied and BLANK_LINE.search(match[0]):
            while self.stack:
                self.pop(match.start())
        return match.end()

    def push(self, node: Node) -> None:
        if self.stack:
            parent = self.stack[-1]
            node.parent, node.key = parent, parent.pending_key
            parent.pending.append(node)
        self.stack.append(node)
        self.nodes.append(node)
        self.num_open[node.bracket] += 1

    def pop(self, end: int) -> None:
        node = self.stack.pop()
        self.num_open[node.bracket] -= 1
        self.finish_element(node)
        node.end, node.complete = end, True

    def read_opening(self, match: re.Match[str]) -> int:
        bracket, start = match[0], match.start()
        name = ""
        before = self.text[max(0, start - MAX_NAME_LENGTH) : start]
        if bracket == "(" and (called := NAME.search(before)):
            name = called[0]
            pending = self.stack[-1].pending if self.stack else []
            if pending and isinstance(pending[-1], Value) and pending[-1].end == start:
                pending.pop()
        self.push(Node(bracket, start, name))
        return match.end()

    def read_closing(self, match: re.Match[str]) -> None:
        bracket = OPENING[match[0]]
        if not self.num_open[bracket]:
            return
        if self.stack[-1].bracket != bracket and NEXT_KEY.match(self.text, match.end()):
            self.pop(match.end())  # the wrong bracket was written: the object goes on
            return
        while self.stack[-1].bracket != bracket:
            self.pop(match.start())
        self.pop(match.end())

    def read_number(self, match: re.Match[str]) -> None:
        number = float(match[0])
        is_cut_off = match.end() == len(self.text)
        usable = None if is_cut_off or not math.isfinite(number) else number
        self.stack[-1].pending.append(Value(match[0], match.start(), match.end(), usable))

    def read_string(self, match: re.Match[str]) -> int:
        """A quote that ends nowhere, or an apostrophe in a word, is passed over."""
        quote, start = match[0], match.start()
        node = self.stack[-1]
        if start and self.text[start - 1].isalnum():
            return match.end()
        ends = self.strings.get(quote)
        if ends is None:
            ends = self.strings[quote] = StringEnds(self.text, quote)
        is_value = node.pending_key is not None and not node.pending
        end = ends.find(match.end(), is_value=is_value)
        if end is None:
            return match.end()
        stop = end + len(quote)
        content = unescape(self.text[match.end() : end])
        node.pending.append(Value(content, start, stop, quoted=True))
        return stop

    def read_colon(self, match: re.Match[str]) -> None:
        """What stands before a colon is a key.
        In a list it says that the list's closing bracket is missing."""
        node = self.stack[-1]
        key = node.pending[-1] if node.pending else None
        has_keys = node.bracket == "{" or bool(node.name)
        if not isinstance(key, Value) or not (has_keys or self.is_key_in_list(key, match[0])):
            node.pending.append(Value(match[0], match.start(), match.end()))
            return
        node.pending.pop()
        if not has_keys and self.num_open["{"]:
            while self.stack[-1].bracket != "{":
                self.pop(key.start)
            node = self.stack[-1]
        if node.pending or node.pending_key is not None:
            self.finish_element(node)
        node.pending_key = key.text

    def is_key_in_list(self, key: Value, sign: str) -> bool:
        return sign != "=" and (key.quoted or self.is_known_key(key.text))

    def finish_element(self, node: Node) -> None:
        tokens, key = node.pending, node.pending_key
        node.pending, node.pending_key = [], None
        if len(tokens) == 1:
            node.entries.append(Entry(key, tokens[0]))
        elif tokens or key is not None:
            node.entries.extend(Entry(key, value) for value in self.element(tokens, key))

    def element(self, tokens: list[Value | Node], key: str | None) -> list[Value | Node | None]:
        """What the tokens between two commas stand for:
        one value, or several numbers with blanks between them."""
        if not tokens:
            return [None]
        nodes = [token for token in tokens if isinstance(token, Node)]
        if nodes:
            for node in nodes:
                node.mixed = True
            return [nodes[0]]
        values = [token for token in tokens if isinstance(token, Value)]
        gaps = all(left.end < right.start for left, right in pairwise(values))
        if gaps and all(value.number is not None for value in values):
            if key is None:
                return list(values)
            row = Node("[", values[0].start, key=key, end=values[-1].end, complete=True)
            row.entries = [Entry(None, value) for value in values]
            return [row]
        strings = [value for value in values if value.quoted]
        if strings:
            return [strings[0]]
        start, end = values[0].start, values[-1].end
        return [Value(self.text[start:end], start, end)]

    def end_of_text(self) -> None:
        """What is still open keeps its complete elements.
        A word or number at the very end may be cut off."""
        for node in reversed(self.stack):
            node.end = len(self.text)
            last = node.pending[-1] if node.pending else None
            is_line = isinstance(last, Value) and node.implied and "\n" in self.text[last.end :]
            if isinstance(last, Node) or (last is not None and (last.quoted or is_line)):
                self.finish_element(node)

"""HTML and XML tags in a text, in time linear in its length;
comments, scripts and style sheets are passed over."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_TAG_LENGTH = 10_000
ATTRIBUTE = r"""[^\s"'<>/=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'<>]++))?+"""
TAG = re.compile(rf"<(/?+)([A-Za-z][\w:-]*+)((?:\s++|/(?!>)|{ATTRIBUTE})*+)(/?>|\Z)")
NAME_AND_VALUE = re.compile(
    r"""([^\s"'<>/=]++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"'<>]++)))?+""",
)
START = re.compile(r"<(?:!--|/?[A-Za-z])")
RAW_TEXT = {"script", "style"}


@dataclass(frozen=True, slots=True)
class Tag:
    """A start tag or, `is_end`, an end tag, with its name in lower case. is_empty: closed in
    itself, as <br/>."""

    name: str
    inside: str
    start: int
    end: int
    is_end: bool = False
    is_empty: bool = False

    def attributes(self) -> dict[str, str]:
        """Values by lower-case name, character references resolved; the first of a name counts."""
        found: dict[str, str] = {}
        for match in NAME_AND_VALUE.finditer(self.inside):
            value = match[2] or match[3] or match[4] or ""
            found.setdefault(match[1].lower(), html.unescape(value))
        return found


def read_tags(text: str) -> Iterator[Tag]:
    """All tags in order; a comment, script or style sheet is one tag without a name. A start tag
    that is cut off by the end of the text counts too."""
    position = 0
    while start := START.search(text, position):
        position = start.start()
        if start[0] == "<!--":
            end = text.find("-->", position)
            stop = len(text) if end < 0 else end + 3
            yield Tag("", "", position, stop)
            position = stop
            continue
        match = TAG.match(text, position, min(len(text), position + MAX_TAG_LENGTH))
        if match is None or (not match[4] and match.end() < len(text)):
            position = start.end()
            continue
        name = match[2].lower()
        if name in RAW_TEXT and not match[1]:
            end = text.find(f"</{name}", match.end())
            stop = len(text) if end < 0 else end
            yield Tag("", "", position, stop)
            position = stop
            continue
        yield Tag(name, match[3], position, match.end(), bool(match[1]), match[4] == "/>")
        position = match.end()

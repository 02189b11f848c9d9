"""Where the strings of an answer end, and what they say."""

from __future__ import annotations

import re
from bisect import bisect_left

ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
CONTROL = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class StringEnds:
    """Where strings in one kind of quote may end:
    at quotes that are not escaped and have the right neighbour.

    So an unescaped quote inside of a string, as in "a "big" cup" or 'the cat's bowl',
    does not end it."""

    AFTER_STRING = re.compile(r"""\s*+(?:[,，}\]);]|\Z)|[^\S\n]*+\n|\s++\\?["'“]""")
    AFTER_KEY = re.compile(r"\s*+[:：]")

    def __init__(self, text: str, quote: str) -> None:
        self.quotes: list[int] = []
        self.ends: list[int] = []
        self.key_ends: list[int] = []
        closing = "”" if quote == "“" else quote
        num_backslashes = 1 if quote.startswith("\\") else 0
        for match in re.finditer(r"(?<!\\)(\\*+)" + re.escape(closing[-1]), text):
            backslashes = len(match[1])
            is_end = backslashes == 1 if num_backslashes else backslashes % 2 == 0
            if not is_end:
                continue
            self.quotes.append(match.end() - len(closing))
            if self.AFTER_STRING.match(text, match.end()):
                self.ends.append(match.end() - len(closing))
            elif self.AFTER_KEY.match(text, match.end()):
                self.key_ends.append(match.end() - len(closing))

    def find(self, position: int, *, is_value: bool) -> int | None:
        """The next end. Where a value seems to be followed by a colon, or a key to hold quotes, its
        end is missing."""
        end = first_from(self.ends, position)
        key_end = first_from(self.key_ends, position)
        if key_end is None or (end is not None and end < key_end):
            return end
        return None if is_value or first_from(self.quotes, position) != key_end else key_end


def first_from(positions: list[int], start: int) -> int | None:
    index = bisect_left(positions, start)
    return positions[index] if index < len(positions) else None


def unescape(string: str) -> str:
    """The text of a string literal; half a surrogate pair becomes the replacement character."""
    if "\\" not in string:
        return string
    plain = ESCAPE.sub(unescape_one, string)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def unescape_one(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    return CONTROL.get(code, code)

"""The JSON of one call, read as it is written: {"name": "…", "arguments": {…}}.

Every character is looked at once. What is checked is what reading needs: the outer object and its
keys, that strings end and brackets match. Whether the arguments are valid JSON is for the tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

SPACE = " \t\r\n"
MAX_NAME = 256  # letters of a tool's name or a key, as JSON spells them
IN_STRING = re.compile(r'[^"\\]+')
IN_VALUE = re.compile(r'[^"{}\[\]<,]+')
PAIRS = {"}": "{", "]": "["}


class CallBody:
    """name: once it is known. fresh: pieces of the arguments that nobody has taken yet.

    A state is a method that reads on from a place in a text and returns the next place, or the same
    one where a character cannot stand there.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.has_arguments = False
        self.fresh: list[str] = []
        self.state: Callable[[str, int], int] = self.before_object
        self.key = ""
        self.spelt: list[str] = []  # of the key or name that is being read
        self.num_spelt = 0
        self.open: list[str] = []  # brackets of the value that is being read
        self.in_string = self.is_escaped = False

    @property
    def is_whole(self) -> bool:
        return self.state == self.after_object

    @property
    def is_call(self) -> bool:
        """Whether it is known by now to be a call: it has a name, and arguments or an end."""
        return self.name is not None and (self.has_arguments or self.is_whole)

    def push(self, text: str, place: int) -> int:
        """Read a text from a place up to the first character that cannot stand there; returns its
        place, the text's length where there is none."""
        while place < len(text):
            following = self.state(text, place)
            if following == place:
                break
            place = following
        return place

    def take(self) -> str:
        """The arguments that have come since the last time."""
        text, self.fresh = "".join(self.fresh), []
        return text

    def before_object(self, text: str, place: int) -> int:
        if text[place] == "{":
            self.state = self.before_key
        return place + (text[place] in SPACE or text[place] == "{")

    def before_key(self, text: str, place: int) -> int:
        if text[place] == '"':
            self.begin_string(self.read_key)
        return place + (text[place] in SPACE or text[place] == '"')

    def begin_string(self, state: Callable[[str, int], int]) -> None:
        self.state, self.spelt, self.num_spelt = state, [], 0

    def read_key(self, text: str, place: int) -> int:
        return self.read_string(text, place, self.end_key)

    def end_key(self, key: str) -> bool:
        if (key == "name" and self.name is not None) or (key == "arguments" and self.has_arguments):
            return False
        self.key, self.state = key, self.before_colon
        return True

    def read_name(self, text: str, place: int) -> int:
        return self.read_string(text, place, self.end_name)

    def end_name(self, name: str) -> bool:
        self.name, self.state = name, self.after_value
        return bool(name)

    def read_string(self, text: str, place: int, end: Callable[[str], bool]) -> int:
        """On with a key or name; its end is refused where `end` refuses what it spells."""
        letter = text[place]
        if self.is_escaped or letter == "\\":
            stop, self.is_escaped = place + 1, not self.is_escaped
        elif letter == '"':
            try:
                spelt = json.loads(f'"{"".join(self.spelt)}"')
            except ValueError:
                return place
            return place + end(spelt)
        else:
            found = IN_STRING.match(text, place)
            stop = found.end() if found else place + 1
        self.num_spelt += stop - place
        if self.num_spelt > MAX_NAME:
            return place
        self.spelt.append(text[place:stop])
        return stop

    def before_colon(self, text: str, place: int) -> int:
        if text[place] == ":":
            self.state = self.before_value
        return place + (text[place] in SPACE or text[place] == ":")

    def before_value(self, text: str, place: int) -> int:
        letter = text[place]
        if letter in SPACE:
            return place + 1
        if self.key == "name":
            if letter == '"':
                self.begin_string(self.read_name)
            return place + (letter == '"')
        if self.key == "arguments":
            if letter != "{":
                return place
            self.has_arguments = True
        elif letter in "}],:<":
            return place
        self.open, self.in_string, self.is_escaped = [], False, False
        self.state = self.read_value
        return self.read_value(text, place)

    def read_value(self, text: str, place: int) -> int:
        """On with a value: an object or list up to its last bracket, a string up to its quote,
        anything else up to what follows it."""
        stop = self.string_end(text, place) if self.in_string else self.value_end(text, place)
        if self.key == "arguments" and stop > place:
            self.fresh.append(text[place:stop])
        return stop

    def string_end(self, text: str, place: int) -> int:
        """The end of a run within a string."""
        if self.is_escaped or text[place] == "\\":
            self.is_escaped = not self.is_escaped
            return place + 1
        if text[place] == '"':
            self.in_string = False
            if not self.open:
                self.state = self.after_value
            return place + 1
        found = IN_STRING.match(text, place)
        return found.end() if found else place + 1

    def value_end(self, text: str, place: int) -> int:
        """The end of a run outside strings."""
        letter = text[place]
        if letter == '"':
            self.in_string = True
        elif letter in "{[":
            self.open.append(letter)
        elif letter in PAIRS and self.open:
            if self.open.pop() != PAIRS[letter]:
                return place
            if not self.open:
                self.state = self.after_value
        elif letter in PAIRS or (letter == "," and not self.open):
            self.state = self.after_value  # of a number or word, which ends before this
            return self.after_value(text, place)
        elif letter == "<":
            return place
        elif letter != ",":
            found = IN_VALUE.match(text, place)
            return found.end() if found else place + 1
        return place + 1

    def after_value(self, text: str, place: int) -> int:
        letter = text[place]
        if letter == ",":
            self.state = self.before_key
        elif letter == "}":
            self.state = self.after_object
        return place + (letter in SPACE or letter in ",}")

    def after_object(self, text: str, place: int) -> int:
        return place + (text[place] in SPACE)

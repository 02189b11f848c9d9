"""Reads an answer that calls tools while it is written, in the form that the model was taught:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Where the tokenizer has the tags as control tokens, a token is a tag and text never is: what a model
quotes calls nothing. A tokenizer without them spells tags, and text is looked through for them; one
within a string of a call's JSON belongs to the string.

What is no call is text, tags included. A call is handed out once its name is there and its
arguments begin; what goes wrong after that leaves it incomplete. White space between text and call,
between calls, and behind the last one is dropped. Events, joined, do not depend on how the answer
was cut into pieces.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.structured.call_body import CallBody
from qwen25vl.structured.tool_events import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    TextDelta,
)

OPEN, CLOSE = "<tool_call>", "</tool_call>"
TAG = re.compile(f"{OPEN}|{CLOSE}")


def new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class ToolCallParser:
    """tokenizer: of the answer's tokens; None where there is nothing but text. make_id: names a
    call."""

    def __init__(
        self, tokenizer: Tokenizer | None = None, make_id: Callable[[], str] = new_id
    ) -> None:
        controls = {} if tokenizer is None else tokenizer.control_ids
        has_tags = {OPEN, CLOSE} <= controls.keys()
        self.tags = {controls[tag]: tag for tag in (OPEN, CLOSE)} if has_tags else {}
        self.make_id = make_id
        self.events: list[Event] = []
        self.body: CallBody | None = None  # of the call that is being read
        self.raw: list[str] = []  # all of it, until it is known to be a call
        self.num_calls = 0
        self.is_started = False  # whether it was handed out
        self.blank: list[str] = []  # white space of which nobody knows whether it is text
        self.held = ""  # what may be the beginning of a tag
        self.owed = ""  # a tag's text that is still to come after its token
        self.skips_close = False  # whether the next closing tag is that of a call given up

    @property
    def has_calls(self) -> bool:
        return self.num_calls > 0

    def push(self, text: str, token: int | None = None) -> list[Event]:
        """What follows from a chunk of the answer: its text and its token."""
        tag = self.tags.get(token) if token is not None else None
        if tag is None:
            self.read(self.without_owed(text))
        else:
            before, found, after = text.rpartition(tag)
            self.read(before if found else text)
            self.owed = "" if found else tag
            self.meet(tag)
            self.read(after if found else "")
        return self.take()

    def finish(self) -> list[Event]:
        """What is left when the answer is over."""
        held, self.held = self.held, ""
        if self.body is None:
            self.say(held)
        else:
            self.raw.append(held)
            self.break_off("")
        if not self.has_calls:
            self.emit_text("".join(self.blank))
        self.blank = []
        return self.take()

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def without_owed(self, text: str) -> str:
        """A text without the spelling of a tag whose token has come already: special tokens give no
        text, others do, later if a stop string begins like them."""
        if not self.owed or not text:
            return text
        size = min(len(text), len(self.owed))
        if text[:size] != self.owed[:size]:
            self.owed = ""
            return text
        self.owed = self.owed[size:]
        return text[size:]

    def read(self, text: str) -> None:
        """Read ordinary text, in which tags are searched for where they are no tokens."""
        text, self.held = self.held + text, ""
        place = 0
        while place < len(text):
            if self.body is None:
                place = self.read_text(text, place)
            else:
                place = self.read_body(self.body, text, place)

    def read_text(self, text: str, place: int) -> int:
        """Read text outside calls up to the next tag, and that tag; returns the place after it."""
        found = None if self.tags else TAG.search(text, place)
        if found:
            self.say(text[place : found.start()])
            self.meet(found[0])
            return found.end()
        stop = len(text) - (0 if self.tags else beginning_of_tag(text[place:][-len(CLOSE) :]))
        self.say(text[place:stop])
        self.held = text[stop:]
        return len(text)

    def read_body(self, body: CallBody, text: str, place: int) -> int:
        """Read a call's JSON up to where it ends or goes wrong; returns the place after it."""
        stop = body.push(text, place)
        if not self.is_started:
            self.raw.append(text[place:stop])
        self.hand_out(body)
        if stop == len(text):
            return stop
        if text[stop] == "<" and not self.tags:
            if found := TAG.match(text, stop):
                self.meet(found[0])
                return found.end()
            if len(text) - stop == beginning_of_tag(text[stop : stop + len(CLOSE)]):
                self.held = text[stop:]
                return len(text)
        self.break_off(CLOSE)
        return stop

    def meet(self, tag: str) -> None:
        """Take note of a tag."""
        if self.body is not None and tag == CLOSE and self.body.is_call:
            self.end_call(self.body.is_whole)
            return
        if self.body is not None:
            self.break_off("")
        if tag == OPEN:
            self.skips_close = False
            self.body, self.raw = CallBody(), []
        elif self.skips_close:
            self.skips_close = False
        else:
            self.say(CLOSE)

    def hand_out(self, body: CallBody) -> None:
        """Tell what is new of a call."""
        if not body.is_call or body.name is None:
            return
        index = self.num_calls
        if not self.is_started:
            self.is_started, self.raw, self.blank = True, [], []
            self.events.append(CallStarted(index, self.make_id(), body.name))
        if arguments := body.take():
            self.events.append(ArgumentsDelta(index, arguments))

    def end_call(self, is_complete: bool) -> None:
        if self.body is not None and not self.body.has_arguments:
            self.events.append(ArgumentsDelta(self.num_calls, "{}"))
        self.events.append(CallFinished(self.num_calls, is_complete))
        self.num_calls += 1
        self.body, self.is_started = None, False

    def break_off(self, tag_to_come: str) -> None:
        """Give up the call that is being read: what was not handed out is text. tag_to_come: the
        closing tag, where it has not come yet."""
        body = self.body
        if body is not None and self.is_started:
            self.skips_close = bool(tag_to_come)
            self.end_call(body.is_whole)
            return
        self.body = None
        self.say(OPEN + "".join(self.raw))
        self.raw = []

    def say(self, text: str) -> None:
        """Tell text; white space at its end waits for what follows."""
        core = text.rstrip()
        if core:
            self.emit_text("".join(self.blank) + core)
            self.blank = []
        if len(core) < len(text):
            self.blank.append(text[len(core) :])

    def emit_text(self, text: str) -> None:
        if text:
            self.events.append(TextDelta(text))


def beginning_of_tag(text: str) -> int:
    """How many letters at the end of a text may be the beginning of a tag."""
    sizes = range(min(len(text), len(CLOSE) - 1), 0, -1)
    return next((n for n in sizes if OPEN.startswith(text[-n:]) or CLOSE.startswith(text[-n:])), 0)


def read_answer(text: str) -> list[Event]:
    """All events of an answer that is whole, and in which tags are spelt."""
    parser = ToolCallParser()
    return [*parser.push(text), *parser.finish()]

"""What a reader of an answer is told of it, in order, while it is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call of a tool; index: of the call in the answer, id: for the tool's result."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of a call's arguments: JSON, as the model writes it."""

    index: int
    text: str


@dataclass(frozen=True)
class CallFinished:
    """is_complete: False where the answer or the call ended before its JSON did."""

    index: int
    is_complete: bool


Event = TextDelta | CallStarted | ArgumentsDelta | CallFinished


@dataclass
class WrittenCall:
    """A whole call. arguments: JSON of an object, where it is complete."""

    index: int
    id: str
    name: str
    arguments: str = ""
    is_complete: bool = False


def collect(events: Iterable[Event]) -> tuple[str, list[WrittenCall]]:
    """The text of an answer and its calls, from all its events."""
    texts: list[str] = []
    calls: list[WrittenCall] = []
    pieces: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, TextDelta):
            texts.append(event.text)
        elif isinstance(event, CallStarted):
            calls.append(WrittenCall(event.index, event.id, event.name))
            pieces[event.index] = []
        elif isinstance(event, ArgumentsDelta):
            pieces[event.index].append(event.text)
        else:
            calls[event.index].is_complete = event.is_complete
    for call in calls:
        call.arguments = "".join(pieces[call.index])
    return "".join(texts), calls

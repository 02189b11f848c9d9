"""What is written of an answer as events: text, parts of tool calls, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen25vl.structured import tool_events
from qwen25vl.structured.tool_parser import ToolCallParser


@dataclass(frozen=True)
class TokenInfo:
    """A token with its log-probability, and the likeliest ones in its place."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """Text that an answer grew by, and the tokens that were read for it; often none."""

    index: int
    text: str
    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True)
class CallDelta:
    """Part of a tool call. number: of the call within its answer. The first part of a call has its
    id and the tool's name, later ones only more of the arguments' JSON."""

    index: int
    number: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class End:
    """The end of an answer. reason: in OpenAI's words; detail: the stop string or token that was
    met, or this engine's own reason."""

    index: int
    reason: str
    detail: str | int | None


@dataclass(frozen=True)
class Waiting:
    """Nothing was written for a while. stage: what is being done, with how much of how much."""

    stage: str
    done: int
    total: int


Event = TextDelta | CallDelta | End | Waiting


@dataclass
class ToolCallState:
    """A call that an answer makes; arguments: JSON as it was written so far."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class AnswerState:
    """One answer as it grows. text: without its calls. parser: tells these, where there are
    tools."""

    index: int
    parser: ToolCallParser | None = None
    text: str = ""
    calls: list[ToolCallState] = field(default_factory=list)
    tokens: list[TokenInfo] = field(default_factory=list)
    end: End | None = None

    def read(self, text: str, info: TokenInfo) -> list[Event]:
        """What a chunk adds: text, with its token, and parts of calls."""
        if self.parser is None:
            self.text += text
            return [TextDelta(self.index, text, (info,))]
        events = self.tell(self.parser.push(text, info.token))
        first = events[0] if events else None
        if isinstance(first, TextDelta):  # text behind a call stays behind it
            return [TextDelta(self.index, first.text, (info,)), *events[1:]]
        return [TextDelta(self.index, "", (info,)), *events]

    def finish(self) -> list[Event]:
        """What was held back, when the answer is over."""
        return [] if self.parser is None else self.tell(self.parser.finish())

    def tell(self, events: Sequence[tool_events.Event]) -> list[Event]:
        """The parser's events as those of this answer."""
        told: list[Event] = []
        for event in events:
            if isinstance(event, tool_events.TextDelta):
                self.text += event.text
                told.append(TextDelta(self.index, event.text, ()))
            elif isinstance(event, tool_events.CallStarted):
                self.calls.append(ToolCallState(event.id, event.name))
                told.append(CallDelta(self.index, event.index, event.id, event.name, ""))
            elif isinstance(event, tool_events.ArgumentsDelta):
                self.calls[event.index].arguments += event.text
                told.append(CallDelta(self.index, event.index, None, None, event.text))
        return told


def together(events: Sequence[Event]) -> list[Event]:
    """The same events, with texts of one answer that follow each other as one."""
    joined: list[Event] = []
    last: dict[int, int] = {}  # the place of an answer's last event
    for event in events:
        place = last.get(event.index) if isinstance(event, TextDelta) else None
        before = None if place is None else joined[place]
        if place is not None and isinstance(before, TextDelta) and isinstance(event, TextDelta):
            tokens = (*before.tokens, *event.tokens)
            joined[place] = TextDelta(event.index, before.text + event.text, tokens)
            continue
        if not isinstance(event, Waiting):
            last[event.index] = len(joined)
        joined.append(event)
    return joined

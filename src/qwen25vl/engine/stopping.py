"""When an answer is over, other than by an end token or its length: stop strings, endless
repetition, the caller's own criteria.

All look at one answer alone. The first two go token by token and keep no more than they need.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from qwen25vl.errors import UsageError
from qwen25vl.processing.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "repetition", "time"]
Criterion = Callable[[torch.Tensor, Any], Any]
"""The ecosystem's stopping criterion: called with the tokens so far [1, n] and the scores of all
steps ([1, V] each, or None), it returns whether the answer is over, as a bool or as a tensor of
one."""

MAX_PERIOD = 64


class StopStrings:
    """Lets text through up to the first stop string, however tokens cut it.

    Text that may be the beginning of a stop string is held back until the next text decides.
    """

    def __init__(self, stop_strings: Sequence[str], shows_stop: bool = False) -> None:
        """shows_stop: whether the stop string that is met is shown."""
        self.stop_strings = stop_strings
        self.shows_stop = shows_stop
        self.held = ""
        self.met: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """New text to (text that is safe to show, whether a stop string was met)."""
        text = self.held + text
        found = [(place, stop) for stop in self.stop_strings if (place := text.find(stop)) >= 0]
        if found:
            self.held = ""
            place, self.met = min(found)
            return text[: place + (len(self.met) if self.shows_stop else 0)], True
        safe = len(text) - max((overlap(text, stop) for stop in self.stop_strings), default=0)
        self.held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """What is still held back, when the answer ends otherwise."""
        rest, self.held = self.held, ""
        return rest


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is a beginning of the stop string, but not the
    whole of it."""
    return next(
        size for size in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:size])
    )


class AnswerText:
    """The text of one answer as its tokens come in: whole characters, cut at the first stop
    string. shows_special: whether special tokens are shown; shows_stop: whether the stop string
    is. spared: the tokens between which, themselves included, no stop string is looked for."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str],
        shows_special: bool = False,
        shows_stop: bool = False,
        spared: tuple[int, int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.spared = spared
        self.is_spared = False
        self.shows_special = shows_special
        self.decoder = (
            tokenizer.stream_decoder(False) if shows_special else tokenizer.stream_decoder()
        )
        self.stops = StopStrings(stop_strings, shows_stop)

    def fresh(self) -> AnswerText:
        """The text of another answer under the same rules."""
        stops, special = self.stops, self.shows_special
        return AnswerText(
            self.tokenizer, stops.stop_strings, special, stops.shows_stop, self.spared
        )

    def push(self, token: int) -> tuple[str, bool]:
        """(text that can be shown now, whether a stop string was met)"""
        text = self.decoder.push(token)
        if self.spared is None or (not self.is_spared and token != self.spared[0]):
            return self.stops.push(text)
        self.is_spared = token != self.spared[1]
        return self.stops.finish() + text, False

    def finish(self) -> str:
        """The rest, when the answer ends otherwise."""
        rest = self.decoder.finish()
        return rest if self.is_spared else self.stops.push(rest)[0] + self.stops.finish()


class RepetitionDetector:
    """Sees when an answer has gone round in one cycle of at most 64 tokens for
    `max_repeated_tokens` tokens.

    For every period p it counts how many tokens in a row equal the token p before them; a table or
    a list breaks each of these runs in every line that differs. 0 switches it off.
    """

    def __init__(self, max_repeated_tokens: int) -> None:
        self.max_repeated_tokens = max_repeated_tokens
        self.recent: deque[int] = deque(maxlen=MAX_PERIOD)
        self.runs: list[int] = []

    def push(self, token: int) -> bool:
        """Take the next token; True once the limit is reached."""
        if not self.max_repeated_tokens:
            return False
        self.runs = [
            run + 1 if earlier == token else 0
            for earlier, run in zip(self.recent, self.runs, strict=True)
        ]
        self.recent.appendleft(token)
        if len(self.runs) < MAX_PERIOD:
            self.runs.append(0)
        return max(self.runs) >= self.max_repeated_tokens


def is_met(
    criteria: Sequence[Criterion], ids: Sequence[int], scores: Sequence[torch.Tensor] | None
) -> bool:
    """Whether a criterion ends the answer. All are asked, since some count how often they are.
    Raises UsageError for an answer that is no bool."""
    if not criteria:
        return False
    input_ids = torch.tensor([ids], dtype=torch.int64, device="cpu")
    shown = None if scores is None else tuple(scores)
    answers = [is_yes(criterion(input_ids, shown)) for criterion in criteria]
    return any(answers)


def is_yes(answer: Any) -> bool:
    if isinstance(answer, torch.Tensor):
        return bool(answer.any())
    if not isinstance(answer, bool | int):
        wanted = "True, False or a tensor of them"
        raise UsageError(f"a stopping criterion returned {answer!r}; expected {wanted}")
    return bool(answer)

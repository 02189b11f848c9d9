"""How much of a prompt one step may read while others are writing: a budget of time, measured.

A step's time is that of its written tokens plus that of the prompt's tokens. Both are estimated
from the steps so far, as averages in which the latest counts half, so they follow the machine, its
load and the lengths of the contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen25vl.engine.footprint import MAX_TOKENS_PER_STEP

STEP_SECONDS = 0.5
MIN_TOKENS_PER_STEP, TOKENS_AT_FIRST = 16, 32
LATEST = 0.5  # the weight of the latest step


@dataclass
class Pace:
    """step_seconds: the budget of a step. writing_seconds: of a step that reads nothing;
    token_seconds: of each token of a prompt, None before the first was read."""

    step_seconds: float = STEP_SECONDS
    writing_seconds: float = 0.0
    token_seconds: float | None = None

    def time_left(self) -> float:
        """Seconds of a step beside the tokens that are written in it; a little in any case."""
        return max(self.step_seconds - self.writing_seconds, 0.2 * self.step_seconds)

    def num_tokens(self) -> int:
        """Tokens of a prompt that one step may read beside others' answers."""
        if self.token_seconds is None:
            return TOKENS_AT_FIRST
        fitting = int(self.time_left() / self.token_seconds)
        whole = fitting // MIN_TOKENS_PER_STEP * MIN_TOKENS_PER_STEP
        return max(MIN_TOKENS_PER_STEP, min(whole, MAX_TOKENS_PER_STEP))

    def learn(self, seconds: float, num_read: int, num_writing: int) -> None:
        """Take the time of a step that read `num_read` tokens of prompts beside `num_writing`
        answers."""
        if num_read == 0:
            self.writing_seconds = average(self.writing_seconds, seconds)
        elif num_writing:
            each = max(seconds - self.writing_seconds, 0.1 * seconds) / num_read
            self.token_seconds = average(self.token_seconds, each)


def average(before: float | None, latest: float) -> float:
    if not before:
        return latest
    return LATEST * latest + (1 - LATEST) * before

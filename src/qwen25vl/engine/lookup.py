"""Prompt lookup: draft the next tokens from earlier text, so that one forward pass can check
several of them.

Where the last few tokens of an answer occurred before, in the prompt or in the answer itself, what
followed them there is drafted. The model reads the draft in one pass; the loop accepts only tokens
that it would have chosen anyway. A draft changes the speed of an answer, never its tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

LONGEST_PAUSE = 32


@dataclass(frozen=True)
class DraftPace:
    """How many tokens to draft next, and how many passes to skip before that.

    A fully accepted draft is followed by one of twice its length, a partly accepted one by a draft
    of the accepted length. After a fully rejected draft there is a pause. Each further rejection in
    a row doubles the pause, up to 32 passes, so useless drafts cost little.
    """

    length: int = 2
    wait: int = 0
    pause: int = 1

    def after(self, drafted: int, accepted: int) -> DraftPace:
        """The pace after a pass; drafted, accepted: its numbers of tokens."""
        if not drafted:
            return replace(self, wait=max(0, self.wait - 1))
        if not accepted:
            return DraftPace(2, self.pause, min(2 * self.pause, LONGEST_PAUSE))
        return DraftPace(max(2, 2 * drafted if accepted == drafted else accepted))


class PromptLookup:
    """The tokens of one answer's prompt and its own, from which drafts are taken: each is one
    character of a text.

    slots: ids that stand for pictures and videos; a draft ends before the first of them.
    """

    def __init__(
        self, prompt: Iterable[int], max_matching_ngram_size: int, slots: Collection[int]
    ) -> None:
        self.text = "".join(map(chr, prompt))
        self.sizes = range(max_matching_ngram_size, min(max_matching_ngram_size, 2) - 1, -1)
        self.slots = slots
        self.pace = DraftPace()

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next: the continuation of the most recent match of
        the longest suffix n-gram. If the continuation is too short, it is repeated, as in a cyclic
        text."""
        limit = min(limit, self.pace.length)
        if self.pace.wait or limit < 1:
            return []
        for size in self.sizes:
            place = self.text.rfind(self.text[-size:], 0, -1)
            if place >= 0:
                following = self.text[place + size : place + size + limit]
                tokens = [ord(c) for c in (following * limit)[:limit]]
                return tokens[
                    : next((i for i, token in enumerate(tokens) if token in self.slots), limit)
                ]
        return []

    def learn(self, written: Sequence[int], drafted: int) -> None:
        """Append the tokens that a pass has written: the accepted part of its `drafted` tokens, and
        one more."""
        self.text += "".join(map(chr, written))
        self.pace = self.pace.after(drafted, len(written) - 1)

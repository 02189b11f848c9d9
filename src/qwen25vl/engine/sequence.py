"""One answer while it is generated: its tokens, its cache, and the checks that end it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from qwen25vl.engine.lookup import PromptLookup
from qwen25vl.engine.stopping import AnswerText, RepetitionDetector
from qwen25vl.model.cache import KVCache

FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True)
class Chunk:
    """One token of one answer.

    text: what it adds to the visible text, often "" (an incomplete character, a possible beginning
    of a stop string, a special token); logprob: of the token under the model's raw logits; index:
    which answer, numbered as the rows of `generate`; finish_reason: None until the answer's last
    chunk.
    """

    text: str
    token: int
    logprob: float
    index: int
    finish_reason: FinishReason | None


@dataclass
class Answer:
    """One answer while it is generated. prompt_ids: the distinct tokens of its prompt."""

    index: int
    prompt_ids: torch.Tensor
    cache: KVCache
    max_tokens: int
    generator: torch.Generator
    repetition: RepetitionDetector
    text: AnswerText | None
    lookup: PromptLookup | None
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def accept(self, token: int, logprob: float, end_token_ids: Sequence[int]) -> Chunk:
        self.tokens.append(token)
        text, met_stop_string = self.text.push(token) if self.text else ("", False)
        if met_stop_string or token in end_token_ids:
            self.finish_reason = "stop"
        elif self.repetition.push(token):
            self.finish_reason = "repetition"
        elif len(self.tokens) == self.max_tokens:
            self.finish_reason = "length"
        if self.text and self.finish_reason and not met_stop_string:
            text += self.text.finish()
        return Chunk(text, token, logprob, self.index, self.finish_reason)

    def draft(self, limit: int) -> list[int]:
        """Tokens to draft after the last one: at most `limit`, and never past the answer's maximum
        length."""
        return (
            self.lookup.draft(min(limit, self.max_tokens - len(self.tokens) - 1))
            if self.lookup
            else []
        )

    def settle(self, num_written: int, num_drafted: int) -> None:
        """Roll the cache back past the drafted tokens that were rejected."""
        refused = 1 + num_drafted - num_written
        self.cache.crop(self.cache.length - refused, self.cache.next_position - refused)
        if self.lookup:
            self.lookup.learn(self.tokens[-num_written:], num_drafted)

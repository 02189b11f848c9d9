"""What the sequences of one call have written, on its way to the caller."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass

import torch

from qwen25vl.engine.stopping import FinishReason
from qwen25vl.progress import Progress

MAX_UNREAD = 256  # chunks that nobody has taken: the sequence then waits for its reader


@dataclass(frozen=True)
class Chunk:
    """One token of one answer.

    text: what it adds to the visible text, often "" (an incomplete character, a possible beginning
    of a stop string, a special token); logprob: of the token under the model's raw logits; index:
    which answer, numbered as the rows of `generate`; finish_reason: None until the answer's last
    chunk. met: the stop string or the end token that this chunk met.
    """

    text: str
    token: int
    logprob: float
    index: int
    finish_reason: FinishReason | None
    met: str | int | None = None


@dataclass(frozen=True)
class Written:
    """A chunk, with the raw logits [V] and the scores [V] that its token was chosen from, where
    these are asked for. likeliest: tokens with their log-probabilities, the most likely first."""

    chunk: Chunk
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Outbox:
    """Where the sequences of one call leave what they have written, until the caller takes it.

    progress: called with (stage, done, total), where stage is "images", "videos", "prefill" or
    "decode"; what it raises ends the sequence. keeps_logits: whether raw logits [V] come with each
    chunk; num_likeliest: how many likeliest tokens do. is_live: whether somebody waits for every
    chunk, not only for the whole. num_put: chunks so far. step_bytes: of
    the logits and scores that are returned of a step; max_steps: how many there may be.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        keeps_logits: bool = False,
        is_live: bool = True,
        num_likeliest: int = 0,
    ) -> None:
        self.progress = progress
        self.keeps_logits = keeps_logits
        self.num_likeliest = num_likeliest
        self.is_live = is_live
        self.num_put = 0
        self.chunks: deque[Written] = deque()
        self.error: BaseException | None = None
        self.num_open = 0
        self.longest = 0
        self.step_bytes = self.max_steps = 0
        self.expected: Counter[str] = Counter()
        self.finished: defaultdict[str, float] = defaultdict(float)

    @property
    def is_full(self) -> bool:
        return len(self.chunks) >= MAX_UNREAD

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take, or nothing more will come."""
        return bool(self.chunks) or self.error is not None or self.num_open == 0

    @property
    def bytes_to_come(self) -> int:
        """What the logits and scores of the steps to come will take, of all answers together."""
        return self.step_bytes * max(0, self.max_steps - self.longest)

    def skip(self, stage: str, amount: float) -> None:
        """Count work of a stage that need not be done."""
        self.finished[stage] += amount

    def advance(self, stage: str, amount: float) -> None:
        """Count work of a stage (tokens of prompts, patches of media) and report it."""
        self.finished[stage] += amount
        if self.progress:
            self.progress(stage, round(self.finished[stage]), self.expected[stage])

    def grow(self, num_written: int, max_tokens: int) -> None:
        """Report when the longest answer has grown."""
        if num_written > self.longest:
            self.longest = num_written
            if self.progress:
                self.progress("decode", num_written, max_tokens)

    def put(self, chunk: Chunk, logits: torch.Tensor, scores: torch.Tensor | None = None) -> None:
        """Take a chunk."""
        likeliest = find_likeliest(chunk, logits, self.num_likeliest)
        kept = logits if self.keeps_logits else None
        self.chunks.append(Written(chunk, kept, scores, likeliest))
        self.num_put += 1


def find_likeliest(
    chunk: Chunk, logits: torch.Tensor, number: int
) -> tuple[tuple[int, float], ...]:
    """The tokens with the highest raw logits [V], and their log-probabilities, by that of the token
    that was chosen."""
    if not number:
        return ()
    best = logits.topk(min(number, len(logits)))
    log_sum = float(logits[chunk.token]) - chunk.logprob
    return tuple(
        (token, value - log_sum)
        for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )

"""From logits to tokens: rows of several sequences at once, each with options of its own.

The steps, in this order and with the tie rules of transformers:

1. repetition penalty
2. presence and frequency penalties, as OpenAI and vLLM define them; transformers has none
3. end tokens excluded before min_new_tokens
4. tokens excluded or forced by other options, the caller's logits processors (processors.py)
5. tokens that a grammar does not allow (constraint.py)
6. temperature
7. top-k, top-p, min-p

Everything up to 6 is computed for whole rows in float32. What remains of the vocabulary after that
is decided and drawn among the few tokens that are not far below the best one (see candidates.py).
A row's result depends on that row alone. transformers counts a batch's padding as tokens seen; here
only real tokens count.

    n rows · V vocab_size
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from qwen25vl.engine.candidates import Row, draw, keep_tokens
from qwen25vl.engine.constraint import ConstrainedAnswer
from qwen25vl.engine.occurrences import Occurrences
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.processors import Processor, process_row
from qwen25vl.errors import NumericsError

MAX_ROWS = 4  # whose tokens are chosen together: bounds the copies that are made of their logits
MAX_TEMPERATURE = 1e30  # all tokens are equally likely long before; float32 ends at 3e38
OVERFLOW = "the model's logits are not finite (overflow); run it in bfloat16 or float32"


@dataclass
class SamplerState:
    """What choosing the next token of one sequence depends on, beside its logits.

    seen: the tokens of prompt and answer; written: those of the answer; num_written: its length.
    key: of the sequence's random numbers. processors: what else changes the scores; ids: the tokens
    of prompt and answer, where there are processors. constraint: a grammar that the answer follows.
    """

    options: GenerationConfig
    key: int = 0
    prompt: Sequence[int] = ()
    processors: tuple[Processor, ...] = ()
    constraint: ConstrainedAnswer | None = None
    ids: list[int] = field(init=False)
    seen: Occurrences = field(init=False)
    written: Occurrences = field(default_factory=Occurrences)
    num_written: int = 0

    def __post_init__(self) -> None:
        self.seen = Occurrences(self.prompt if self.options.repetition_penalty != 1 else ())
        self.ids = list(self.prompt) if self.processors else []

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        self.num_written += 1
        if self.options.repetition_penalty != 1:
            self.seen.add(token)
        if self.options.presence_penalty or self.options.frequency_penalty:
            self.written.add(token)
        if self.processors:
            self.ids.append(token)
        if self.constraint is not None:
            self.constraint.add(token)

    @property
    def is_over(self) -> bool:
        """Whether a grammar allows nothing but the end."""
        return self.constraint is not None and self.constraint.is_over

    def fork(self, token: int) -> SamplerState:
        """The state of an answer that goes on with this token; this one stays as it is."""
        twin = copy(self)
        twin.seen, twin.written, twin.ids = self.seen.copy(), self.written.copy(), [*self.ids]
        twin.add(token)
        return twin


@dataclass(frozen=True)
class Choice:
    """A token, its log-probability under the model's raw logits, before all of the above, and the
    scores [V] that it was chosen from, −inf for excluded tokens, where `output_scores` asks for
    them."""

    token: int
    logprob: float
    scores: torch.Tensor | None = None


def choose_tokens(logits: torch.Tensor, states: Sequence[SamplerState]) -> list[Choice | Exception]:
    """The next token of each row of raw logits [n, V] in float32; an error instead where a row is
    not finite, before it becomes text, or where a processor of its own fails."""
    chosen: list[Choice | Exception] = []
    for start in range(0, len(states), MAX_ROWS):
        part = slice(start, start + MAX_ROWS)
        chosen += choose_together(logits[part], states[part])
    return chosen


def choose_together(
    logits: torch.Tensor, states: Sequence[SamplerState]
) -> list[Choice | Exception]:
    log_probs = logits.log_softmax(dim=-1)
    is_finite = (~log_probs[:, 0].isnan()).tolist()  # one NaN or +inf makes its whole row NaN
    faults: dict[int, Exception] = {
        i: NumericsError(OVERFLOW) for i, finite in enumerate(is_finite) if not finite
    }
    scores = process_logits(logits, states, faults)
    best = scores.amax(dim=-1).tolist()
    tokens = [0] * len(states)
    for i, (row, state) in enumerate(zip(scores, states, strict=True)):
        if i in faults:
            continue
        if state.options.is_greedy:
            tokens[i] = find_best(row)
        else:
            tokens[i] = draw(Row(row, best[i]), state.options, state.key, state.num_written)
    index = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    logprobs = log_probs.gather(1, index[:, None])[:, 0].tolist()
    chosen: list[Choice | Exception] = []
    for i, (token, logprob, state) in enumerate(zip(tokens, logprobs, states, strict=True)):
        shown = final_scores(scores[i], state.options) if state.options.output_scores else None
        chosen.append(faults[i] if i in faults else Choice(token, logprob, shown))
    return chosen


def final_scores(scores: torch.Tensor, options: GenerationConfig) -> torch.Tensor:
    """A row of `process_logits` as step 7 leaves it, normalised if the options say so."""
    shown = scores.clone()
    if not options.is_greedy:
        shown = keep_only(scores, keep_tokens(Row(scores, float(scores.max())), options).ids)
    return shown.log_softmax(dim=-1) if options.renormalize_logits else shown


def keep_only(scores: torch.Tensor, ids: NDArray[np.int64]) -> torch.Tensor:
    """−inf for all other tokens of a row [V]."""
    where = torch.from_numpy(ids).to(scores.device)
    return torch.full_like(scores, float("-inf")).index_copy(0, where, scores[where])


def find_best(row: torch.Tensor) -> int:
    """The highest of a row [V], on a tie the lowest id. numpy takes a tenth of torch's time."""
    return int(row.numpy().argmax()) if row.is_cpu else int(row.argmax())


def process_logits(
    logits: torch.Tensor,
    states: Sequence[SamplerState],
    faults: dict[int, Exception] | None = None,
) -> torch.Tensor:
    """Raw logits [n, V] in float32 to the scores [n, V] that tokens are chosen from: steps 1 to 6.
    Excluded tokens are −inf. What a row's processors or its constraint raise is put into `faults`,
    if there is one, under its number; rows that have one already are not processed."""
    scores = penalise_repetition(logits, states)
    scores = penalise_occurrence(scores, states)
    scores = exclude_ends(scores, states)
    if any(state.processors or state.constraint for state in states):
        scores = run_processors(scores, states, faults)
    temperatures = [
        1.0 if s.options.is_greedy else min(s.options.temperature, MAX_TEMPERATURE) for s in states
    ]
    if any(temperature != 1 for temperature in temperatures):
        scores = scores / column(temperatures, scores)
    return scores


def run_processors(
    scores: torch.Tensor, states: Sequence[SamplerState], faults: dict[int, Exception] | None
) -> torch.Tensor:
    rows = list(scores)
    for i, state in enumerate(states):
        if faults and i in faults:
            continue
        try:
            if state.processors:
                rows[i] = process_row(state.processors, state.ids, rows[i])
            if state.constraint is not None:
                rows[i] = state.constraint.mask(rows[i])
        except Exception as error:
            if faults is None:
                raise
            faults[i] = error
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def penalise_repetition(scores: torch.Tensor, states: Sequence[SamplerState]) -> torch.Tensor:
    """For each distinct token seen: s / penalty where s ≥ 0, else s · penalty (arXiv
    1909.05858)."""
    ids = [state.seen.tensors()[0] for state in states]
    if not any(map(len, ids)):
        return scores
    where = scatter_index(ids, scores.device)
    penalty = spread(ids, [state.options.repetition_penalty for state in states], scores)
    seen = scores[where]
    return scores.index_put(where, torch.where(seen < 0, seen * penalty, seen / penalty))


def penalise_occurrence(scores: torch.Tensor, states: Sequence[SamplerState]) -> torch.Tensor:
    """s − frequency · count − presence for each distinct token of the answer."""
    pairs = [state.written.tensors() for state in states]
    ids = [pair[0] for pair in pairs]
    if not any(map(len, ids)):
        return scores
    where = scatter_index(ids, scores.device)
    counts = torch.cat([pair[1] for pair in pairs]).to(scores.device)
    frequency = spread(ids, [state.options.frequency_penalty for state in states], scores)
    presence = spread(ids, [state.options.presence_penalty for state in states], scores)
    return scores.index_put(where, scores[where] - frequency * counts - presence)


def exclude_ends(scores: torch.Tensor, states: Sequence[SamplerState]) -> torch.Tensor:
    """−inf for the end tokens of rows whose answers are still too short to end."""
    size = scores.shape[-1]
    cells = [
        (row, token_id)
        for row, state in enumerate(states)
        if state.num_written < state.options.min_new_tokens
        for token_id in state.options.eos_token_id
        if token_id < size
    ]
    if not cells:
        return scores
    rows, columns = torch.tensor(cells, dtype=torch.int64, device=scores.device).T
    return scores.index_put((rows, columns), scores.new_tensor(float("-inf")))


def scatter_index(
    ids: Sequence[torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged token ids to (row, column) pairs."""
    numbers = torch.arange(len(ids), dtype=torch.int64, device="cpu")
    rows = numbers.repeat_interleave(count(ids))
    return rows.to(device), torch.cat(list(ids)).to(device)


def spread(
    ids: Sequence[torch.Tensor], values: Sequence[float], like: torch.Tensor
) -> torch.Tensor:
    """A value of each row for each of the row's ids, one row after another."""
    each = torch.tensor(values, dtype=torch.float32, device="cpu")
    return each.repeat_interleave(count(ids)).to(like.device)


def count(ids: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([len(row) for row in ids], dtype=torch.int64, device="cpu")


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]

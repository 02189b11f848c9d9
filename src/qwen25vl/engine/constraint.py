"""Which tokens may follow in one answer: a grammar's state, which goes on with every token.

A logits processor is a function of the tokens so far. A constraint is a state of its own for each
answer: it is asked for a mask when a token is chosen, and told of every token that is accepted. It
is told of no other: a drafted token that is not chosen leaves it as it was.

End tokens and the grammar: an end token may be chosen where the grammar may end, and nowhere else.
Where nothing but the end may follow, the answer ends by itself, with "stop". min_new_tokens keeps
an answer from ending early where the grammar has a way to go on, and gives way where it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import torch

from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError

NEVER = float("-inf")


class TokenConstraint(Protocol):
    """The state of one answer under a grammar."""

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it stands."""

    @property
    def is_over(self) -> bool:
        """Whether nothing but the end may follow."""

    def mask(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [V] with −inf for every token that may not follow. Asked twice, it answers the
        same. The scores that it was given stay as they are; the result is the caller's."""

    def accept(self, token: int) -> None:
        """Go on with a token that was chosen from what `mask` left."""


StartConstraint = Callable[[], TokenConstraint]
"""Makes the state of an answer that is about to begin; called once for each answer of a call."""


@dataclass
class ConstrainedAnswer:
    """A constraint in an answer with these end tokens."""

    constraint: TokenConstraint
    end_token_ids: tuple[int, ...]

    @property
    def is_over(self) -> bool:
        return self.constraint.is_over

    def add(self, token: int) -> None:
        if token not in self.end_token_ids:
            self.constraint.accept(token)

    def mask(self, scores: torch.Tensor) -> torch.Tensor:
        """What may follow, of scores [V]. Raises UsageError where other options exclude all of
        it."""
        masked = self.constraint.mask(scores)
        ends = [token for token in self.end_token_ids if token < len(scores)]
        may_end = bool(ends) and self.constraint.may_end
        index = torch.tensor(ends, dtype=torch.int64, device=scores.device)
        if may_end:
            masked[index] = scores[index]
        best = masked.numpy().max() if masked.is_cpu else masked.max()  # numpy is faster
        if float(best) > NEVER:
            return masked
        if not may_end:
            raise UsageError(
                "other options exclude every token that the grammar allows here; relax them "
                "(bad_words_ids, suppress_tokens, no_repeat_ngram_size, logits processors)"
            )
        return masked.index_fill(0, index, 0.0)


def check_constraint(options: GenerationConfig) -> None:
    """Refuse options that a constrained answer cannot have."""
    if options.num_beams > 1:
        raise UsageError(
            f"num_beams={options.num_beams} with a grammar; a beam search cannot follow one: "
            "leave num_beams at 1"
        )
    if options.forced_bos_token_id is not None or options.forced_eos_token_id:
        raise UsageError("forced_bos_token_id and forced_eos_token_id exclude a grammar")


def constrain(start: StartConstraint | None, ends: Items[int]) -> ConstrainedAnswer | None:
    """The constraint of an answer that is about to begin; None where there is none."""
    return None if start is None else ConstrainedAnswer(start(), tuple(ends))

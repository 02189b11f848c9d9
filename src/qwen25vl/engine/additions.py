"""What a caller may add to inputs and options: functions, embeddings, and caches to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwen25vl.engine.constraint import StartConstraint
from qwen25vl.engine.processors import AllowedTokens, Processor, only_allowed
from qwen25vl.engine.stopping import Criterion
from qwen25vl.errors import UsageError
from qwen25vl.model.cache import KVCache


@dataclass(frozen=True)
class Additions:
    """processors, criteria: called for one answer at a time (see processors.py and stopping.py);
    allowed: names the tokens that may follow. constraint: makes the state of a grammar for each
    answer (see constraint.py). embeds [B, L, D]: of the prompts, padded as they are;
    has_ids: whether the ids of the inputs are the prompts' own, or only as many. caches: of the
    beginnings of the prompts, one for each; they are copied. renewed: a list that gets the answers'
    caches in their place."""

    processors: tuple[Processor, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    allowed: AllowedTokens | None = None
    constraint: StartConstraint | None = None
    embeds: torch.Tensor | None = None
    has_ids: bool = True
    caches: Sequence[KVCache] = ()
    renewed: list[KVCache] | None = None

    def check(self, shape: torch.Size, width: int) -> None:
        """Refuse what does not fit ids of this shape [B, L] and a model of this width."""
        if self.embeds is not None and self.embeds.shape != (*shape, width):
            raise UsageError(
                f"inputs_embeds has shape {list(self.embeds.shape)}; expected {[*shape, width]}"
            )

    def allowed_for(self, row: int) -> Processor | None:
        return None if self.allowed is None else only_allowed(self.allowed, row)

    def cache_for(self, row: int) -> KVCache | None:
        """The cache of a prompt's beginning; None where it holds nothing."""
        cache = self.caches[row] if self.caches else None
        return cache if cache is not None and cache.length else None

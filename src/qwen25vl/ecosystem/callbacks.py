"""The ecosystem's names for functions that take part in writing an answer. `generate` takes plain
functions as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Scores = torch.Tensor | tuple[torch.Tensor, ...] | None


class LogitsProcessor:
    """Base of classes that change scores; they define `__call__`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of the next token after input_ids [B, n]."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


class LogitsProcessorList(list[Callable[..., torch.Tensor]]):
    """Processors, called one after the other."""

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        for processor in self:
            scores = processor(input_ids, scores, **options)
        return scores


class StoppingCriteria:
    """Base of classes that end answers; they define `__call__`."""

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **options: Any) -> Any:
        """Whether the answers [B, n] are over: bools [B], or one bool for all."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


class StoppingCriteriaList(list[Callable[..., Any]]):
    """Criteria, each of which ends an answer."""

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **options: Any) -> torch.Tensor:
        """Bools [B]."""
        is_over = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            is_over = is_over | criterion(input_ids, scores, **options)
        return is_over

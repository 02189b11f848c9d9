"""A compiled grammar, and the state of one answer under it."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen25vl.errors import SchemaError
from qwen25vl.structured.vocabulary import Vocabulary, keep_allowed


class Grammar:
    """May be shared by any number of answers and threads. num_bytes: that it takes, about."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary, num_bytes: int) -> None:
        self.matcher, self.vocabulary, self.num_bytes = matcher, vocabulary, num_bytes
        self.lock = Lock()

    def start(self) -> GrammarState:
        """The state of an answer that is about to begin."""
        with self.lock:
            return GrammarState(self.matcher.deep_copy(), self.vocabulary)


class GrammarState:
    """One answer's place in a grammar, as the engine asks for it (`engine/constraint.py`)."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self.matcher, self.vocabulary = matcher, vocabulary
        self.allowed: NDArray[np.bool_] | None = None  # here, once it was asked for

    @property
    def may_end(self) -> bool:
        return bool(self.matcher.is_accepting())

    @property
    def is_over(self) -> bool:
        return bool(self.matcher.is_stopped())

    def mask(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [V] with −inf for tokens that may not follow. Raises SchemaError where the grammar
        has become too complex to go on with."""
        if self.allowed is None:
            allowed = self.vocabulary.read_mask(self.matcher.compute_bitmask())
            self.check()
            self.allowed = allowed
        return keep_allowed(scores, self.allowed)

    def accept(self, token: int) -> None:
        self.allowed = None
        self.matcher.consume_token(token)
        self.check()

    def check(self) -> None:
        if self.matcher.is_error():
            why = " ".join(str(self.matcher.get_error()).replace("<non-verbose/>", "").split())
            raise SchemaError(f"the answer cannot go on under its grammar: {why[:200]}")

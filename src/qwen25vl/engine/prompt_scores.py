"""Log-probabilities of the tokens of a prompt, for those who rate texts instead of writing them.

Each token is rated by the row that read the token before it, so the first one has none, and the
rows must be computed: a kept prefix has keys and values, but no rows. The vocabulary is wide, so
the rows go through the head some at a time, and through float32 fewer at a time.

    n rows of a step · D hidden_size · V vocab_size · L tokens of the prompt · k likeliest tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen25vl.engine.sampling import OVERFLOW
from qwen25vl.errors import NumericsError
from qwen25vl.model.causal import Qwen2_5_VLCausalModel

HEAD_ROWS = 64  # of logits as the head computes them
FLOAT_ROWS = 8  # of these in float32, as logits, log-probabilities and a comparison


class PromptScores:
    """What is known of a prompt's tokens: logprobs [L], under the raw logits, and ranks [L], 1 for
    the likeliest; top_tokens, top_logprobs [L, k], the most likely first. Nothing is known of the
    first token. The sequence that reads the prompt fills them in, and nobody else writes."""

    def __init__(self, ids: Sequence[int], num_likeliest: int) -> None:
        self.ids = torch.tensor(ids, dtype=torch.int64, device="cpu")
        length = len(ids)
        self.logprobs = torch.zeros(length, dtype=torch.float32, device="cpu")
        self.ranks = torch.zeros(length, dtype=torch.int32, device="cpu")
        self.top_tokens = torch.zeros(length, num_likeliest, dtype=torch.int32, device="cpu")
        self.top_logprobs = torch.zeros(length, num_likeliest, dtype=torch.float32, device="cpu")

    @property
    def num_likeliest(self) -> int:
        return self.top_tokens.shape[1]

    @property
    def num_bytes(self) -> int:
        return sum(
            each.nbytes
            for each in (self.ids, self.logprobs, self.ranks, self.top_tokens, self.top_logprobs)
        )

    def read(self, model: Qwen2_5_VLCausalModel, start: int, hidden: torch.Tensor) -> None:
        """Rate what follows the tokens from `start` on, by their rows [n, D]. A second time changes
        nothing."""
        rated = min(start + len(hidden), len(self.ids) - 1) - start  # the last row begins an answer
        for first in range(0, rated, HEAD_ROWS):
            logits = model.compute_logits(hidden[first : min(first + HEAD_ROWS, rated)])
            for place in range(0, len(logits), FLOAT_ROWS):
                self.rate(start + 1 + first + place, logits[place : place + FLOAT_ROWS])

    def rate(self, start: int, logits: torch.Tensor) -> None:
        """Rate the tokens from `start` on by raw logits [n, V]."""
        log_probs = logits.float().log_softmax(dim=-1)
        where = slice(start, start + len(logits))
        own = log_probs.gather(1, self.ids[where, None].to(logits.device))
        if own.isnan().any():
            raise NumericsError(OVERFLOW)
        self.logprobs[where] = own[:, 0].cpu()
        self.ranks[where] = 1 + (log_probs > own).sum(dim=1, dtype=torch.int32).cpu()
        if self.num_likeliest:
            best = log_probs.topk(min(self.num_likeliest, log_probs.shape[1]), dim=1)
            self.top_tokens[where] = best.indices.to("cpu", torch.int32)
            self.top_logprobs[where] = best.values.cpu()

"""One step of several answers: from raw logits to a token of each.

n answers in a step · V vocab_size
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen25vl.engine.footprint import ROWS_CHOSEN_TOGETHER
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.sampling import choose_tokens, log_probabilities, process_logits
from qwen25vl.engine.sequence import Answer, Chunk


def write_tokens(
    answers: Sequence[Answer],
    logits: torch.Tensor,
    config: GenerationConfig,
    end_token_ids: Sequence[int],
) -> tuple[Chunk, ...]:
    """Choose the next token of each answer from its raw logits [n, V], of a few answers at a time:
    the copies that sampling makes of their logits stay few."""
    chosen: list[tuple[int, float]] = []
    for start in range(0, len(answers), ROWS_CHOSEN_TOGETHER):
        some = answers[start : start + ROWS_CHOSEN_TOGETHER]
        chosen += choose_some(some, logits[start : start + len(some)], config)
    pairs = zip(answers, chosen, strict=True)
    return tuple(answer.accept(token, logprob, end_token_ids) for answer, (token, logprob) in pairs)


def choose_some(
    answers: Sequence[Answer], logits: torch.Tensor, config: GenerationConfig
) -> list[tuple[int, float]]:
    """The next token of a few answers, with its log-probability under the raw logits."""
    log_probs = log_probabilities(logits)
    scores = process_logits(
        logits, config, [a.prompt_ids for a in answers], [a.tokens for a in answers]
    )
    tokens = choose_tokens(scores, config, [a.generator for a in answers])
    return list(
        zip(tokens.tolist(), log_probs.gather(1, tokens[:, None])[:, 0].tolist(), strict=True)
    )

"""From logits to tokens: pure functions over a batch of rows [N, V], in float32.

The steps, in this order and with the tie rules of transformers:

1. repetition penalty
2. presence and frequency penalties, as OpenAI and vLLM define them; transformers has none
3. end tokens masked before min_new_tokens
4. temperature
5. top-k, top-p, min-p

A row's result depends on that row alone. transformers counts a batch's padding as tokens seen; here
only real tokens count.

    N sequences · V vocab_size
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import NumericsError


def process_logits(
    logits: torch.Tensor,
    config: GenerationConfig,
    prompts: Sequence[torch.Tensor],
    answers: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Logits [N, V] to the scores [N, V] that tokens are chosen from, in float32; excluded tokens
    are −inf.

    prompts: the token ids of each prompt, [length] each; order and repetitions do not matter.
    answers: the tokens of each answer so far.
    """
    scores = logits.float()
    written = [torch.tensor(answer, dtype=torch.long, device=scores.device) for answer in answers]
    if config.repetition_penalty != 1:
        seen = [torch.cat(pair) for pair in zip(prompts, written, strict=True)]
        scores = penalise_repetition(scores, seen, config.repetition_penalty)
    if config.presence_penalty or config.frequency_penalty:
        scores = penalise_occurrence(
            scores, written, config.presence_penalty, config.frequency_penalty
        )
    too_short = [len(answer) < config.min_new_tokens for answer in answers]
    if any(too_short):
        scores = bar_tokens(
            scores,
            torch.tensor(too_short, device=scores.device, dtype=torch.bool),
            config.eos_token_id,
        )
    if config.is_greedy:
        return scores
    if config.temperature != 1:
        scores = scores / config.temperature
    if config.top_k:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p < 1:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p:
        scores = keep_min_p(scores, config.min_p)
    return scores


def choose_tokens(
    scores: torch.Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """One token per row [N]: the best (on a tie the lowest id), or one sampled by softmax with the
    row's generator.

    A draw is a race: argmax p_i / e_i with e_i ~ Exp(1) gives token i with probability p_i. A
    rounding difference (another batch, another machine) then changes it only where two tokens are
    nearly tied. Inverting the cumulative distribution would add up the differences of all tokens.
    """
    if config.is_greedy:
        return scores.argmax(dim=-1)
    # exponential_ never gives 0, so that a token of probability 0 cannot win
    noise = [
        torch.empty_like(scores[0]).exponential_(generator=generator) for generator in generators
    ]
    return (scores.softmax(dim=-1) / torch.stack(noise)).argmax(dim=-1)


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """log softmax of the model's raw logits [N, V] in float32, before penalties, temperature and
    top-k/p.

    Raises NumericsError where logits are not finite, before they become text.
    """
    log_probs = logits.float().log_softmax(dim=-1)
    if bool(log_probs[:, 0].isnan().any()):  # one NaN or +inf makes its whole row NaN
        raise NumericsError(
            "the model's logits are not finite (overflow); run it in bfloat16 or float32"
        )
    return log_probs


def open_generators(
    seed: int | None, count: int, device: torch.device, first: int = 0
) -> list[torch.Generator]:
    """Independent generators for `count` answers to one prompt, from the seed and the answer's
    number, from `first`.

    Without a seed one is drawn from torch's global generator, so that `torch.manual_seed` still has
    its effect.
    """
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    numbers = range(first, first + count)
    digests = [
        hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=7).digest() for number in numbers
    ]
    return [
        torch.Generator(device).manual_seed(int.from_bytes(digest, "little")) for digest in digests
    ]


def penalise_repetition(
    scores: torch.Tensor, seen: Sequence[torch.Tensor], penalty: float
) -> torch.Tensor:
    """For each distinct token seen: s / penalty where s ≥ 0, else s · penalty (arXiv
    1909.05858)."""
    where = scatter_index(seen)
    chosen = scores[where]
    return scores.index_put(where, torch.where(chosen < 0, chosen * penalty, chosen / penalty))


def penalise_occurrence(
    scores: torch.Tensor, written: Sequence[torch.Tensor], presence: float, frequency: float
) -> torch.Tensor:
    """s − frequency · count − presence · [count > 0], counted over the answer."""
    where = scatter_index(written)
    counts = torch.zeros_like(scores).index_put_(
        where, scores.new_ones(len(where[0])), accumulate=True
    )
    return scores - frequency * counts - presence * (counts > 0)


def scatter_index(ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged token ids to (row, column) pairs."""
    columns = torch.cat(list(ids))
    lengths = torch.tensor([len(row) for row in ids], device=columns.device, dtype=torch.int64)
    return torch.arange(len(ids), device=columns.device).repeat_interleave(lengths), columns


def bar_tokens(scores: torch.Tensor, rows: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
    """−inf for the given tokens in the given rows [N] (bool)."""
    barred = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
    barred[[token_id for token_id in token_ids if token_id < scores.shape[-1]]] = True
    return scores.masked_fill(rows[:, None] & barred, float("-inf"))


def keep_top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k best, and ties with the last of them."""
    last = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < last, float("-inf"))


def keep_top_p(scores: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest best tokens that together reach probability p, at least one, and ties with
    the last of them.

    Which ties transformers keeps depends on the order of its sort. Only as many of the best as are
    needed are sorted: sorting the whole vocabulary takes longer than a decoding step of a small
    model.
    """
    probabilities = scores.softmax(dim=-1)
    size = min(1024, scores.shape[-1])
    best = probabilities.topk(size).values
    while size < scores.shape[-1] and bool((best.sum(dim=-1) < p).any()):
        size = min(16 * size, scores.shape[-1])
        best = probabilities.topk(size).values
    before = best.cumsum(dim=-1, dtype=torch.float64) - best
    reached = p * probabilities.sum(dim=-1, keepdim=True, dtype=torch.float64)
    last = (before < reached).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return scores.masked_fill(probabilities < best.gather(1, last), float("-inf"))


def keep_min_p(scores: torch.Tensor, p: float) -> torch.Tensor:
    """Keep tokens at least p > 0 times as likely as the best."""
    return scores.masked_fill(
        scores < scores.amax(dim=-1, keepdim=True) + math.log(p), float("-inf")
    )

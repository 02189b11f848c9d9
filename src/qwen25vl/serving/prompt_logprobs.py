"""`prompt_logprobs`: the log-probabilities of a prompt's tokens, in vLLM's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwen25vl.serving.answer_events import TokenInfo
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.logprobs import LOWEST, text_of

if TYPE_CHECKING:
    from qwen25vl.engine.prompt_scores import PromptScores
    from qwen25vl.processing.tokenizer import Tokenizer


def rated_prompt(scores: PromptScores, number: int) -> list[TokenInfo]:
    """The tokens of a prompt as those of an answer, with so many likeliest ones. Of the first one
    nothing is known, and its log-probability says 0."""
    tokens = scores.ids.tolist()
    logprobs = scores.logprobs.tolist()
    best = zip(
        scores.top_tokens[:, :number].tolist(),
        scores.top_logprobs[:, :number].tolist(),
        strict=True,
    )
    likeliest = [tuple(zip(*each, strict=True)) for each in best]
    return [TokenInfo(*each) for each in zip(tokens, logprobs, likeliest, strict=True)]


def prompt_logprobs(generation: Generation, number: int) -> list[dict[str, Any] | None]:
    """For each token of the prompt it and the likeliest ones in its place, by their ids; None for
    the first token."""
    scores = generation.prompt_scores
    if scores is None:
        return []
    ranks = scores.ranks.tolist()
    rated = zip(rated_prompt(scores, number), ranks, strict=True)
    return [None, *(by_id(generation.tokenizer, *each) for each in list(rated)[1:])]


def by_id(tokenizer: Tokenizer, info: TokenInfo, rank: int) -> dict[str, Any]:
    found = {
        str(token): describe(tokenizer, token, logprob, place)
        for place, (token, logprob) in enumerate(info.likeliest, start=1)
    }
    return found | {str(info.token): describe(tokenizer, info.token, info.logprob, rank)}


def describe(tokenizer: Tokenizer, token: int, logprob: float, rank: int) -> dict[str, Any]:
    shown = text_of(tokenizer, token)
    return {"logprob": max(logprob, LOWEST), "rank": rank, "decoded_token": shown}

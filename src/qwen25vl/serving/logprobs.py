"""Log-probabilities of tokens in OpenAI's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen25vl.processing.tokenizer import Tokenizer
    from qwen25vl.serving.answer_events import TokenInfo

LOWEST = -9999.0  # the custom for a token that cannot be


def entry(tokenizer: Tokenizer, info: TokenInfo, as_ids: bool = False) -> dict[str, Any]:
    """A token of an answer, and the likeliest ones in its place. as_ids: whether tokens are named
    by their ids."""
    likeliest = [describe(tokenizer, *each, as_ids) for each in info.likeliest]
    return {**describe(tokenizer, info.token, info.logprob, as_ids), "top_logprobs": likeliest}


def describe(tokenizer: Tokenizer, token: int, logprob: float, as_ids: bool) -> dict[str, Any]:
    """bytes: of a token that is part of a character, so that clients can join them."""
    raw = bytes_of(tokenizer, token)
    shown = f"token_id:{token}" if as_ids else raw.decode("utf-8", "replace")
    return {"token": shown, "logprob": max(logprob, LOWEST), "bytes": list(raw)}


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    text = tokenizer.control_texts.get(token)
    return tokenizer.token_bytes(token) if text is None else text.encode()


def text_of(tokenizer: Tokenizer, token: int) -> str:
    return bytes_of(tokenizer, token).decode("utf-8", "replace")

"""A tokenizer's vocabulary as llguidance reads it, and its masks as tensors.

A grammar speaks of bytes; every ordinary token is the bytes that it spells. Control tokens are no
text: a grammar has to name one to allow it (<tool_call>), and those that make up prompts (turns,
slots of pictures, padding) are never allowed, whatever it names. The model's vocabulary may have
more rows than the tokenizer has ids: these are never allowed either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen25vl.errors import DependencyError
from qwen25vl.processing.tokenizer import Tokenizer

NEVER = np.float32("-inf")
NEVER_BITS = NEVER.view(np.int32)


class TokenTable:
    """What llguidance asks of a tokenizer: the bytes of each token, and how a text that is bound to
    come is usually cut into tokens."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_id
        self.special_token_ids = sorted(tokenizer.control_ids.values())
        size = 1 + max(tokenizer.bpe.get_vocab_size() - 1, *self.special_token_ids)
        self.tokens: list[bytes] = [tokenizer.token_bytes(number) for number in range(size)]
        for text, number in tokenizer.control_ids.items():
            self.tokens[number] = text.encode()
        letters = tokenizer.bytes_of_letters.items()
        found = {byte: tokenizer.bpe.token_to_id(letter) for letter, byte in letters}
        self.byte_ids = {byte: number for byte, number in found.items() if number is not None}

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that spell exactly this text. The tokenizer composes characters (NFC); a text that
        this would change is spelt byte by byte."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        ids = self.tokenizer.encode_ordinary(text)
        wanted = text.encode("utf-8", "surrogateescape")
        if b"".join(self.tokens[number] for number in ids) == wanted:
            return ids
        return [self.byte_ids[byte] for byte in wanted if byte in self.byte_ids]


class Vocabulary:
    """Made once for a tokenizer; that takes a second for 152 thousand tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        llguidance = require_llguidance()
        table = TokenTable(tokenizer)
        self.compiled = llguidance.LLTokenizer(table)
        self.size = len(table.tokens)
        self.tokenizer = tokenizer
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        frame = {tokenizer.control_ids[text] for text in tokenizer.structure}
        self.excluded = np.array(sorted(frame - ends), dtype=np.int64)

    def read_mask(self, mask: bytes) -> NDArray[np.bool_]:
        """Whether each token is allowed, of a mask with one bit for each."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little", count=self.size)
        allowed: NDArray[np.bool_] = bits.view(np.bool_)
        allowed[self.excluded] = False
        return allowed


def keep_allowed(scores: torch.Tensor, allowed: NDArray[np.bool_]) -> torch.Tensor:
    """Scores [V] with −inf for tokens that are not allowed or beyond the vocabulary.

    0 or −inf is added to each score. A choice between two values takes ten times as long where the
    processor cannot guess which it will be.
    """
    known = allowed[: len(scores)]
    if not scores.is_cpu:
        masked = torch.full_like(scores, float("-inf"))
        where = torch.from_numpy(np.flatnonzero(known)).to(scores.device)
        return masked.index_copy(0, where, scores[where])
    numbers = scores.numpy()
    added = ((known.view(np.int8) - np.int8(1)).astype(np.int32) & NEVER_BITS).view(np.float32)
    kept = np.empty(len(numbers), np.float32)
    np.add(numbers[: len(known)], added, out=kept[: len(known)])
    kept[len(known) :] = NEVER
    return torch.from_numpy(kept)


def require_llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise DependencyError(
            'answers that follow a schema need llguidance: pip install "qwen25vl[schema]"'
        ) from None
    return llguidance

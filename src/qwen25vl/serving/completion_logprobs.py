"""Log-probabilities in the shape of OpenAI's older API: four lists, one number for each token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen25vl.serving.logprobs import LOWEST, bytes_of

if TYPE_CHECKING:
    from qwen25vl.processing.tokenizer import Tokenizer
    from qwen25vl.serving.answer_events import TokenInfo


@dataclass
class TokenTexts:
    """Names tokens, and counts where in a text each begins. A token in the middle of a character
    begins where the character does. as_ids: whether tokens are named by their ids."""

    tokenizer: Tokenizer
    as_ids: bool = False
    num_characters: int = 0

    def name(self, token: int) -> str:
        """A token that is no whole text is named by its bytes, as OpenAI does: names of different
        tokens differ."""
        if self.as_ids:
            return f"token_id:{token}"
        raw = bytes_of(self.tokenizer, token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def place(self, token: int, is_shown: bool) -> int:
        """Where a token begins; the next one begins behind it."""
        raw = bytes_of(self.tokenizer, token) if is_shown else b""
        start = self.num_characters - (1 if raw and is_continuation(raw[0]) else 0)
        self.num_characters += sum(not is_continuation(byte) for byte in raw)
        return max(0, start)


def is_continuation(byte: int) -> bool:
    """Whether a byte is one of a UTF-8 character after its first."""
    return byte & 0xC0 == 0x80


@dataclass
class OldLogprobs:
    """texts: counts on from one part of a stream to the next. hidden: tokens that do not show in
    the text of an answer."""

    texts: TokenTexts
    hidden: frozenset[int] = frozenset()

    def lists(
        self, infos: Iterable[TokenInfo], *, is_prompt: bool = False, starts: bool = False
    ) -> dict[str, Any]:
        """starts: whether the first token has nothing before it, and so no log-probability."""
        found: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
        }  # fmt: skip
        for number, info in enumerate(infos):
            is_shown = is_prompt or info.token not in self.hidden
            found["tokens"].append(self.texts.name(info.token))
            found["text_offset"].append(self.texts.place(info.token, is_shown))
            is_known = not (starts and number == 0)
            found["token_logprobs"].append(max(info.logprob, LOWEST) if is_known else None)
            found["top_logprobs"].append(self.likeliest(info) if is_known else None)
        return found

    def likeliest(self, info: TokenInfo) -> dict[str, float]:
        """By name, the token itself among them."""
        each = (*info.likeliest, (info.token, info.logprob))
        return {self.texts.name(token): max(logprob, LOWEST) for token, logprob in each}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {name: [*first[name], *second[name]] for name in first}

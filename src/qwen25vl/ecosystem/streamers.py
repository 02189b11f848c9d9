"""Streamers for `generate`: the text of one answer while it is written."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from typing import Any

import torch

from qwen25vl.errors import UsageError

INCOMPLETE = "�"  # what the bytes of a character decode to before all of them are there


class TextStreamer:
    """Prints one answer to standard output while it is written.

    tokenizer: anything with `decode`, a processor or transformers' tokenizer too. skip_prompt:
    leave out the prompt. decode_options: of `decode`, such as skip_special_tokens.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_options: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_options = decode_options
        self.tokens: list[int] = []
        self.shown = ""
        self.is_prompt_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt [1, L] or [L] first, then [1] for each token. Raises UsageError for
        several answers."""
        is_batch = value.ndim > 1 and value.shape[0] > 1
        if is_batch or (not self.is_prompt_next and len(value) > 1):
            raise UsageError(f"{type(self).__name__} writes one answer, the batch has {len(value)}")
        is_prompt, self.is_prompt_next = self.is_prompt_next, False
        if is_prompt and self.skip_prompt:
            return
        self.tokens += value.flatten().tolist()
        text = self.tokenizer.decode(self.tokens, **self.decode_options)
        self._hand_out(text.rstrip(INCOMPLETE))
        if text.endswith("\n"):
            self.tokens, self.shown = [], ""  # decoding the whole answer again would take too long

    def end(self) -> None:
        """Hand out what is held back, and be ready for another answer."""
        if self.tokens:
            self._hand_out(self.tokenizer.decode(self.tokens, **self.decode_options))
        self.tokens, self.shown, self.is_prompt_next = [], "", True
        self.on_finalized_text("", stream_end=True)

    def _hand_out(self, text: str) -> None:
        """Hand out what has not been shown of a text."""
        new = text[len(self.shown) :]
        if new:
            self.shown = text
            self.on_finalized_text(new)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each piece of text; subclasses may do something else with it."""
        print(text, flush=True, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    """Gives the text of one answer piece by piece to a thread that iterates over it, while another
    one generates. timeout: seconds to wait for a piece, after which `queue.Empty` is raised."""

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_options: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_options)
        self.text_queue: Queue[str | None] = Queue()
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(None, timeout=self.timeout)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.text_queue.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece

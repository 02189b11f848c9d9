"""The choices of /v1/completions, whole and as parts of a stream.

They are numbered by prompts first: with n answers to each, those of prompt p are p·n … p·n + n − 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from qwen25vl.serving.answer_events import AnswerState, CallDelta, End, Event, TextDelta
from qwen25vl.serving.completion_logprobs import OldLogprobs, TokenTexts, joined
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.prompt_logprobs import prompt_logprobs, rated_prompt

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service
    from qwen25vl.serving.wire import CompletionRequest


@dataclass
class Choices:
    """begun: choices of a stream of which something was sent, with their log-probabilities so
    far."""

    service: Service
    body: CompletionRequest
    generations: Sequence[Generation]
    id: str = field(default_factory=lambda: f"cmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    begun: dict[int, OldLogprobs] = field(default_factory=dict)

    @property
    def writes(self) -> bool:
        """Whether answers are shown at all; one token is computed in any case."""
        return self.body.max_tokens != 0

    @property
    def includes_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.include_usage)

    @property
    def repeats_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.continuous_usage_stats)

    def frame(self) -> dict[str, Any]:
        name = self.body.model or self.service.settings.model_names[0]
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": name,
        }

    def usage(self) -> dict[str, Any]:
        """The sum of all prompts."""
        parts = [generation.usage() for generation in self.generations]
        read = sum(part["prompt_tokens"] for part in parts)
        written = sum(part["completion_tokens"] for part in parts) if self.writes else 0
        cached = sum(part["prompt_tokens_details"]["cached_tokens"] for part in parts)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def prompt_text(self, generation: Generation) -> str:
        """As it is sent back with `echo`: as the model read it."""
        return generation.tokenizer.decode(generation.prompt_ids)

    def logprobs(self) -> OldLogprobs:
        tokenizer = self.service.vlm.processor.tokenizer
        texts = TokenTexts(tokenizer, bool(self.body.return_tokens_as_token_ids))
        shows_special = self.body.skip_special_tokens is False
        return OldLogprobs(texts, frozenset() if shows_special else tokenizer.special_ids)

    def whole(self) -> list[dict[str, Any]]:
        return [
            self.choice(number, generation, answer)
            for number, generation in enumerate(self.generations)
            for answer in generation.answers
        ]

    def choice(self, number: int, generation: Generation, answer: AnswerState) -> dict[str, Any]:
        """One answer to the prompt of a number."""
        body, logprobs = self.body, None
        text = self.prompt_text(generation) if body.echo else ""
        written = answer.tokens if self.writes else []
        if body.logprobs is not None:
            old = self.logprobs()
            logprobs = self.echoed(old, generation)
            logprobs = joined(logprobs, old.lists(written))
        text += answer.text if self.writes else ""
        end = answer.end or End(answer.index, "length", None)
        choice = {
            "index": number * len(generation.answers) + answer.index,
            "text": text,
            "logprobs": logprobs,
            **self.ends(end),
        }
        if body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(generation, body.prompt_logprobs)
        if body.return_token_ids:
            choice["prompt_token_ids"] = generation.prompt_ids
            choice["token_ids"] = [info.token for info in written]
        return choice

    def echoed(self, old: OldLogprobs, generation: Generation) -> dict[str, Any]:
        """The log-probabilities of the prompt, where it is sent back."""
        scores = generation.prompt_scores
        if not self.body.echo or scores is None:
            return old.lists(())
        number = self.body.logprobs or 0
        return old.lists(rated_prompt(scores, number), is_prompt=True, starts=True)

    def ends(self, end: End) -> dict[str, Any]:
        if not self.writes:
            return {"finish_reason": "length", "stop_reason": None}
        return {"finish_reason": end.reason, "stop_reason": end.detail}

    def chunk(self, number: int, event: Event) -> dict[str, Any] | None:
        """An event as part of the stream; None for one that shows nothing."""
        generation = self.generations[number]
        if isinstance(event, End):
            return self.part(number, event.index, "", **self.ends(event))
        if not isinstance(event, TextDelta | CallDelta):
            return None
        index = number * len(generation.answers) + event.index
        text, lists, ids = "", None, {}
        tokens = event.tokens if isinstance(event, TextDelta) and self.writes else ()
        if index not in self.begun:
            old = self.begun[index] = self.logprobs()
            text = self.prompt_text(generation) if self.body.echo else ""
            lists = self.echoed(old, generation)
            if self.body.return_token_ids:
                ids["prompt_token_ids"] = generation.prompt_ids
        if isinstance(event, TextDelta) and self.writes:
            text += event.text
        new = self.begun[index].lists(tokens)
        lists = new if lists is None else joined(lists, new)
        if not (text or ids or (lists["tokens"] and self.shows_tokens)):
            return None
        if self.body.return_token_ids:
            ids["token_ids"] = [info.token for info in tokens]
        logprobs = None if self.body.logprobs is None else lists
        return self.part(number, event.index, text, logprobs, **ids)

    @property
    def shows_tokens(self) -> bool:
        return self.body.logprobs is not None or bool(self.body.return_token_ids)

    def part(
        self,
        number: int,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        **own: Any,
    ) -> dict[str, Any]:
        place = number * len(self.generations[number].answers) + index
        choice = {"index": place, "text": text, "logprobs": logprobs, "finish_reason": None, **own}
        chunk: dict[str, Any] = {**self.frame(), "choices": [choice]}
        if self.repeats_usage:
            chunk["usage"] = self.usage()
        elif self.includes_usage:
            chunk["usage"] = None
        return chunk

"""One prompt with its answer: everything that the engine knows about it is here and nowhere else.

A sequence is *waiting* until memory is reserved for it, *reading* while tokens of its prompt are
not in its cache yet, then *writing*, and it is over when it has a finish reason or an error. The
state that counts is `num_computed`, the tokens in the cache: after any interruption the cache is
cut back to it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from qwen25vl.engine.beams import BeamSearch, Hypothesis
from qwen25vl.engine.lookup import PromptLookup
from qwen25vl.engine.medium import Medium
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.outbox import Chunk, Outbox
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.prompt_scores import PromptScores
from qwen25vl.engine.sampling import Choice, SamplerState
from qwen25vl.engine.stopping import (
    AnswerText,
    Criterion,
    FinishReason,
    RepetitionDetector,
    is_met,
)
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.model.cache import KVCache, ends_of
from qwen25vl.model.causal import Qwen2_5_VLCausalModel


@dataclass(eq=False)
class Sequence:
    """ids, positions [3, L], media: of the prompt. index: of the answer among those of the call.
    max_tokens: of the answer; next_position: of its first token. deadline: on the clock of
    time.monotonic. followers: further answers to the same prompt, which wait until it is read and
    get a copy of its cache. prefixes: kept caches that may serve its beginning, and where its own
    is kept. keeps_patches: whether the caller holds them until the end. held_bytes: of its cache;
    transient_bytes: what it needs for a while beside that; stage_bytes: of it, what is needed until
    the prompt is read. embeds [L, D]: of the prompt, where the caller gave them; has_ids: whether
    `ids` are more than places for these. past: a cache of the prompt's beginning, which stays as it
    is. kept_caches: the caches of its answers, where `keeps_caches`. adapted: the model under an
    adapter, which computes this sequence in place of the model itself. salt: of the caches that may
    serve it. beams: of a beam search, whose best beam is what is said here of the answer.
    prompt_scores: filled in while the prompt is read, where they are asked for.
    """

    index: int
    ids: list[int]
    positions: torch.Tensor
    media: list[Medium]
    options: GenerationConfig
    max_tokens: int
    end_token_ids: tuple[int, ...]
    outbox: Outbox
    sampler: SamplerState
    next_position: int
    repetition: RepetitionDetector
    text: AnswerText | None = None
    lookup: PromptLookup | None = None
    visual_cache: VisualCache | None = None
    deadline: float | None = None
    prefixes: PrefixCache | None = None
    criteria: tuple[Criterion, ...] = ()
    beams: BeamSearch | None = None
    embeds: torch.Tensor | None = None
    has_ids: bool = True
    past: KVCache | None = None
    keeps_caches: bool = False
    kept_caches: list[KVCache] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    keeps_patches: bool = False
    adapted: Qwen2_5_VLCausalModel | None = None
    salt: str = ""
    prompt_scores: PromptScores | None = None
    held_bytes: int = 0
    transient_bytes: int = 0
    stage_bytes: int = 0
    followers: list[Sequence] = field(default_factory=list)
    cache: KVCache | None = None
    num_computed: int = 0
    num_reused: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_prompt(self) -> int:
        return len(self.ids)

    def model_of(self, model: Qwen2_5_VLCausalModel) -> Qwen2_5_VLCausalModel:
        """What computes this sequence: the engine's model, or the same under an adapter."""
        return model if self.adapted is None else self.adapted

    @property
    def is_reading(self) -> bool:
        return self.num_computed < len(self.ids)

    def media_to_encode(self) -> list[Medium]:
        """Those that the prompt will still be read over and that are not encoded yet."""
        return [m for m in self.media if m.tokens is None and m.stop > self.num_computed]

    @property
    def is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def roll_back(self) -> None:
        """Cut the cache back to the tokens that count: all of prompt and answer but the last one,
        which is still to be read."""
        self.num_computed = min(self.num_computed, len(self.ids) + len(self.tokens) - 1)
        for cache in self.caches:
            length = min(self.num_computed, cache.length)
            cache.crop(length, self.position_of(length))

    @property
    def caches(self) -> list[KVCache]:
        """Its cache, if there is one, or those of its beams."""
        if self.beams is not None and self.beams.beams:
            return [beam.cache for beam in self.beams.beams]
        return [] if self.cache is None else [self.cache]

    def answer_caches(self) -> list[KVCache]:
        """The caches of its answers that are over, so that one can go on from them."""
        if self.beams is not None:
            caches = self.beams.caches_of_best()
        else:
            copies = self.options.num_return_sequences if self.options.is_greedy else 1
            caches = [*self.caches, *(self.caches[0].clone() for _ in range(copies - 1))]
        ends = ends_of(self.positions)
        for cache in caches:
            cache.ends = ends[: cache.length]
        return caches

    def position_of(self, index: int) -> int:
        """Where a token stands that follows `index` others: within the prompt, the largest of its
        three positions."""
        if index < len(self.ids):
            return int(self.positions[:, index].max())
        return self.next_position + index - len(self.ids)

    def hand_over(self) -> Sequence | None:
        """Leave the prompt, as far as it is read, to the first follower; None where nobody waits
        for it."""
        if not self.followers:
            return None
        heir, *others = self.followers
        self.followers = []
        heir.followers, heir.media, heir.cache = others, self.media, self.cache
        heir.num_computed = self.num_computed
        heir.num_reused, self.num_reused = self.num_reused, 0
        heir.transient_bytes, heir.stage_bytes = self.transient_bytes, self.stage_bytes
        heir.prefixes, self.cache = self.prefixes, None
        heir.prompt_scores = self.prompt_scores
        return heir

    def draft(self, limit: int) -> list[int]:
        """Tokens to draft after the last one: at most `limit`, and never past the answer's maximum
        length."""
        room = self.max_tokens - len(self.tokens) - 1
        return self.lookup.draft(min(limit, room)) if self.lookup else []

    def accept(self, choice: Choice) -> Chunk:
        """Append a token to the answer, and decide whether it is over."""
        token, scores = choice.token, self.scores
        if choice.scores is not None and self.criteria:
            scores = [*scores, choice.scores[None]]
        # NOTE the caller's functions first: an interrupted step must leave all as it was
        is_met = bool(self.criteria) and self.meets_criteria([*self.tokens, token], scores)
        self.tokens.append(token)
        self.scores = scores
        self.sampler.add(token)
        text, met_stop_string = self.text.push(token) if self.text else ("", False)
        met: str | int | None = self.text.stops.met if self.text else None
        is_end = token in self.end_token_ids
        if met_stop_string or is_end or is_met or self.sampler.is_over:
            self.finish_reason = "stop"
            met = token if is_end and not met_stop_string else met
        elif self.repetition.push(token):
            self.finish_reason = "repetition"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"
        elif self.is_late:
            self.finish_reason = "time"
        if self.text and self.finish_reason and not met_stop_string:
            text += self.text.finish()
        return Chunk(text, token, choice.logprob, self.index, self.finish_reason, met)

    def meets_criteria(self, tokens: list[int], scores: list[torch.Tensor]) -> bool:
        """Whether one of the caller's criteria ends an answer of these tokens."""
        prompt = self.ids if self.has_ids else []
        shown = scores if self.options.output_scores else None
        return bool(self.criteria) and is_met(self.criteria, [*prompt, *tokens], shown)

    def advance_beams(self, logits: torch.Tensor) -> list[Chunk]:
        """Take a step of the beam search by raw logits [rows, V]; the chunks of its answers, one
        answer after another, once it is over."""
        assert self.beams is not None
        assert self.cache is not None
        if not self.tokens:
            self.beams.begin(self.sampler, self.cache)
        self.beams.advance(logits, self.end_reason)
        best = self.beams.beams[0]
        self.tokens, self.cache, self.num_computed = best.tokens, best.cache, best.cache.length
        if not self.beams.answers:
            return []
        self.finish_reason = self.beams.answers[0].reason
        return [
            chunk
            for place, answer in enumerate(self.beams.answers)
            for chunk in self.chunks_of(answer, self.index + place)
        ]

    def end_reason(self, tokens: list[int]) -> FinishReason | None:
        """Why these tokens are a whole answer of a beam search; None where they are not. Endless
        repetition is no reason: it is not likely enough to be found."""
        text = None if self.text is None else self.text.fresh()
        met_stop_string = text is not None and any(text.push(token)[1] for token in tokens)
        if met_stop_string or tokens[-1] in self.end_token_ids:
            return "stop"
        if self.meets_criteria(tokens, self.scores):
            return "stop"
        if len(tokens) >= self.max_tokens:
            return "length"
        return "time" if self.is_late else None

    def chunks_of(self, answer: Hypothesis, index: int) -> list[Chunk]:
        """An answer that is whole already, as it would have been handed out."""
        text = None if self.text is None else self.text.fresh()
        chunks = []
        for place, (token, logprob) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
            is_last = place == len(answer.tokens) - 1
            shown, met_stop_string = text.push(token) if text else ("", False)
            if text and is_last and not met_stop_string:
                shown += text.finish()
            chunks.append(Chunk(shown, token, logprob, index, answer.reason if is_last else None))
        return chunks

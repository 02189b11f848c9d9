"""Beam search: of one prompt the answers with the highest sum of log-probabilities.

A sequence that searches has one cache for each of its K beams, all of which read a token in the
same step. From the K·V ways to go on, the best few are candidates. Those that end are whole
answers, of which the K best by length-normalised score are kept; the K best of the others are the
beams of the next step. The rules are those of transformers 5.23, number by number in float32, for
each prompt alone: others in the batch change nothing.

What a beam has in common with another is never copied twice. The first beam that continues one
takes over its cache; the next ones take caches of beams that nobody continues, and copy only what
follows the last token that both had in common.

NOTE An interrupted step is computed again, so a cache may hold fewer tokens than its beam has read,
never others: it is cut before its beam changes, and filled afterwards.

    K num_beams · V vocab_size · n tokens written
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np
import torch

from qwen25vl.engine import draws
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.sampling import (
    MAX_ROWS,
    OVERFLOW,
    SamplerState,
    final_scores,
    process_logits,
)
from qwen25vl.engine.stopping import FinishReason
from qwen25vl.errors import NumericsError
from qwen25vl.model.cache import KVCache

EndReason = Callable[[list[int]], FinishReason | None]
WORST = -1.0e9  # the score of what is no answer, as in transformers


@dataclass(eq=False)
class Beam:
    """An answer that goes on. logprobs: of its tokens under the raw logits; parents: which beam of
    its step each token was chosen from."""

    tokens: list[int]
    logprobs: list[float]
    parents: list[int]
    sampler: SamplerState
    cache: KVCache


@dataclass(frozen=True)
class Hypothesis:
    """A whole answer, with its score and the reason why it ended."""

    tokens: list[int]
    logprobs: list[float]
    parents: list[int]
    score: float
    reason: FinishReason


@dataclass(eq=False)
class BeamSearch:
    """The beams and whole answers of one sequence.

    running [K]: scores of the beams; found_scores [K]: of the whole answers. step_logits,
    step_scores: [K, V] of each step, where the options ask for them. answers: those to return, best
    first, once the search is over.
    """

    options: GenerationConfig
    max_tokens: int
    beams: list[Beam] = field(default_factory=list)
    running: torch.Tensor = field(init=False, repr=False)
    found: list[Hypothesis | None] = field(default_factory=list)
    found_scores: torch.Tensor = field(init=False, repr=False)
    step_logits: list[torch.Tensor] = field(default_factory=list)
    step_scores: list[torch.Tensor] = field(default_factory=list)
    answers: list[Hypothesis] = field(default_factory=list)

    def begin(self, sampler: SamplerState, cache: KVCache) -> None:
        """K equal beams behind the prompt. All but the first count for nothing, so that the first
        step does not find everything K times."""
        num_beams = self.options.num_beams
        self.beams = []  # of a first step that was interrupted
        caches = [cache, *(cache.clone() for _ in range(num_beams - 1))]
        self.found = [None] * num_beams
        self.running = torch.tensor(
            [0.0, *[WORST] * (num_beams - 1)], dtype=torch.float32, device="cpu"
        )
        self.found_scores = torch.full((num_beams,), WORST, dtype=torch.float32, device="cpu")
        self.step_logits, self.step_scores = [], []
        self.beams = [Beam([], [], [], sampler, cache) for cache in caches]

    def advance(self, logits: torch.Tensor, end_reason: EndReason) -> None:
        """Take a step by raw logits [K, V], or [1, V] of the prompt. end_reason: tells of an
        answer's tokens why they are a whole answer, or None. Raises NumericsError for logits that
        are not finite, and what processors and stopping criteria raise."""
        num_beams, options = self.options.num_beams, self.options
        log_probs = logits.float().log_softmax(dim=-1)
        if bool(log_probs[:, 0].isnan().any()):
            raise NumericsError(OVERFLOW)
        samplers = [beam.sampler for beam in self.beams][: len(logits)]
        scores = choose_scores(log_probs, samplers)
        scores, log_probs = scores.expand(num_beams, -1), log_probs.expand(num_beams, -1)
        num_steps = len(self.beams[0].tokens)  # an interrupted one is taken again
        if options.output_logits:
            self.step_logits[num_steps:] = [logits.float().expand(num_beams, -1)]
        if options.output_scores:
            self.step_scores[num_steps:] = [scores]

        totals = (scores + self.running.to(scores.device)[:, None]).flatten()
        size = scores.shape[1]
        num_kept = min(max(2, 1 + len(options.eos_token_id)) * num_beams, len(totals))
        if options.is_greedy:
            best, index = totals.topk(num_kept)
        else:
            index = draw_several(totals, num_kept, self.beams[0].sampler)
            best = totals[index]
        best, places = best.cpu(), index.tolist()
        logprobs = log_probs[index // size, index % size].tolist()
        ways = [
            self.extend(place // size, place % size, logprob)
            for place, logprob in zip(places, logprobs, strict=True)
        ]
        reasons = [end_reason(way.tokens) for way in ways]
        self.settle(best, ways, reasons)

    def extend(self, parent: int, token: int, logprob: float) -> Beam:
        """A beam with one more token, still without a cache and a sampler of its own."""
        beam = self.beams[parent]
        return Beam(
            [*beam.tokens, token],
            [*beam.logprobs, logprob],
            [*beam.parents, parent],
            beam.sampler,
            beam.cache,
        )

    def settle(
        self, best: torch.Tensor, ways: list[Beam], reasons: Items[FinishReason | None]
    ) -> None:
        """From the candidates, best first, to whole answers and to the beams of the next step."""
        num_beams, options = self.options.num_beams, self.options
        num_written = len(ways[0].tokens)
        ends = torch.tensor(
            [reason is not None for reason in reasons], dtype=torch.bool, device="cpu"
        )
        counts = ends & (torch.arange(len(ways), dtype=torch.int64, device="cpu") < num_beams)
        running, order = (best + ends * WORST).topk(num_beams)

        normed = best / num_written**options.length_penalty + ~counts * WORST
        merged = torch.cat([self.found_scores, normed])
        found_scores, kept = merged.topk(num_beams)
        pool = [
            *self.found,
            *(
                Hypothesis(way.tokens, way.logprobs, way.parents, float(score), reason)
                if reason and place < num_beams
                else None
                for place, (way, score, reason) in enumerate(
                    zip(ways, normed, reasons, strict=True)
                )
            ),
        ]
        found = [pool[i] for i in kept.tolist()]
        is_found = torch.tensor([one is not None for one in found], dtype=torch.bool, device="cpu")

        is_hopeful = options.early_stopping == "never" and options.length_penalty > 0
        longest = self.max_tokens if is_hopeful else num_written
        possible = running[:1] / longest**options.length_penalty
        worst = torch.where(is_found, found_scores.min(), WORST)
        can_improve = bool((possible > worst).any())
        is_full = options.early_stopping is True and bool(is_found.all())
        is_over = not can_improve or is_full or bool(ends.all())

        chosen = [ways[i] for i in order.tolist()]
        moves = self.hand_out_caches(chosen)
        # NOTE one statement: an interruption finds all of them changed, or none
        self.beams, self.running, self.found, self.found_scores = (
            chosen,
            running,
            found,
            found_scores,
        )
        for source, cache, start in moves:
            copy_tail(cache, source, start)
        self.answers = self.best() if is_over else []

    def hand_out_caches(self, chosen: list[Beam]) -> list[tuple[KVCache, KVCache, int]]:
        """Give each beam of the next step a cache of what its parent has read, cut to where both
        are equal. Returns (source, cache, start) where the rest is still to be copied."""
        before = self.beams
        num_read = before[0].cache.length
        taken: set[int] = set()
        moves: list[tuple[KVCache, KVCache, int]] = []
        unused = [i for i in range(len(before)) if i not in {way.parents[-1] for way in chosen}]
        for way in chosen:
            parent = way.parents[-1]
            if parent in taken:
                other = before[unused.pop()]
                same = common_length(other.tokens, before[parent].tokens)
                start = num_read - len(other.tokens) + same
                moves.append((way.cache, other.cache, start))
                way.cache = other.cache
            taken.add(parent)
            way.sampler = way.sampler.fork(way.tokens[-1])
        for source, cache, start in moves:
            cache.crop(start, source.next_position - (source.length - start))
        return moves

    def best(self) -> list[Hypothesis]:
        """As many answers as are asked for, best first; beams that go on where there are too few
        whole ones."""
        whole = [one for one in self.found if one is not None]
        rest = [
            Hypothesis(beam.tokens, beam.logprobs, beam.parents, float(score), "length")
            for beam, score in zip(self.beams, self.running, strict=True)
        ]
        return [*whole, *rest][: self.options.num_return_sequences]

    def caches_of_best(self) -> list[KVCache]:
        """A cache for each answer that is returned, of the beam that has most in common with it, up
        to where they differ."""
        left, caches = list(self.beams), []
        for answer in self.answers:
            shared = [common_length(beam.tokens, answer.tokens) for beam in left]
            beam = left.pop(shared.index(max(shared)))
            cache = beam.cache
            num_prompt = cache.length - len(beam.tokens) + 1  # a beam's last token is not read
            length = min(cache.length, num_prompt + max(shared))
            cache.crop(length, cache.next_position - (cache.length - length))
            caches.append(cache)
        return caches


def choose_scores(log_probs: torch.Tensor, samplers: list[SamplerState]) -> torch.Tensor:
    """Processed log-probabilities [n, V]; where sampling cuts tokens off, they are −inf."""
    parts = []
    for start in range(0, len(samplers), MAX_ROWS):
        some = samplers[start : start + MAX_ROWS]
        rows = process_logits(log_probs[start : start + MAX_ROWS], some)
        for row, sampler in zip(rows, some, strict=True):
            parts.append(final_scores(row, sampler.options))
    return torch.stack(parts)


def draw_several(totals: torch.Tensor, num_drawn: int, sampler: SamplerState) -> torch.Tensor:
    """Places in a row of scores, drawn without replacement by softmax: the first of a race (see
    candidates.py)."""
    scores = totals.double().cpu().numpy()
    ids = np.flatnonzero(scores > -np.inf)
    noise = -np.log(draws.uniforms(sampler.key, sampler.num_written, ids))
    drawn = ids[np.argsort(np.log(noise) - scores[ids], kind="stable")]
    excluded = np.flatnonzero(scores == -np.inf)  # where less is left than is to be drawn
    return torch.from_numpy(np.concatenate([drawn, excluded])[:num_drawn]).to(totals.device)


def common_length(one: Items[int], other: Items[int]) -> int:
    """How many first tokens are equal."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def copy_tail(cache: KVCache, source: KVCache, start: int) -> None:
    """Make a cache, which has the first `start` tokens already, equal to another one."""
    stop = source.length
    cache.storage[:, :, :, start:stop] = source.storage[:, :, :, start:stop]
    cache.length, cache.next_position = stop, source.next_position

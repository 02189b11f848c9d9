"""Top-k, top-p, min-p and the draw, for one row, among the few tokens that matter.

A vocabulary has 152 thousand tokens, and in a typical row all but a few hundred of them lie so far
below the best one that together they hardly ever win. Those within `REACH` of the best are the
candidates: finding them takes one pass over the row, and everything else is done on them alone.
Nothing is approximated. Where the candidates cannot decide, because top-k or top-p reaches further,
all tokens become candidates. Where nothing is cut off, one random number first chooses between the
candidates and the rest, by their exact shares.

    s scores · p = exp(s − max s), not normalised · M = Σ p over the whole row
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qwen25vl.engine import draws
from qwen25vl.engine.options import GenerationConfig

REACH = 10.0  # a token this far below the best one has 1/22026 of its probability


@dataclass(frozen=True)
class Row:
    """Scores [V] in float32; best: the highest."""

    scores: torch.Tensor
    best: float

    def mass(self) -> float:
        """M, summed in float64."""
        if self.scores.is_cpu:
            return float(np.exp(self.scores.numpy() - np.float32(self.best)).sum(dtype=np.float64))
        return float((self.scores - self.best).exp().sum(dtype=torch.float64))


@dataclass(frozen=True)
class Candidates:
    """Tokens that are not excluded, with their scores and p, by id; `is_all`: whether they are all
    of the row's."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    weights: NDArray[np.float64]
    is_all: bool

    def keep(self, lowest: float) -> Candidates:
        """Those with at least this score: ties with the lowest stay."""
        where = self.scores >= lowest
        return Candidates(self.ids[where], self.scores[where], self.weights[where], self.is_all)


def find_candidates(row: Row, reach: float) -> Candidates:
    lowest = row.best - reach
    if row.scores.is_cpu:  # numpy finds them in a third of torch's time
        numbers = row.scores.numpy()
        ids = np.flatnonzero(numbers >= lowest if reach < math.inf else numbers > -math.inf)
        scores = numbers[ids]
    else:
        where = row.scores >= lowest if reach < math.inf else row.scores > -math.inf
        index = where.nonzero()[:, 0]
        ids, scores = index.cpu().numpy(), row.scores[index].cpu().numpy()
    weights = np.exp(scores.astype(np.float64) - row.best)
    return Candidates(ids, scores, weights, reach == math.inf)


def draw(row: Row, options: GenerationConfig, key: int, num_written: int) -> int:
    """One token of the row, by softmax over what the options keep.

    A draw is a race: argmax p / e with e ~ Exp(1) gives a token with probability p / Σp. A rounding
    difference (another machine) changes it only where two tokens are nearly tied; inverting the
    cumulative distribution would add up the differences of all tokens.
    """
    kept = keep_tokens(row, options)
    if not kept.is_all and not is_cut(options):
        rest = 1 - kept.weights.sum() / row.mass()
        if draws.uniform(key, num_written, draws.GROUP_ID) < rest:
            everything = find_candidates(row, math.inf)
            is_rare = ~np.isin(everything.ids, kept.ids, assume_unique=True)
            if is_rare.any():  # the rest may be a rounding difference
                kept = Candidates(
                    everything.ids[is_rare],
                    everything.scores[is_rare],
                    everything.weights[is_rare],
                    True,
                )
    noise = -np.log(draws.uniforms(key, num_written, kept.ids))
    return int(kept.ids[np.argmax(kept.weights / noise)])


def is_cut(options: GenerationConfig) -> bool:
    """Whether the options exclude unlikely tokens."""
    return bool(options.top_k or options.top_p < 1 or options.min_p)


def keep_tokens(row: Row, options: GenerationConfig) -> Candidates:
    """What top-k, top-p and min-p keep of a row, in this order; without them, the candidates."""
    for reach in (REACH, 2 * REACH):
        kept = cut(find_candidates(row, reach), row, options, reach)
        if kept is not None:
            return kept
    kept = cut(find_candidates(row, math.inf), row, options, math.inf)
    assert kept is not None  # all tokens decide everything
    return kept


def cut(tokens: Candidates, row: Row, options: GenerationConfig, reach: float) -> Candidates | None:
    """What the options keep of the tokens within `reach`, or None where that goes below them."""
    if options.top_k:
        if len(tokens.ids) < options.top_k and not tokens.is_all:
            return None
        if options.top_k < len(tokens.ids):
            tokens = tokens.keep(float(np.partition(tokens.scores, -options.top_k)[-options.top_k]))
    if options.top_p < 1:
        is_whole = options.top_k or tokens.is_all
        mass = float(tokens.weights.sum()) if is_whole else row.mass()
        lowest = find_nucleus(tokens, options.top_p * mass)
        if lowest is None:
            return None
        tokens = tokens.keep(lowest)
    if options.min_p:
        distance = math.log(options.min_p)
        if -distance > reach:
            return None
        tokens = tokens.keep(float(np.float32(row.best) + np.float32(distance)))
    return tokens


def find_nucleus(tokens: Candidates, wanted: float) -> float | None:
    """The lowest score of the fewest best tokens whose p add up to `wanted`, at least one; None
    where these tokens do not reach it and others may.

    Which ties transformers keeps depends on the order of its sort; here ties with the last one
    stay.
    """
    order = np.argsort(-tokens.scores, kind="stable")
    before = np.cumsum(tokens.weights[order]) - tokens.weights[order]
    num_kept = max(1, int((before < wanted).sum()))
    if num_kept == len(order) and not tokens.is_all and tokens.weights.sum() < wanted:
        return None
    return float(tokens.scores[order[num_kept - 1]])

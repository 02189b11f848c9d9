"""What one step computes: some rows of each sequence that takes part, in one call of the model.

N rows of all sequences · D hidden_size · V vocab_size
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch

from qwen25vl.engine.beams import Beam
from qwen25vl.engine.sequence import Sequence
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel


@dataclass(frozen=True)
class Rows:
    """Tokens of one sequence that a step reads: a piece of its prompt, or what its answer has
    beyond the cache (one token), and those drafted after it.

    start: tokens in the cache before. num_logits: how many of the rows, from the end, tokens are
    chosen from. beam: whose cache it is in a beam search.
    """

    sequence: Sequence
    start: int
    tokens: list[int]
    num_logits: int
    drafted: list[int] = field(default_factory=list)
    beam: Beam | None = None

    @property
    def cache(self) -> KVCache:
        cache = self.beam.cache if self.beam is not None else self.sequence.cache
        assert cache is not None  # it was opened when the sequence was admitted
        return cache

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


def writing_rows(sequence: Sequence, max_drafted: int) -> list[Rows]:
    """The last token of an answer, and what is drafted after it; of a beam search the last token of
    each beam."""
    if sequence.beams is not None:
        return [beam_rows(sequence, beam) for beam in sequence.beams.beams]
    drafted = sequence.draft(max_drafted)
    start = sequence.num_computed
    tokens = [*sequence.tokens[start - sequence.num_prompt :], *drafted]
    return [Rows(sequence, start, tokens, 1 + len(drafted), drafted)]


def beam_rows(sequence: Sequence, beam: Beam) -> Rows:
    start = beam.cache.length
    return Rows(sequence, start, beam.tokens[start - sequence.num_prompt :], 1, beam=beam)


def reading_rows(sequence: Sequence, max_tokens: int) -> Rows | None:
    """The next tokens of a prompt; None where there is a medium among them that is not encoded."""
    start = sequence.num_computed
    stop = min(start + max_tokens, sequence.num_prompt)
    for medium in sequence.media:
        if medium.tokens is None and medium.start < stop and medium.stop > start:
            return None
    return Rows(sequence, start, sequence.ids[start:stop], int(stop == sequence.num_prompt))


def run_rows(model: Qwen2_5_VLCausalModel, rows: Items[Rows]) -> torch.Tensor:
    """Raw logits [n, V] of all rows that tokens are chosen from, by one call of the language model
    for each adapter among them. Caches grow; nothing else of a sequence changes."""
    groups: dict[int, list[int]] = {}
    for place, one in enumerate(rows):
        groups.setdefault(id(one.sequence.adapted), []).append(place)
    parts: dict[int, torch.Tensor] = {}
    for places in groups.values():
        alike = [rows[place] for place in places]
        logits = run_alike(alike[0].sequence.model_of(model), alike)
        if len(groups) == 1:
            return logits
        split = logits.split([one.num_logits for one in alike])
        parts |= dict(zip(places, split, strict=True))
    return torch.cat([parts[place] for place in range(len(rows))])


def run_alike(model: Qwen2_5_VLCausalModel, rows: Items[Rows]) -> torch.Tensor:
    """One call of the language model."""
    core = model.model
    device = model.device
    ids = torch.tensor(
        [token for one in rows for token in one.tokens], dtype=torch.int64, device=device
    )
    embeds = core.language_model.embed_tokens(ids)  # a written slot token is text
    positions = torch.cat([positions_of(one) for one in rows], dim=1)
    lengths = [len(one.tokens) for one in rows]
    for one, part in zip(rows, embeds.split(lengths), strict=True):
        place_embeds(one, part)
        place_media(one, part)
    caches = [one.cache for one in rows]
    hidden = core.language_model.run(embeds, positions.to(device), lengths, caches)
    kept = []
    for one, part in zip(rows, hidden.split(lengths), strict=True):
        scores = one.sequence.prompt_scores
        if scores is not None and one.start < one.sequence.num_prompt:
            scores.read(model, one.start, part)
        if one.num_logits:
            kept.append(part[len(part) - one.num_logits :])
    if not kept:
        return hidden.new_empty(0, model.config.text_config.vocab_size)
    last = torch.cat(kept) if len(kept) > 1 else kept[0]
    return model.compute_logits(last)


def positions_of(rows: Rows) -> torch.Tensor:
    """[3, rows]: from the prompt's positions, or counted on behind them."""
    sequence = rows.sequence
    if rows.stop <= sequence.num_prompt:
        return sequence.positions[:, rows.start : rows.stop]
    first = sequence.position_of(rows.start)
    return torch.arange(first, first + len(rows.tokens), device="cpu").expand(3, -1)


def place_embeds(rows: Rows, embeds: torch.Tensor) -> None:
    """Put the embeddings that the caller gave for a prompt in place of its tokens' [rows, D]."""
    given = rows.sequence.embeds
    if given is not None and rows.start < rows.sequence.num_prompt:
        embeds.copy_(given[rows.start : rows.stop])


def place_media(rows: Rows, embeds: torch.Tensor) -> None:
    """Put visual tokens into their slots among the embeddings [rows, D], in place."""
    for medium in rows.sequence.media:
        first, last = max(medium.start, rows.start), min(medium.stop, rows.stop)
        if first < last and medium.tokens is not None:
            part = medium.tokens[first - medium.start : last - medium.start]
            embeds[first - rows.start : last - rows.start] = part.to(embeds.dtype)

"""From the logits of a step to chunks: choose tokens, append them, hand them out."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from qwen25vl.engine.sampling import Choice, SamplerState, choose_tokens
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.step import Rows

Faults = dict[Sequence, Exception]


def write_tokens(step: Items[tuple[Rows, torch.Tensor]]) -> Faults:
    """Write the tokens that a step gives: one for each sequence, and one more for every drafted
    token that was chosen itself. Each is chosen from the row that read the tokens before it.

    step: rows of sequences with their raw logits [num_logits, V]. Returns the errors of sequences
    that cannot go on; all others are complete up to the next step.
    """
    faults: Faults = search(step)
    plain = [(one, part) for one, part in step if one.num_logits and one.sequence.beams is None]
    rows, parts = [one for one, _ in plain], [part for _, part in plain]
    before = [len(one.sequence.tokens) for one in rows]
    writing = list(range(len(rows)))
    place = 0
    while writing:
        stacked = torch.stack([parts[i][place] for i in writing]).float()
        choices = choose_each(stacked, [rows[i].sequence.sampler for i in writing])
        following = []
        for i, row, choice in zip(writing, stacked, choices, strict=True):
            sequence, drafted = rows[i].sequence, rows[i].drafted
            if isinstance(choice, Exception):
                faults[sequence] = choice
                continue
            try:
                chunk = sequence.accept(choice)
                sequence.outbox.put(chunk, row, choice.scores)
                sequence.outbox.grow(len(sequence.tokens), sequence.options.max_new_tokens)
            except Exception as error:
                faults[sequence] = error
                continue
            if not chunk.finish_reason and drafted[place : place + 1] == [chunk.token]:
                following.append(i)
        writing = following
        place += 1
    for one, length in zip(rows, before, strict=True):
        try:
            settle(one, len(one.sequence.tokens) - length)
        except Exception as error:
            faults[one.sequence] = error
    return faults


def search(step: Items[tuple[Rows, torch.Tensor]]) -> Faults:
    """Take a step of each beam search, by the rows of all its beams; returns the errors of those
    that cannot go on."""
    faults: Faults = {}
    parts: dict[Sequence, list[torch.Tensor]] = {}
    for one, part in step:
        if one.num_logits and one.sequence.beams is not None:
            parts.setdefault(one.sequence, []).append(part)
    for sequence, logits in parts.items():
        try:
            chunks = sequence.advance_beams(torch.cat(logits))
            for chunk in chunks:
                sequence.outbox.put(chunk, logits[0])
            sequence.outbox.grow(len(sequence.tokens), sequence.options.max_new_tokens)
        except Exception as error:
            faults[sequence] = error
    return faults


def choose_each(logits: torch.Tensor, states: Items[SamplerState]) -> Items[Choice | Exception]:
    """`choose_tokens`, in which an error of one row is that row's result."""
    try:
        return choose_tokens(logits, states)
    except Exception as error:
        if len(states) == 1:
            return [error]
        rows = zip(logits, states, strict=True)
        return [choose_each(row[None], [state])[0] for row, state in rows]


def settle(rows: Rows, num_written: int) -> None:
    """Count the rows whose tokens stand, and roll the cache back past rejected drafts."""
    sequence = rows.sequence
    if rows.drafted:
        sequence.num_computed = rows.stop - len(rows.drafted) + max(0, num_written - 1)
    sequence.roll_back()
    if sequence.lookup and num_written:
        sequence.lookup.learn(sequence.tokens[-num_written:], len(rows.drafted))

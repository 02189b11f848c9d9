"""How likely each token of an answer was, from the scores that `generate` returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen25vl.errors import UsageError


def transition_scores(
    sequences: torch.Tensor,
    scores: Sequence[torch.Tensor],
    beam_indices: torch.Tensor | None = None,
    normalize_logits: bool = False,
) -> torch.Tensor:
    """The score of each written token [S, new].

    sequences [S, L + new], scores: [rows, V] for each new token, beam_indices [S, new]: the row of
    each token, −1 behind an answer's end, where the score is 0; by default the answer's own row.
    normalize_logits: log-probabilities in place of scores. Raises UsageError without scores.
    """
    if not scores:
        raise UsageError("there are no scores: generate with output_scores=True")
    steps = torch.stack(tuple(scores))  # [new, rows, V]
    if normalize_logits:
        steps = steps.log_softmax(dim=-1)
    if beam_indices is None:
        beam_indices = torch.arange(len(sequences), device=steps.device)[:, None]
        beam_indices = beam_indices.expand(-1, len(steps))
    num_new = int((beam_indices >= 0).sum(dim=1).max())
    rows = beam_indices[:, :num_new].to(steps.device)
    tokens = sequences[:, sequences.shape[1] - num_new :].to(steps.device)
    is_written = rows >= 0
    places = torch.arange(num_new, device=steps.device).expand_as(rows)
    found = steps[places, rows.clamp(min=0), tokens]
    return found.masked_fill(~is_written, 0.0)

"""Attention over packed rows, segment by segment: softmax(q·kᵀ/√d)·v, each head on its own.

Two shapes occur. In the vision encoder every row of a segment sees the whole segment; segments of
equal length go through one batched call. In the language model a row sees the rows before it and
itself; new rows may follow rows that lie in a cache. "sdpa" is the compiled kernel where it serves
and torch's fused one elsewhere; "eager" spells the equation out and is the twin in the tests;
"flash_attention_2" is the flash-attn package on a GPU.

    N packed rows · H heads, K key/value heads, G = H/K query heads per key head · d head size
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F  # noqa: N812

from qwen25vl.kernels import ops
from qwen25vl.model.windows import Run

Implementation = Literal["sdpa", "eager", "flash_attention_2"]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor]
Weights = list[torch.Tensor]  # after softmax, [H, rows, M] of each sequence


def attend_segments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    runs: Sequence[Run],
    implementation: Implementation,
) -> torch.Tensor:
    """Every row attends to its whole segment: q, k, v [N, H, d] -> [N, H, d]."""
    if implementation == "sdpa":
        lengths = [run.length for run in runs for _ in range(run.count)]
        keys, values = (x.transpose(0, 1).split(lengths, dim=1) for x in (k, v))
        if (rows := ops.attend(q, lengths, keys, values, causal=False)) is not None:
            return rows
    attend = IMPLEMENTATIONS[implementation]
    sizes = [run.count * run.length for run in runs]
    # NOTE split, not slices: the gradient of each slice would fill a tensor of the whole's size
    mixed = []
    for run, *parts in zip(runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        qi, ki, vi = (part.unflatten(0, (run.count, run.length)).transpose(1, 2) for part in parts)
        mixed.append(
            attend(qi, ki, vi, False).transpose(1, 2).flatten(0, 1)
        )  # [count, H, length, d] -> [N', H, d]
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


def attend_in_parts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    runs: Sequence[Run],
    implementation: Implementation,
    rows: int,
) -> Generator[None, None, torch.Tensor]:
    """`attend_segments` with the same bits, about `rows` rows between two yields: a row's sums do
    not depend on the rows beside it. Where no kernel serves, the whole is one part."""
    attended = ops.empty_like(q)
    for pieces in cut_segments(runs, rows):
        part = slice(pieces[0].start, pieces[-1].stop)
        keys, values = ([x[p.first : p.last].transpose(0, 1) for p in pieces] for x in (k, v))
        lengths = [piece.stop - piece.start for piece in pieces]
        is_served = implementation == "sdpa"
        result = ops.attend(q[part], lengths, keys, values, causal=False) if is_served else None
        if result is None:
            return attend_segments(q, k, v, runs, implementation)
        attended[part] = result
        yield
    return attended


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a segment that spans the rows `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int


def cut_segments(runs: Sequence[Run], rows: int) -> Iterator[list[Piece]]:
    """Consecutive pieces of segments, about `rows` rows in each list; segments longer than that are
    cut, shorter ones stay whole."""
    pieces: list[Piece] = []
    for run in runs:
        for first in range(run.start, run.stop, run.length):
            last = first + run.length
            for start in range(first, last, rows):
                pieces.append(Piece(start, min(start + rows, last), first, last))
                if pieces[-1].stop - pieces[0].start >= rows:
                    yield pieces
                    pieces = []
    if pieces:
        yield pieces


def attend_causally(
    q: torch.Tensor,
    lengths: Sequence[int],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    implementation: Implementation,
    watch: Callable[[Weights], Weights] | None = None,
) -> torch.Tensor:
    """The last tokens of each sequence attend to those before and themselves.

    q [N, H, d] holds `lengths` rows of every sequence, keys and values [K, M, d] all tokens of one
    -> [N, H, d]. `watch` gets the weights, and what it returns is used in their place; then the
    equation is spelled out, whatever the implementation.
    """
    if watch is not None:
        parts = zip(q.split(list(lengths)), keys, strict=True)
        weights = watch([eager_weights(qi.transpose(0, 1), k, True) for qi, k in parts])
        pairs = zip(weights, values, strict=True)
        return torch.cat([(w @ repeat_heads(v, w)).transpose(0, 1) for w, v in pairs])
    if (
        implementation == "sdpa"
        and (mixed := ops.attend(q, lengths, keys, values, causal=True)) is not None
    ):
        return mixed
    rows = [
        attend_to_past(*one, implementation)
        for one in zip(q.split(list(lengths)), keys, values, strict=True)
    ]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def attend_to_past(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, implementation: Implementation
) -> torch.Tensor:
    """One sequence of `attend_causally`.

    A single row needs no mask, so the G query heads that share a key head become G rows of one
    query: each key is read once, and the call is several times faster than repeating the keys.
    """
    num_rows, num_heads, _ = q.shape
    attend = IMPLEMENTATIONS[implementation]
    if num_rows == 1:
        folded = q.view(1, len(k), num_heads // len(k), -1)
        return attend(folded, k[None], v[None], False).reshape(q.shape)
    return attend(q.transpose(0, 1)[None], k[None], v[None], True)[0].transpose(0, 1)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """q [B, H, L, d], k, v [B, K, M, d] -> [B, H, L, d] by torch's kernel."""
    num_rows, num_keys = q.shape[2], k.shape[2]
    mask = causal_mask(num_rows, num_keys, q.device) if causal and num_rows < num_keys else None
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=causal and mask is None,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """The same as the equation says, softmax in float32."""
    return torch.matmul(eager_weights(q, k, causal), repeat_heads(v, q))


def eager_weights(q: torch.Tensor, k: torch.Tensor, causal: bool) -> torch.Tensor:
    """softmax(q·kᵀ/√d): q [..., H, L, d], k [..., K, M, d] -> [..., H, L, M]"""
    scores = q @ repeat_heads(k, q).mT * q.shape[-1] ** -0.5
    if causal:
        mask = causal_mask(q.shape[-2], k.shape[-2], q.device)
        scores = scores.masked_fill(~mask, float("-inf"))
    weights: torch.Tensor = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return weights


def repeat_heads(x: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Keys or values [..., K, M, d] once for each head of the queries."""
    return x.repeat_interleave(queries.shape[-3] // x.shape[-3], dim=-3)


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """The same by flash-attn, which wants [B, L, H, d] and aligns its causal mask to the last row
    as we do."""
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    mixed = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=causal)
    return mixed.transpose(1, 2)  # type: ignore[no-any-return]


def causal_mask(num_rows: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """True where row i of the last `num_rows` may see key j. By order of tokens, never by position
    id."""
    return torch.ones(num_rows, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_rows)


IMPLEMENTATIONS: dict[str, Attend] = {"sdpa": sdpa, "eager": eager, "flash_attention_2": flash}

"""What an adapter changes in a layer: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353).

    w' = w + B·A                              the scale α/r is part of B
    w' = (w + B·A) ∘ m / ‖w + B·A‖            DoRA: each row gets the length m

An embedding is stored transposed, one row for each token. Its low-rank part is (B·A)ᵀ, and DoRA's
lengths are those of its columns. Everything here is float32.

    O outputs, the rows of a weight · I inputs, its columns · r rank
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ELEMENTS_AT_A_TIME = 2**22


@dataclass
class LayerChange:
    """What an adapter has for one layer.

    down [r, I], up [O, r]: A and B, of an embedding [r, V] and [D, r]; the scale is part of `up`.
    magnitude: DoRA's m, [O], of an embedding [D]. added_bias [O]: on top of the layer's own.
    weight, bias: in place of the layer's own, in the type of the file. tokens, rows [n, D]: new
    rows of an embedding or head, in place of those of these tokens; the low-rank part is added to
    them too.
    """

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    added_bias: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    tokens: tuple[int, ...] = ()
    rows: torch.Tensor | None = None
    is_embedding: bool = False

    @property
    def has_low_rank(self) -> bool:
        return self.down is not None

    def low_rank_rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of B·A, or of its transpose for an embedding, flat."""
        assert self.down is not None
        assert self.up is not None
        if self.is_embedding:
            return self.down[:, start:stop].T @ self.up.T
        return self.up[start:stop] @ self.down


def row_blocks(weight: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Some rows of a weight at a time, flat, with the number of the first."""
    rows = weight.detach().flatten(1)
    at_once = max(1, ELEMENTS_AT_A_TIME // rows.shape[1])
    return [(at_once * n, block) for n, block in enumerate(rows.split(at_once))]


def dora_factor(weight: torch.Tensor, change: LayerChange) -> torch.Tensor:
    """m / ‖w + B·A‖: of each row [O], or of each column of an embedding [D]."""
    assert change.magnitude is not None
    squares = []
    for start, block in row_blocks(weight):
        changed = block.float() + change.low_rank_rows(start, start + len(block)).to(block.device)
        squares.append(changed.square_().sum(0 if change.is_embedding else 1))
    total = torch.stack(squares).sum(0) if change.is_embedding else torch.cat(squares)
    return change.magnitude.to(total.device) / total.sqrt()


def merged_weight(weight: torch.Tensor, change: LayerChange) -> torch.Tensor:
    """w' of a layer's w, in the shape and type of w."""
    if change.weight is not None:
        weight = change.weight.to(weight.device, weight.dtype)
    merged = weight.detach().clone()
    if change.rows is not None:
        merged[list(change.tokens)] = change.rows.to(merged.device, merged.dtype)
    if change.has_low_rank:
        factor = None if change.magnitude is None else dora_factor(merged, change)
        flat = merged.flatten(1)
        for start, block in row_blocks(merged):
            part = slice(start, start + len(block))
            changed = block.float() + change.low_rank_rows(part.start, part.stop).to(block.device)
            if factor is not None:
                changed *= factor if change.is_embedding else factor[part, None]
            flat[part] = changed.to(flat.dtype)
    return merged


def merged_bias(bias: torch.Tensor | None, change: LayerChange) -> torch.Tensor | None:
    """The bias of a changed layer, in float32 where it is changed."""
    own = bias if change.bias is None else change.bias
    if change.added_bias is None:
        return own
    return change.added_bias if own is None else own.float() + change.added_bias.to(own.device)

"""Tensors that are computed from a model's weights and kept beside them.

Whoever changes a weight must not get answers from what was computed before. torch counts changes in
place (`_version`), but not those through `.data`; and a new tensor may lie where an old one did. So
the sources are kept, with their counters and a sample of their numbers, and compared at every use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

NUM_SAMPLES = 1024  # of each source: 6 µs to compare, 0.2 ms where no cache holds them
BITS_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Derived:
    """Tensors derived from others; computed at the first use, and anew when their sources have
    changed.

    A change through `.data` is noticed where it meets one of the sampled numbers, as a change of
    the whole tensor does. Copies and pickles hold nothing and compute at their own first use.
    """

    def __init__(self) -> None:
        self.kept: tuple[list[Source], tuple[torch.Tensor, ...]] | None = None

    def get(
        self, compute: Callable[..., tuple[torch.Tensor, ...]], *sources: torch.Tensor
    ) -> tuple[torch.Tensor, ...] | None:
        """compute(*sources), or None where torch cannot tell whether the sources change.

        compute must be the same function at every call.
        """
        if not all(map(is_tracked, sources)):
            self.kept = None
            return None
        if (kept := self.kept) is not None:
            known, tensors = kept
            if all(old.is_still(new) for old, new in zip(known, sources, strict=True)):
                return tensors
        self.kept = kept = None  # first, so that old and new never take memory at once
        with torch.no_grad():
            tensors = compute(*(source.detach() for source in sources))
        self.kept = [Source(tensor) for tensor in sources], tensors
        return tensors

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        return Derived, ()


class Source:
    """A tensor as it was. The alias keeps its memory, so that no other tensor can lie at the same
    address."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.alias, self.version, self.sample = (
            tensor.detach(),
            tensor._version,
            sample(tensor).clone(),
        )

    def is_still(self, tensor: torch.Tensor) -> bool:
        """Whether this is the same memory with the same numbers."""
        kind = tensor.data_ptr(), tensor.shape, tensor.dtype
        same_place = kind == (self.alias.data_ptr(), self.alias.shape, self.alias.dtype)
        return (
            same_place
            and tensor._version == self.version
            and torch.equal(sample(tensor), self.sample)
        )


def is_tracked(tensor: torch.Tensor) -> bool:
    """Whether changes can be noticed: tensors made in inference mode have no counter."""
    return not tensor.is_inference() and tensor.is_contiguous() and not tensor.is_meta


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of some numbers, a view; the odd distance takes them from different columns."""
    bits = tensor.detach().view(-1).view(BITS_OF_SIZE[tensor.element_size()])
    return bits[:: tensor.numel() // NUM_SAMPLES | 1]

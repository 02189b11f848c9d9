"""Which tokens a sequence has, counted as they come, for the penalties on them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch


class Occurrences:
    """Distinct token ids with their counts. Adding a token takes the same time however many there
    are."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self.places: dict[int, int] = {}
        self.ids = np.zeros(64, dtype=np.int64)
        self.counts = np.zeros(64, dtype=np.float32)
        for token_id in token_ids:
            self.add(token_id)

    def __len__(self) -> int:
        return len(self.places)

    def add(self, token_id: int) -> None:
        place = self.places.setdefault(token_id, len(self.places))
        if place == len(self.ids):
            self.ids = np.concatenate([self.ids, np.zeros_like(self.ids)])
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
        self.ids[place] = token_id
        self.counts[place] += 1

    def copy(self) -> Occurrences:
        twin = Occurrences()
        twin.places, twin.ids, twin.counts = dict(self.places), self.ids.copy(), self.counts.copy()
        return twin

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids int64, counts float32): views, which the next `add` may change."""
        size = len(self.places)
        return torch.from_numpy(self.ids[:size]), torch.from_numpy(self.counts[:size])

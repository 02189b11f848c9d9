"""What a forward pass returns: readable by attribute, by key and by place, as in transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qwen25vl.ecosystem.batch_cache import BatchCache
from qwen25vl.inputs import brief


@dataclass(eq=False)
class Output(Mapping[str, Any]):
    """Fields that are None are absent from the mapping and from `to_tuple`."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self[name] for name in self)

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        value = vars(self).get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in vars(self).items() if value is not None)

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={brief(self[name])}" for name in self)
        return f"{type(self).__name__}({shown})"


@dataclass(eq=False, repr=False)
class TextOutput(Output):
    """last_hidden_state [B, L, D]; hidden_states: the embeddings, each layer's result, the last one
    normed; attentions: [B, H, L, tokens so far] of each layer; rope_deltas [B, 1]: next position −
    tokens so far."""

    last_hidden_state: torch.Tensor
    past_key_values: BatchCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    rope_deltas: torch.Tensor | None = None


@dataclass(eq=False, repr=False)
class CausalOutput(Output):
    """loss: mean cross-entropy or None; logits [B, L or logits_to_keep, V]; the others as in
    TextOutput."""

    loss: torch.Tensor | None
    logits: torch.Tensor
    past_key_values: BatchCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    rope_deltas: torch.Tensor | None = None


@dataclass(eq=False, repr=False)
class VisionOutput(Output):
    """last_hidden_state [N, D]: the patches after the last block, window by window; pooler_output:
    visual tokens [n, out_hidden_size] of each picture or video; hidden_states: the patches before
    each block and after the last."""

    last_hidden_state: torch.Tensor
    pooler_output: tuple[torch.Tensor, ...]
    hidden_states: tuple[torch.Tensor, ...] | None = None

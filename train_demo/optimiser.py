"""Muon for the matrices of the layers, AdamW for the rest,
both on float32 copies of bfloat16 weights.

Beside them runs an average of the last few hundred steps,
which answers better than any one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

WARMUP_STEPS = 100
AVERAGE_SHARE = 1 / 300  # of the newest weights in their average
ADAM_SHARE = (
    0.4  # of the learning rate: embeddings, norms and biases take smaller steps than matrices
)


class Optimiser:
    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        """Copies the weights, so make it before the model is cast to bfloat16."""
        self.weights: list[torch.Tensor] = list(model.parameters())
        self.masters: list[torch.Tensor] = [
            nn.Parameter(weight.detach().float()) for weight in self.weights
        ]
        self.averages = [master.detach().clone() for master in self.masters]
        self.gradients = torch.zeros(sum(weight.numel() for weight in self.weights))
        for master, piece in zip(
            self.masters,
            self.gradients.split([weight.numel() for weight in self.weights]),
            strict=True,
        ):
            master.grad = piece.view_as(master)
        is_matrix = [
            weight.ndim == 2 and "embed" not in name for name, weight in model.named_parameters()
        ]
        matrices = [master for master, yes in zip(self.masters, is_matrix, strict=True) if yes]
        others = [master for master, yes in zip(self.masters, is_matrix, strict=True) if not yes]
        self.learning_rate = learning_rate
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01, foreach=True
            ),
        )

    def step(self, scale: float) -> None:
        """Move along the gradients, averaged over processes, at `scale` × the learning rate."""
        torch._foreach_copy_(
            [master.grad for master in self.masters], [weight.grad for weight in self.weights]
        )
        for weight in self.weights:
            weight.grad = None
        if dist.is_initialized():
            dist.all_reduce(self.gradients)
            self.gradients /= dist.get_world_size()
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        for part, share in zip(self.parts, (1.0, ADAM_SHARE), strict=True):
            part.param_groups[0]["lr"] = share * scale * self.learning_rate
            part.step()
        torch._foreach_lerp_(
            self.averages, [master.detach() for master in self.masters], AVERAGE_SHARE
        )
        self.write_weights(self.masters)

    @torch.no_grad()
    def write_weights(self, values: list[torch.Tensor]) -> None:
        torch._foreach_copy_(self.weights, values)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averages as its weights."""
        self.write_weights(self.averages)
        try:
            yield
        finally:
            self.write_weights(self.masters)

    def state(self) -> dict[str, Any]:
        masters = [master.detach() for master in self.masters]
        return {
            "masters": masters,
            "averages": self.averages,
            "parts": [part.state_dict() for part in self.parts],
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.masters, state["masters"])
        torch._foreach_copy_(self.averages, state.get("averages", state["masters"]))
        for part, values in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(values)
        self.write_weights(self.masters)


def schedule(step: int, first: int, decay_from: int, num_steps: int) -> float:
    """Warm up, hold, then fall linearly to nothing:
    a held run can be prolonged as often as it pays."""
    return min(
        1.0, (step - first + 1) / WARMUP_STEPS, (num_steps - step) / max(1, num_steps - decay_from)
    )

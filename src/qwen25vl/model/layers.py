"""The small parts that both towers share: linear layers, RMSNorm and the SwiGLU feed-forward.

N rows (patches or tokens) · D width of the residual stream · F width inside the feed-forward
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from qwen25vl.errors import TokenError
from qwen25vl.kernels import library, ops

MAX_WIDE_ROWS = 1024  # that a feed-forward layer computes at a time
# Up to this width it computes half as many: their intermediate results then stay on the heap.
NARROW_WIDTH = 4096


class Linear(nn.Linear):
    """torch's linear layer, by the compiled kernels where they serve."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, self.weight, self.bias)

    @property
    def product(self) -> ops.Product:
        return ops.Product(
            self.weight, None, None, self.bias, 16, self.in_features, self.out_features
        )


class RMSNorm(nn.Module):
    """y = w · x / sqrt(mean(x²) + eps), the mean in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (arXiv 2002.05202); the vision tower has biases, the text tower
    none."""

    def __init__(self, width: int, intermediate: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = Linear(width, intermediate, bias=bias)
        self.up_proj = Linear(width, intermediate, bias=bias)
        self.down_proj = Linear(intermediate, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, D] -> [N, D]. Without gradients a few rows go through at a time: F is the largest
        width of a layer, and for all patches of a large picture the three intermediate results
        would be most of its memory."""
        at_once = wide_rows(self.gate_proj.out_features, x.itemsize)
        if torch.is_grad_enabled() or len(x) <= at_once:
            return self.join(x)
        y = ops.empty_like(x)
        for rows, results in zip(x.split(at_once), y.split(at_once), strict=True):
            results.copy_(self.join(rows))
        return y

    def join(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(ops.silu_mul(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]


def wide_rows(width: int, item: int) -> int:
    """How many rows a feed-forward layer of this intermediate width computes at a time; item: bytes
    of a number."""
    return MAX_WIDE_ROWS // 2 if item == 2 and width <= NARROW_WIDTH else MAX_WIDE_ROWS


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called before or after the forward of a module or of one of its parts."""
    return has_any_global_hook() or any(
        m._forward_hooks or m._forward_pre_hooks for m in module.modules()
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a module and all its parts are this package's or torch's own, unchanged and without
    hooks, so that parts of it may be called instead of the whole."""
    own = ("qwen25vl.", "torch.nn.modules.")
    return not has_hooks(module) and all(
        type(part).__module__.startswith(own) and "forward" not in vars(part)
        for part in module.modules()
    )


def has_compiled_layers(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether compiled kernels serve layers with weights of this type on this device."""
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and library.function("linear_bf16") is not None
    )


class TokenEmbedding(nn.Embedding):
    """Errors name the id that the vocabulary does not have."""

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        try:
            return super().forward(token_ids)
        except IndexError:
            check_token_ids(token_ids, len(self.weight))
            raise


def check_token_ids(token_ids: torch.Tensor, vocabulary: int) -> None:
    """Raise TokenError, by the first of them, for ids that a vocabulary of this size does not
    have."""
    strange = token_ids[(token_ids < 0) | (token_ids >= vocabulary)]
    if len(strange):
        raise TokenError(f"token {int(strange[0])} is none of a vocabulary of {vocabulary} tokens")


def initialise(module: nn.Module, std: float) -> None:
    """Start a model that is to be trained from nothing: N(0, std) weights, zero biases, unit
    norms."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding | nn.Conv3d):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)

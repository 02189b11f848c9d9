"""Every operation with operands that fit it, at random sizes, and the same by its equation in
torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from qwen25vl.kernels import ops, pictures, reference
from qwen25vl.model.attention import eager

BF16 = torch.bfloat16
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Call:
    """An operation on named tensors, and its equation.

    The two agree within `tolerance` of the largest number wanted, or of `usual` where cancellation
    leaves less.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    compute: Callable[..., torch.Tensor]
    equation: Callable[..., torch.Tensor]
    tolerance: float = 0.02
    usual: float = 0.001

    def run(self) -> torch.Tensor:
        return self.compute(**self.tensors)

    def wanted(self) -> torch.Tensor:
        return self.equation(**self.tensors)

    def with_tensor(self, name: str, tensor: torch.Tensor) -> Call:
        return replace(self, tensors=self.tensors | {name: tensor})

    def is_right(self, result: torch.Tensor) -> bool:
        wanted = self.wanted()
        if result.shape != wanted.shape or result.dtype != wanted.dtype:
            return False
        got, wanted = result.double(), wanted.double()
        bound = self.tolerance * wanted.nan_to_num().abs().max().clamp(min=self.usual)
        return bool(
            ((got - wanted).abs().le(bound) | got.isnan() & wanted.isnan() | got.eq(wanted)).all()
        )


def numbers(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32).to(dtype)


def linear(rng: random.Random) -> Call:
    rows, inputs, outputs = (
        rng.choice(sizes) for sizes in ((1, 3, 13, 20), (32, 33, 130), (1, 16, 37))
    )
    tensors = {
        "x": numbers(rows, inputs),
        "weight": numbers(outputs, inputs),
        "bias": numbers(outputs),
    }
    return Call("linear", tensors, ops.linear, torch.nn.functional.linear, usual=1)


def linear_int8(rng: random.Random) -> Call:
    rows, inputs, outputs = (
        rng.choice(sizes) for sizes in ((1, 3, 6, 20), (32, 64, 132), (1, 16, 37))
    )
    codes = torch.randint(0, 256, (outputs, inputs), dtype=torch.uint8)
    scale = torch.rand(outputs, dtype=torch.float32) * 0.01
    tensors = {"x": numbers(rows, inputs), "codes": codes, "scale": scale, "bias": numbers(outputs)}

    def equation(
        x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        levels = codes.to(x.dtype).double() - 128
        return (torch.nn.functional.linear(x.double(), levels) * scale.double() + bias.double()).to(
            x.dtype
        )

    return Call("linear_int8", tensors, ops.linear_int8, equation, 0.05, usual=1)


def linear_int4(rng: random.Random) -> Call:
    group = rng.choice((32, 64, 128))
    rows, groups, outputs = (rng.choice(sizes) for sizes in ((1, 3, 6, 20), (1, 2, 5), (1, 16, 37)))
    inputs = groups * group - rng.choice((0, 0, 7))
    codes = torch.randint(0, 256, (outputs, groups * group // 2), dtype=torch.uint8)
    scale = (torch.rand(outputs, groups, dtype=torch.float32) * 0.01).half()
    tensors = {"x": numbers(rows, inputs), "codes": codes, "scale": scale, "bias": numbers(outputs)}
    return Call("linear_int4", tensors, ops.linear_int4, reference.linear_int4, 0.05, usual=0.3)


def linear_int4_with_zeros(rng: random.Random) -> Call:
    call = linear_int4(rng)
    num_outputs, num_groups = call.tensors["scale"].shape
    words = -(-num_outputs // 8), num_groups
    zero_point = torch.randint(-(2**31), 2**31, words).to(torch.int32)
    return replace(call.with_tensor("zero_point", zero_point), name="linear_int4_with_zeros")


def rms_norm(rng: random.Random) -> Call:
    width = rng.choice((1, 16, 33, 80))
    tensors = {"x": numbers(rng.choice((1, 5)), width), "weight": numbers(width)}
    return Call(
        "rms_norm", tensors, partial(ops.rms_norm, eps=1e-6), partial(reference.rms_norm, eps=1e-6)
    )


def silu_mul(rng: random.Random) -> Call:
    shape = rng.choice((1, 7)), rng.choice((1, 16, 45))
    return Call(
        "silu_mul",
        {"gate": numbers(*shape), "up": numbers(*shape)},
        ops.silu_mul,
        reference.silu_mul,
    )


def rotate(rng: random.Random) -> Call:
    rows, heads, size = rng.choice((1, 5)), rng.choice((1, 3)), rng.choice((2, 12, 80))
    dtype = rng.choice((BF16, torch.float32))
    tensors = {
        "x": numbers(rows, heads, size),
        "cos": numbers(rows, 1, size // 2, dtype=dtype),
        "sin": numbers(rows, 1, size // 2, dtype=dtype),
    }
    return Call("rotate", tensors, lambda x, cos, sin: ops.rotate(x, (cos, sin)), reference.rotate)


def attend(rng: random.Random) -> Call:
    group, kv_heads, size = rng.choice((1, 3)), rng.choice((1, 2)), rng.choice((2, 12, 40))
    rows, past = rng.choice((1, 4, 30)), rng.choice((0, 5, 140))
    causal = rng.random() < 0.5
    tensors = {
        "q": numbers(rows, group * kv_heads, size),
        "keys": numbers(kv_heads, past + rows, size),
        "values": numbers(kv_heads, past + rows, size),
    }

    def by_torch(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return eager(q.transpose(0, 1)[None], keys[None], values[None], causal)[0].transpose(0, 1)

    def equation(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return by_torch(q.double(), keys.double(), values.double()).to(q.dtype)

    def compute(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        mixed = ops.attend(q, [len(q)], [keys], [values], causal)
        return by_torch(q, keys, values) if mixed is None else mixed

    return Call("attend", tensors, compute, equation, 0.05, usual=1)


def cut(rng: random.Random) -> Call:
    patch, merge, temporal = rng.choice((2, 14)), rng.choice((1, 2)), rng.choice((1, 2))
    size = tuple(patch * merge * rng.choice((1, 3)) for _ in range(2))
    shape = rng.choice((1, 3)), 3, rng.choice((1, 9, 31)), rng.choice((1, 9, 40))
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean, deviation = (
        torch.tensor(three, dtype=torch.float32) for three in ([100.0, 90, 80], [50.0, 60, 70])
    )
    options: dict[str, Any] = {"patch": patch, "merge": merge, "temporal": temporal}

    def equation(frames: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.interpolate(frames, size=size, mode="bicubic", antialias=True)
        small = frames if frames.shape[-2:] == size else small
        return pictures.cut_in_torch(small, mean, deviation, patch, merge, temporal)

    def compute(frames: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        return pictures.cut(frames, (size[0], size[1]), mean, deviation, **options)

    return Call(
        "cut", {"frames": frames, "mean": mean, "deviation": deviation}, compute, equation, 1e-6
    )


def resize(rng: random.Random) -> Call:
    shape = rng.choice((1, 2)), 3, rng.choice((1, 8, 45)), rng.choice((1, 8, 45))
    height, width = rng.choice((2, 7, 30)), rng.choice((2, 7, 30))  # torch itself fails at 1 × 1

    def equation(frames: torch.Tensor) -> torch.Tensor:
        if frames.shape[-2:] == (height, width):
            return frames
        frames = frames.flatten().view(
            frames.shape
        )  # torch misreads odd strides of sides of one pixel
        return torch.nn.functional.interpolate(
            frames, size=(height, width), mode="bicubic", antialias=True
        )

    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    return Call(
        "resize",
        {"frames": frames},
        lambda frames: pictures.resize(frames, height, width),
        equation,
        0,
    )


MAKERS = {
    maker.__name__: maker
    for maker in (
        linear,
        linear_int8,
        linear_int4,
        linear_int4_with_zeros,
        rms_norm,
        silu_mul,
        rotate,
        attend,
        cut,
        resize,
    )
}


def make(name: str, seed: int) -> Call:
    torch.manual_seed(seed)
    return MAKERS[name](random.Random(seed))


def shorter(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.narrow(dim, 0, tensor.shape[dim] - 1).contiguous()


def longer(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat((tensor, tensor.narrow(dim, 0, 1)), dim)


def strided(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The same numbers, every other one of a wider tensor."""
    return torch.stack((tensor, tensor), dim + 1).flatten(dim, dim + 1).unfold(dim, 1, 2)[..., 0]


def flipped(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Dimensions in another order in memory."""
    return tensor.transpose(dim, 0).contiguous().transpose(dim, 0)


def end_of_storage(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The last rows of a wider matrix, cut off by its right edge: nothing lies behind them."""
    width = tensor.shape[-1]
    wider = torch.cat((tensor, tensor), -1)
    return wider[..., width:]


def empty(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.narrow(dim, 0, 0)


def expanded(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.narrow(dim, 0, 1).expand(tensor.shape)


def without_dimension(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.select(dim, 0)


def with_dimension(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.unsqueeze(dim)


CHANGES: tuple[Callable[[torch.Tensor, int], torch.Tensor], ...] = (
    shorter, longer, strided, flipped, end_of_storage, empty, expanded, without_dimension,
    with_dimension,
)  # fmt: skip
DTYPES = (BF16, torch.float16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int32)

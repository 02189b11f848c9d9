"""The compiled operations between the products against their twins, on odd sizes."""

import pytest
import torch

from qwen25vl.kernels import library, ops, reference

BF16 = torch.bfloat16


def steps_apart(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest distance in steps of bfloat16."""
    ordered = [
        torch.where(
            x.view(torch.int16) < 0, -32768 - x.view(torch.int16).int(), x.view(torch.int16)
        )
        for x in (a, b)
    ]
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("rows", "width"), [(1, 2048), (3, 33), (70, 1280), (7, 3420), (40, 1)])
def test_rms_norm(rows: int, width: int) -> None:
    """Only the order of the sum differs: one step of bfloat16, twice rounded."""
    x, weight = (3 * torch.randn(rows, width)).bfloat16(), torch.randn(width).bfloat16()
    assert library.function("rms_norm")
    y = ops.rms_norm(x, weight, 1e-6)
    assert steps_apart(y, reference.rms_norm(x, weight, 1e-6)) <= 2
    assert torch.equal(y, torch.cat([ops.rms_norm(row[None], weight, 1e-6) for row in x]))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(1, 11008), (3, 33), (70, 3420), (5,)])
def test_silu_mul(shape: tuple[int, ...]) -> None:
    """Also where the exponential overflows: no NaN from 0 · ∞."""
    gate, up = (20 * torch.randn(shape)).bfloat16(), torch.randn(shape).bfloat16()
    gate.view(-1)[:4] = torch.tensor([-100.0, 100.0, 0.0, -89.5])
    assert library.function("silu_mul")
    got, wanted = ops.silu_mul(gate, up), reference.silu_mul(gate, up)
    big = wanted.abs() > 1e-30
    assert steps_apart(got[big], wanted[big]) <= 1
    assert (got[~big].abs() <= 1e-30).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "heads", "size"), [(1, 16, 128), (70, 3, 80), (9, 2, 64), (33, 1, 32), (5, 2, 12)]
)
def test_rotate(rows: int, heads: int, size: int, dtype: torch.dtype) -> None:
    """Equal bits, inside a wider matrix too: tokens and patches round in different places."""
    qkv, angles = torch.randn(rows, 3, heads, size).bfloat16(), torch.randn(rows, 1, size // 2)
    rotation = angles.cos().to(dtype), angles.sin().to(dtype)
    assert library.function("rotate")
    for x in (qkv[:, 1], qkv[:, 0].contiguous()):
        assert torch.equal(ops.rotate(x, rotation), reference.rotate(x, *rotation))

"""The search for scales and the packing of levels: the compiled ones against those in torch."""

import pytest
import torch

from qwen25vl.kernels import scales
from qwen25vl.kernels.reference import ZERO_POINT

PARTS = torch.linspace(0.875, 1.5, 11)  # not a multiple of the trials that go side by side


def squared_error(groups: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    levels = scales.nearest_levels(groups, scale, ZERO_POINT[bits])
    return (groups - levels * scale[..., None]).double().square().sum(-1)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 128, 1000, 3420])
def test_scales_err_as_little_as_those_of_torch(size: int, bits: int) -> None:
    """Sums in another order may prefer another of two trials that err alike, and nothing else: in 8
    bits their errors are differences of sums that agree in five digits."""
    torch.manual_seed(size)
    groups = torch.randn(9, 3, size) * torch.logspace(-6, 3, 27).view(9, 3, 1)
    found = scales.search(groups, bits, PARTS)
    wanted = scales.search_in_torch(groups, ZERO_POINT[bits], PARTS.tolist())
    assert found.shape == (9, 3)
    error, least = (squared_error(groups, scale, bits) for scale in (found, wanted))
    torch.testing.assert_close(error, least, rtol=2e-3 if bits == 4 else 1e-2, atol=0)
    assert float((error / least).mean()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(found, wanted, rtol=0.3 if bits == 4 else 0.05, atol=0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 300, 3420])
def test_levels_are_those_of_torch(size: int, bits: int) -> None:
    """To the last code, at both ends of their range, which the scales here exceed, and on ties."""
    torch.manual_seed(size)
    groups = torch.randn(5, 4, size)
    scale = torch.rand(5, 4) * (0.4 if bits == 4 else 0.02) * torch.tensor([1, -1, 1, -1])
    groups[0, 0], scale[0, 0] = torch.arange(size) % 7 - 3.5, 1
    codes = scales.pack(groups, scale, bits)
    assert torch.equal(codes, scales.pack_in_torch(groups, scale, bits))
    assert codes.shape == (5, 4, size * bits // 8)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_group_that_is_no_number_has_no_scale(value: float) -> None:
    """The maximum of a vector may miss a NaN; the groups beside it are not affected."""
    groups = torch.ones(2, 3, 40)
    groups[1, 1, 35] = value
    found = scales.search(groups, 4, PARTS)
    assert found.isnan().nonzero().tolist() == [[1, 1]]


@pytest.mark.usefixtures("isa")
def test_a_group_of_zeros_keeps_a_scale() -> None:
    """0 / 0 would be no number."""
    groups = torch.zeros(1, 2, 64)
    found = scales.search(groups, 4, PARTS)
    assert torch.equal(found, torch.full((1, 2), scales.SMALLEST_SCALE))
    assert scales.pack(groups, found, 4).eq(0x88).all()


@pytest.mark.usefixtures("isa")
def test_groups_that_do_not_lie_side_by_side() -> None:
    """A kernel reads memory in order, so views and other types are left to torch."""
    groups = torch.randn(64, 4, 3).permute(2, 1, 0)
    dense = groups.contiguous()
    assert torch.allclose(scales.search(groups, 4, PARTS), scales.search(dense, 4, PARTS))
    scale = scales.search(dense, 4, PARTS)
    assert torch.equal(scales.pack(groups, scale, 4), scales.pack(dense, scale, 4))
    assert torch.equal(scales.pack(dense, scale.T.contiguous().T, 4), scales.pack(dense, scale, 4))

"""Quantised layers where no compiled kernel serves: torch against the equations, and how fast it
is."""

import re
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl.kernels import fallback, ops, reference
from qwen25vl.kernels import library as kernel_library
from qwen25vl.loading.quantization import make_packed_layer, quantise
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import Int4Linear, PackedLinear

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
# of the largest result: one rounding to the type, and in bfloat16 those of sums, weights or scales
# before it
TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5, torch.float64: 1e-6}
SIZES = [
    (1, 64, 32),
    (2, 33, 19),
    (5, 32, 1),
    (7, 1410, 64),
    (16, 160, 37),
    (17, 96, 70),
    (40, 3420, 33),
]
INT8, INT4 = Scheme(8), Scheme(4, group_size=32)


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("QWEN25VL_KERNELS", "torch")
    kernel_library.choose.cache_clear()
    yield
    kernel_library.choose.cache_clear()


def int8_operands(num_inputs: int, num_outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All codes, scales of both signs."""
    width = -(-num_inputs // 4) * 4
    codes = torch.randint(0, 256, (num_outputs, width), dtype=torch.uint8)[:, :num_inputs]
    return codes, torch.rand(num_outputs) * 0.01 - 0.003


def int4_operands(
    num_inputs: int, num_outputs: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    num_groups = -(-num_inputs // group_size)
    codes = torch.randint(0, 256, (num_outputs, num_groups * group_size // 2), dtype=torch.uint8)
    return codes, (torch.rand(num_outputs, num_groups) * 0.01 - 0.003).half()


def int4_zeros(num_inputs: int, num_outputs: int, group_size: int) -> torch.Tensor:
    words = -(-num_outputs // 8), -(-num_inputs // group_size)
    return torch.randint(-(2**31), 2**31, words).to(torch.int32)


def assert_near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape
    error = (got.double() - wanted.double()).abs().max()
    assert error <= TOLERANCE[got.dtype] * wanted.double().abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_both_widths_give_what_their_equations_give(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that do not divide the outputs, odd widths, every type of activation."""
    monkeypatch.setattr(fallback, "ELEMENTS_AT_A_TIME", 10 * inputs)
    torch.manual_seed(rows)
    x, bias = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype)
    operands = int8_operands(inputs, outputs)
    with torch.no_grad():
        assert_near(
            ops.linear_int8(x, *operands, bias), reference.linear_int8(x.double(), *operands, bias)
        )
        for group_size in (32, 128):
            operands = int4_operands(inputs, outputs, group_size)
            zeros = int4_zeros(inputs, outputs, group_size)
            for zero_point in (None, zeros):
                assert_near(
                    ops.linear_int4(x, *operands, bias, zero_point),
                    reference.linear_int4(x.double(), *operands, bias, zero_point),
                )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 30])
def test_sums_do_not_overflow(dtype: torch.dtype, rows: int) -> None:
    """11008 inputs times levels up to 128 pass float16's 65504 long before the scale makes 88 of
    them."""
    x = torch.ones(rows, 11008, dtype=dtype)
    codes, scale = (
        torch.full((3, 11008), 255, dtype=torch.uint8),
        torch.full((3,), 88 / (127 * 11008)),
    )
    nibbles, small = (
        torch.full((3, 5504), 0xFF, dtype=torch.uint8),
        torch.full((3, 86), 0.00114).half(),
    )
    with torch.no_grad():
        assert_near(ops.linear_int8(x, codes, scale), torch.full((rows, 3), 88.0))
        assert_near(
            ops.linear_int4(x, nibbles, small),
            torch.full((rows, 3), 7 * 11008 * small[0, 0].item()),
        )
        assert_near(reference.linear_int8(x, codes, scale), torch.full((rows, 3), 88.0))


def test_unpacking_is_exact() -> None:
    """Every byte, in both orders of its halves, to the bit."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    scale = (torch.rand(3, 16) - 0.5).half()
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(
            fallback.unpack_int4(codes, scale, dtype),
            reference.dequantise_int4(codes, scale, 512, dtype),
        )
        words = int4_zeros(512, 3, 32)
        zeros = reference.unpack_zeros(words, 3)
        assert torch.equal(
            fallback.unpack_int4(codes, scale, dtype, zeros),
            reference.dequantise_int4(codes, scale, 512, dtype, words),
        )


def made_layer(
    scheme: Scheme, num_inputs: int = 200, num_outputs: int = 40, bias: bool = True
) -> PackedLinear:
    torch.manual_seed(num_inputs)
    return quantise(nn.Linear(num_inputs, num_outputs, dtype=torch.bfloat16), scheme)


@pytest.mark.skipif(
    not fallback.has_fast_int4(), reason="torch's product with 4 bits is not vectorised here"
)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_torch_s_own_order_of_codes(rows: int, inputs: int, outputs: int, group_size: int) -> None:
    """Outputs that fill no tile, inputs that fill no group, and each row on its own."""
    torch.manual_seed(rows)
    codes, scale = int4_operands(inputs, outputs, group_size)
    x, bias = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs).bfloat16()
    for zeros in (None, int4_zeros(inputs, outputs, group_size)):
        with torch.no_grad():
            operands = *fallback.pack_for_torch(codes, scale, zeros), outputs, bias
            y = fallback.linear_packed_int4(x, *operands)
            alone = torch.cat([fallback.linear_packed_int4(row[None], *operands) for row in x])
        assert_near(y, reference.linear_int4(x.double(), codes, scale, bias, zeros))
        assert torch.equal(y, alone)


@pytest.mark.skipif(
    not fallback.has_fast_int4(), reason="torch's product with 4 bits is not vectorised here"
)
@pytest.mark.parametrize(
    "change",
    ["in place", "scale", "zero points", "through data", "another tensor", "load_state_dict"],
)
def test_the_reordered_copy_follows_its_weights(change: str) -> None:
    """A copy that outlives what it was made from answers with weights that are no longer there."""
    layer, other = made_layer(INT4), quantise(nn.Linear(200, 40, dtype=torch.bfloat16), INT4)
    for one in (layer, other):
        one.weight_zero_point = int4_zeros(200, 40, 32)
    x = torch.randn(3, 200).bfloat16()
    with torch.no_grad():
        before = layer(x)
        assert isinstance(layer, Int4Linear)
        assert layer.reordered.kept is not None
        if change == "in place":
            layer.weight_packed.copy_(other.weight_packed)
        elif change == "scale":
            layer.weight_scale.mul_(-3)
        elif change == "zero points":
            layer.weight_zero_point.bitwise_not_()  # type: ignore[union-attr]
        elif change == "through data":
            layer.weight_packed.data.copy_(other.weight_packed)
        elif change == "another tensor":
            layer.weight_packed = other.weight_packed
        else:
            layer.load_state_dict(other.state_dict())
        after = layer(x)
        assert not torch.equal(before, after)
        assert_near(after, F.linear(x.float(), layer.dequantise(torch.float32), layer.bias.float()))


@pytest.mark.parametrize("scheme", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_gradients(scheme: Scheme, rows: int) -> None:
    """Adapters are trained beside quantised layers: no way without a gradient may be taken."""
    layer = made_layer(scheme)
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(2, rows, 200, dtype=dtype, requires_grad=True)
        layer.to(dtype)(x).sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert_near(x.grad, layer.dequantise(torch.float32).sum(0).expand(2, rows, -1))


def test_empty_and_three_dimensional() -> None:
    """No rows at all; rows that do not lie one after another."""
    for layer in (made_layer(INT8), made_layer(INT4)):
        with torch.no_grad():
            assert layer(torch.randn(0, 200).bfloat16()).shape == (0, 40)
            x = torch.randn(2, 200, 3).bfloat16().transpose(1, 2)
            assert torch.equal(layer(x), layer(x.contiguous()))
            assert layer(x[0, 0]).shape == (40,)


def cpu_seconds(run: Callable[[], object]) -> float:
    """The least of a few, in time of this process: others on the machine count less."""
    run()
    times = []
    for _ in range(7):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.slow  # a timing: wrong beside other load and under a sanitizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", [INT8, Scheme(4)], ids=["int8", "int4"])
def test_one_row_takes_about_as_long_as_unquantised(scheme: Scheme, dtype: torch.dtype) -> None:
    """The whole weight was unpacked for every token: 23 times as long as a bfloat16 layer, 35 times
    in float32."""
    layer = make_packed_layer(nn.Linear(2048, 5504, bias=False, device="meta"), scheme).to_empty(
        device="cpu"
    )
    layer.weight_packed.random_(-(2**31), 2**31)
    layer.weight_scale.fill_(0.001)
    x, weight = torch.randn(1, 2048, dtype=dtype), torch.randn(5504, 2048).to(dtype)
    with torch.no_grad():
        ratio = cpu_seconds(lambda: layer(x)) / cpu_seconds(lambda: F.linear(x, weight))
    assert ratio < 8


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (torch.bfloat16, "unset QWEN25VL_KERNELS"),
        (torch.float16, "not float16.*dtype='bfloat16'"),
        (torch.float32, "not float32.*dtype='bfloat16'"),
    ],
)
def test_slowness_is_said_once(dtype: torch.dtype, remedy: str) -> None:
    """Nobody knew why int4 was slower than bfloat16 on such a machine, nor what would help."""
    layers, x = (made_layer(INT8), made_layer(INT4)), torch.randn(1, 200).to(dtype)
    fallback.warn_slow.cache_clear()
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        for layer in (*layers, *layers):
            layer(x)
    assert len(said) == 1
    assert re.search(f"slow without compiled kernels.*{remedy}", str(said[0].message))


@pytest.mark.parametrize(
    ("supported", "remedy"), [(True, "install a C.. compiler"), (False, "load without")]
)
def test_remedies(supported: bool, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler helps only where there is something to compile."""
    fallback.warn_slow.cache_clear()
    with monkeypatch.context() as patch:
        patch.delenv("QWEN25VL_KERNELS")
        patch.setattr(
            kernel_library,
            "choose",
            lambda: kernel_library.Choice("torch", "the compiled kernels were not built"),
        )
        patch.setattr(kernel_library, "is_supported", lambda: supported)
        with pytest.warns(
            UserWarning, match=rf"\(the compiled kernels were not built\): .*time; {remedy}"
        ):
            fallback.warn_slow("cpu", torch.bfloat16)
        with pytest.warns(UserWarning, match="there are none for cuda.*load without"):
            fallback.warn_slow("cuda", torch.bfloat16)


def test_training_is_not_told_so() -> None:
    """Gradients never come from the kernels: installing a compiler would change nothing."""
    fallback.warn_slow.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made_layer(INT4)(torch.randn(1, 200).bfloat16().requires_grad_()).sum().backward()

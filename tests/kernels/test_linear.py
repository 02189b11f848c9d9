"""The compiled linear layers against their equations in float64, on odd sizes, and each row on its
own."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from qwen25vl.kernels import fallback, library, operands, ops, reference

SIZES = [
    (1, 64, 32),
    (2, 33, 19),
    (3, 160, 50),
    (5, 32, 16),
    (6, 256, 40),
    (7, 4102, 64),
    (13, 160, 37),
    (16, 256, 33),
    (17, 200, 16),
    (30, 3424, 65),
    (33, 96, 70),
    (48, 129, 40),
    (64, 260, 20),
    (65, 128, 64),
    (70, 3420, 33),
    (129, 300, 40),
    (161, 4230, 70),
]


def random_int4(
    num_inputs: int, num_outputs: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    num_groups = -(-num_inputs // group_size)
    levels = torch.randint(-8, 8, (num_outputs, num_groups * group_size))
    levels[:, num_inputs:] = 0
    return reference.pack_int4(levels), (torch.rand(num_outputs, num_groups) * 0.01 - 0.003).half()


def activation_steps(x: torch.Tensor) -> torch.Tensor:
    """The step of each activation's quantisation: 1/127 of the largest of its 128."""
    groups = F.pad(x.double(), (0, -x.shape[1] % 128)).unflatten(1, (-1, 128))
    return (groups.abs().amax(2, keepdim=True) / 127).expand_as(groups).flatten(1)[:, : x.shape[1]]


def assert_within_activation_rounding(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> None:
    """Each activation may be off by half its step, and the result is rounded to bfloat16 once."""
    wanted = x.double() @ weight.T + bias.double()
    bound = activation_steps(x) / 2 @ weight.abs().T + wanted.abs() * 2**-8 + 1e-5
    assert ((y.double() - wanted).abs() <= bound).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_bfloat16_layer(rows: int, inputs: int, outputs: int) -> None:
    """Within one rounding of the exact product: a tail of inputs, outputs or rows once read past
    its panel."""
    torch.manual_seed(rows)
    x, weight, bias = (
        torch.randn(*s).bfloat16() for s in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    assert library.function("linear_bf16")
    with torch.inference_mode():
        y = ops.linear(x, weight, bias)
        alone = torch.cat([ops.linear(row[None], weight, bias) for row in x])
    wanted = x.double() @ weight.double().T + bias.double()
    assert ((y.double() - wanted).abs() <= wanted.abs() * 2**-8 + inputs * 2e-6).all()
    assert torch.equal(y, alone)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_int4_layer(rows: int, inputs: int, outputs: int, group_size: int) -> None:
    """Within the rounding of the activations, the same bits for a row alone; groups that end inside
    a block of 128 once met scales that nobody had written."""
    torch.manual_seed(rows)
    x, bias = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs).bfloat16()
    codes, scale = random_int4(inputs, outputs, group_size)
    with torch.inference_mode():
        y = ops.linear_int4(x, codes, scale, bias)
        alone = torch.cat([ops.linear_int4(row[None], codes, scale, bias) for row in x])
    assert_within_activation_rounding(
        y, x, reference.dequantise_int4(codes, scale, inputs, torch.float64), bias
    )
    assert torch.equal(y, alone)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("rows", [1, 4, 30, 70, 130])
def test_int4_layer_of_the_largest_products(rows: int, sign: int) -> None:
    """Products are first added in 16 bits where the processor has no instruction for 32: one step
    too many overflows, but only where all codes and activations are large."""
    levels = torch.full((24, 512), 7)
    scale = torch.full((24, 4), 0.5).half()
    x = torch.full((rows, 512), 127.0 * sign).bfloat16()
    y = ops.linear_int4(x, reference.pack_int4(levels), scale, None)
    assert torch.equal(y, torch.full((rows, 24), 512 * 7 * 0.5 * 127 * sign).bfloat16())


def random_zeros(num_inputs: int, num_outputs: int, group_size: int) -> torch.Tensor:
    """All sixteen, and others beside them in the words that the outputs do not fill."""
    words = -(-num_outputs // 8), -(-num_inputs // group_size)
    return torch.randint(-(2**31), 2**31, words).to(torch.int32)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_int4_layer_with_zero_points(rows: int, inputs: int, outputs: int, group_size: int) -> None:
    """Zeros of another output, group or vector of a panel; a row's bits that depend on the way that
    serves so many rows."""
    torch.manual_seed(rows)
    x, bias = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs).bfloat16()
    codes, scale = random_int4(inputs, outputs, group_size)
    zeros = random_zeros(inputs, outputs, group_size)
    with torch.inference_mode():
        y = ops.linear_int4(x, codes, scale, bias, zeros)
        alone = torch.cat([ops.linear_int4(row[None], codes, scale, bias, zeros) for row in x])
    weight = reference.dequantise_int4(codes, scale, inputs, torch.float64, zeros)
    assert_within_activation_rounding(y, x, weight, bias)
    assert torch.equal(y, alone)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_zero_points_of_8_give_the_bits_of_none(
    rows: int, inputs: int, outputs: int, group_size: int
) -> None:
    """What a group adds is a whole number: no rounding may tell that its zero was stored."""
    torch.manual_seed(rows)
    x = torch.randn(rows, inputs).bfloat16()
    codes, scale = random_int4(inputs, outputs, group_size)
    eights = torch.full((-(-outputs // 8), scale.shape[1]), -0x77777778, dtype=torch.int32)
    with torch.inference_mode():
        y = ops.linear_int4(x, codes, scale, None, eights)
        assert torch.equal(y, ops.linear_int4(x, codes, scale))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 3, 30, 70, 130])
def test_levels_of_zero_points_are_exact(rows: int, group_size: int) -> None:
    """Where every activation is a level, nothing is rounded but the result: no zero may be off by
    one anywhere, the largest sums included."""
    torch.manual_seed(rows)
    x = torch.randint(-127, 128, (rows, 512))
    x[:, ::128] = 127  # the largest of each 128, so that a step is 1
    x[-1] = 127
    codes = torch.randint(0, 256, (24, 256), dtype=torch.uint8)
    codes[0], codes[1] = 255, 0
    zeros = random_zeros(512, 24, group_size)
    zeros[0] = torch.tensor(0x0F) << 4  # 0 for the first output, 15 for the second
    scale = torch.full((24, 512 // group_size), 2.0**-6).half()
    y = ops.linear_int4(x.bfloat16(), codes, scale, None, zeros)
    weight = reference.dequantise_int4(codes, scale, 512, torch.float64, zeros)
    assert torch.equal(y, (x.double() @ weight.T).bfloat16())


def test_words_of_zero_points() -> None:
    """Eight outputs of a group to a word, the first in the lowest bits: read here bit by bit."""
    zeros = torch.randint(0, 16, (19, 3), dtype=torch.uint8)
    words = reference.pack_zeros(zeros)
    assert words.shape == (3, 3)
    for output in range(19):
        for group in range(3):
            word = int(words[output // 8, group]) & 0xFFFFFFFF
            assert word >> 4 * (output % 8) & 15 == zeros[output, group]
    assert torch.equal(reference.unpack_zeros(words, 19), zeros)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_int8_layer(rows: int, inputs: int, outputs: int) -> None:
    """Within the rounding of the activations, all 256 codes, rows of codes that are wider than the
    inputs."""
    torch.manual_seed(rows)
    x, bias = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs).bfloat16()
    codes = torch.randint(0, 256, (outputs, -(-inputs // 4) * 4), dtype=torch.uint8)[:, :inputs]
    scale = torch.rand(outputs) * 0.01
    with torch.inference_mode():
        y = ops.linear_int8(x, codes, scale, bias)
        alone = torch.cat([ops.linear_int8(row[None], codes, scale, bias) for row in x])
    assert_within_activation_rounding(y, x, (codes.double() - 128) * scale.double()[:, None], bias)
    assert torch.equal(y, alone)


@pytest.mark.parametrize("linear_int8", [reference.linear_int8, fallback.linear_int8])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 5, 2080), (17, 64), (2, 48), (0, 64)])
def test_int8_twin(shape: tuple[int, ...], linear_int8: Callable[..., torch.Tensor]) -> None:
    """torch's kernel for few rows and the equation for others: the same to one rounding of the
    sum."""
    x, scale, bias = (
        torch.randn(shape).bfloat16(),
        torch.rand(1100) * 0.01,
        torch.randn(1100).bfloat16(),
    )
    codes = torch.randint(0, 256, (1100, shape[-1] + 4), dtype=torch.uint8)[:, : shape[-1]]
    y = linear_int8(x, codes, scale, bias)
    sums = x.double() @ (codes.double() - 128).T * scale.double()
    assert y.shape == sums.shape
    assert (
        (y - (sums + bias.double())).abs() <= 2**-8 * (2 * sums.abs() + bias.double().abs()) + 1e-5
    ).all()
    few = x.clone().requires_grad_()
    linear_int8(few, codes, scale, bias).sum().backward()
    assert few.grad is not None


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [1, 5, 40, 130])
def test_nan_is_not_swallowed(rows: int) -> None:
    """The largest of 128 numbers may know nothing of a NaN among them: it became an ordinary number
    in a layer of integers, and the check for finite logits saw nothing."""
    x = torch.randn(rows, 300).bfloat16()
    x[-1, 140] = torch.nan
    codes, scale = random_int4(300, 20, 128)
    with torch.inference_mode():
        for y in (
            ops.linear_int4(x, codes, scale),
            ops.linear_int8(x, codes.repeat(1, 2)[:, :300], torch.ones(20)),
        ):
            assert y[-1].isnan().all()
            assert y[:-1].isfinite().all()


@pytest.mark.usefixtures("isa")
def test_the_number_of_threads_changes_nothing() -> None:
    """Work is dealt out by outputs, never by inputs: no sum depends on who took part."""
    x, weight = torch.randn(40, 300).bfloat16(), torch.randn(200, 300).bfloat16()
    codes, scale = random_int4(300, 200, 32)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            with torch.inference_mode():
                results.append((ops.linear(x, weight), ops.linear_int4(x, codes, scale)))
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )


def test_gradients_and_other_types_take_the_twin() -> None:
    """A kernel has no gradient: the layers of a model in training must never meet one."""
    x, weight = (
        torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True),
        torch.randn(4, 8, dtype=torch.bfloat16),
    )
    assert not operands.fit_linear(x, weight, None)
    assert not operands.fit_linear(x.float().detach(), weight, None)
    assert operands.fit_linear(x.detach(), weight, None)
    ops.linear(x, weight).sum().backward()
    assert x.grad is not None

"""The door to the compiled code: an operand that a kernel does not expect never reaches it.

The kernels trust their pointers. Before every operand was checked, embeddings of another width
ended the process, a float32 bias was read as bfloat16, and a cache of fewer values than keys gave
whatever lay behind it.
"""

import os
import random
from array import array

import pytest
import torch
from operations import BF16, CHANGES, DTYPES, MAKERS, Call, end_of_storage, make, numbers
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812

import qwen25vl
from qwen25vl.errors import UsageError
from qwen25vl.kernels import operands, ops
from qwen25vl.model.cache import KVCache

REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError)
NUM_CALLS = int(os.environ.get("QWEN25VL_FUZZ_CALLS", "400"))  # `make sanitize` makes 20,000


def assert_right_or_refused(call: Call) -> None:
    """What has no meaning is refused; what is computed is the equation's."""
    try:
        result = call.run()
    except REFUSALS:
        return
    wanted = call.wanted()  # raises where there is none
    assert call.is_right(result) if wanted.numel() else result.shape == wanted.shape, call.name


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", MAKERS)
def test_operands_that_fit(name: str) -> None:
    """A check that refused everything would make all of it slow, and every test below pass."""
    for seed in range(10):
        call = make(name, seed)
        with torch.inference_mode():
            assert call.is_right(call.run())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", MAKERS)
def test_operands_of_another_shape(name: str, change: object) -> None:
    """Each operand shorter, longer, strided, at the end of its memory, empty, of more and fewer
    dimensions."""
    assert callable(change)
    for seed in range(3):
        call = make(name, seed)
        for operand, tensor in call.tensors.items():
            for dim in range(tensor.ndim):
                with torch.inference_mode():
                    assert_right_or_refused(call.with_tensor(operand, change(tensor, dim)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_operands_of_another_type(name: str, dtype: torch.dtype) -> None:
    """A float32 bias beside bfloat16 weights was once read as twice as many bfloat16 numbers."""
    for seed in range(3):
        call = make(name, seed)
        for operand, tensor in call.tensors.items():
            with torch.inference_mode():
                assert_right_or_refused(call.with_tensor(operand, tensor.to(dtype)))


@pytest.mark.usefixtures("isa")
def test_calls_at_random() -> None:
    """Several changes at once, which nobody thought of. Under the address sanitizer nothing may be
    reported."""
    rng = random.Random(0)
    torch.manual_seed(0)
    for _ in range(NUM_CALLS):
        call = MAKERS[rng.choice(list(MAKERS))](rng)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            operand, tensor = rng.choice(list(call.tensors.items()))
            if rng.random() < 0.3:
                call = call.with_tensor(operand, tensor.to(rng.choice(DTYPES)))
            elif tensor.numel() and tensor.ndim:
                call = call.with_tensor(
                    operand, rng.choice(CHANGES)(tensor, rng.randrange(tensor.ndim))
                )
        with torch.inference_mode():
            assert_right_or_refused(call)


def test_attention_needs_a_key_for_every_row_and_value() -> None:
    """Fewer values than keys, fewer keys than rows, lengths that do not add up: no kernel for any
    of them."""
    q, keys, values = numbers(4, 2, 16), numbers(1, 9, 16), numbers(1, 9, 16)
    assert operands.fit_attend(q, [4], [keys], [values], True)
    for lengths, some_keys, some_values in (
        ([4], [keys], [values[:, :5]]),
        ([4], [keys[:, :3]], [values[:, :3]]),
        ([3], [keys], [values]),
        ([4, 0], [keys, keys], [values, values]),
        ([2, 2], [keys], [values]),
        ([4], [], []),
        ([2, 2], [keys, keys[:, ::2]], [values, values[:, ::2]]),
        ([4], [keys.repeat(3, 1, 1)], [values.repeat(3, 1, 1)]),
        ([4], [keys[..., :12]], [values[..., :12]]),
    ):
        assert not operands.fit_attend(q, lengths, some_keys, some_values, True), (
            lengths,
            len(some_keys),
        )


def test_rows_of_codes_are_read_whole() -> None:
    """The first columns of a wider matrix may be given, but not its last ones: nothing lies behind
    the last row."""
    x, scale = numbers(1, 64), torch.rand(3, dtype=torch.float32)
    codes = torch.zeros(3, 64, dtype=torch.uint8)
    wider = torch.zeros(3, 72, dtype=torch.uint8)
    assert operands.fit_linear_int8(x, wider[:, :64], scale, None)
    assert not operands.fit_linear_int8(x, end_of_storage(codes, 1), scale, None)
    assert not operands.fit_linear_int8(x, codes[:1].expand(3, 64), scale, None)


def test_subclasses_and_gradients_stay_with_torch() -> None:
    """A subclass may keep its numbers elsewhere; a kernel has no gradient, not even of a bias."""
    x, weight, bias = numbers(2, 8), numbers(4, 8), numbers(4)
    assert operands.fit_linear(x, weight, bias)
    assert operands.fit_linear(x, torch.nn.Parameter(weight, requires_grad=False), bias)
    assert not operands.fit_linear(x.as_subclass(type("Other", (torch.Tensor,), {})), weight, bias)
    assert not operands.fit_linear(x, weight, bias.clone().requires_grad_())
    assert not operands.fit_linear(x.to("meta"), weight, bias)
    assert not operands.fit_linear(x, weight.to_sparse(), bias)


def test_freed_memory_is_not_read() -> None:
    """Sharded training frees the storage of a weight between its uses; reading it ended the
    process."""
    x, weight, cache = numbers(2, 8), numbers(4, 8), numbers(1, 9, 16)
    weight.untyped_storage().resize_(0)
    cache.untyped_storage().resize_(2 * 8 * 16)
    assert not operands.fit_linear(x, weight, None)
    assert not operands.fit_attend(numbers(4, 2, 16), [4], [cache], [cache], True)
    with pytest.raises(RuntimeError, match="storage"):
        ops.linear(x, weight)


def test_followed_operations_are_torchs() -> None:
    """Forward-mode gradients were lost, and a trace held numbers that nobody had computed."""
    x, weight = numbers(2, 8), numbers(4, 8)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(ops.linear(dual, weight)).tangent
        assert torch.equal(tangent, F.linear(torch.ones_like(x), weight))
    with torch.no_grad():
        traced = torch.jit.trace(lambda rows: ops.linear(rows, weight), (x,))
        assert torch.equal(traced(2 * x), F.linear(2 * x, weight))
        assert torch.equal(
            torch.func.vmap(lambda row: ops.linear(row, weight))(x), F.linear(x, weight)
        )
        _, derivative = torch.func.jvp(lambda rows: ops.linear(rows, weight), (x,), (x,))
        assert torch.equal(derivative, F.linear(x, weight))


def sequence(capacity: int = 8, length: int = 3, rows: int = 2) -> tuple[torch.Tensor, int, int]:
    return numbers(3, 2, 1, capacity, 16), length, rows


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a cache without room", {"sequences": [sequence(capacity=4)]}),
        ("rows of nobody", {"sequences": [sequence(rows=1)]}),
        ("a negative length", {"sequences": [sequence(length=-1)]}),
        ("no sequence", {"sequences": []}),
        ("a cache of another number of layers", {"sequences": [(numbers(2, 2, 1, 8, 16), 3, 2)]}),
        (
            "a cache of another type",
            {"sequences": [(numbers(3, 2, 1, 8, 16, dtype=torch.float32), 3, 2)]},
        ),
        ("a strided cache", {"sequences": [(numbers(3, 2, 1, 16, 16)[:, :, :, ::2], 3, 2)]}),
        ("a shorter rotation", {"rotation": (numbers(1, 1, 8), numbers(1, 1, 8))}),
        (
            "cosines and sines of two types",
            {"rotation": (numbers(2, 1, 8), numbers(2, 1, 8, dtype=torch.float32))},
        ),
        ("a row of another width", {"x": numbers(2, 48)}),
        ("rows of float32", {"x": numbers(2, 32, dtype=torch.float32)}),
        ("strided rows", {"x": numbers(2, 64)[:, ::2]}),
        ("heads that do not share evenly", {"num_heads": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decode_steps_aside(what: str, change: dict[str, object]) -> None:
    """All layers in one call: nothing of it may be read or written where a size does not fit."""
    fitting = {
        "x": numbers(2, 32),
        "num_layers": 3,
        "rotation": (numbers(2, 1, 8), numbers(2, 1, 8)),
        "sequences": [sequence()],
        "num_heads": 2,
    }
    assert operands.fit_decode(**fitting)
    assert not operands.fit_decode(**fitting | change), what
    rest = {key: value for key, value in (fitting | change).items() if key != "num_layers"}
    table = array("q", [0] * 3 * ops.NUMBERS_OF_LAYER)
    assert not ops.decode(layers=table, eps=1e-6, **rest)


def test_a_product_is_what_it_says() -> None:
    """The one-call decoder reads layers by their numbers: these must be those of the tensors."""
    weight, bias = numbers(4, 32), numbers(4)
    assert operands.fit_product(ops.Product(weight, None, None, bias, 16, 32, 4), 32, 4)
    assert not operands.fit_product(ops.Product(weight, None, None, bias, 16, 32, 4), 32, 8)
    assert not operands.fit_product(ops.Product(weight, None, None, bias[:3], 16, 32, 4), 32, 4)
    assert not operands.fit_product(ops.Product(weight, None, None, bias, 16, 16, 4), 16, 4)
    codes, scale = torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, dtype=torch.float32)
    assert operands.fit_product(ops.Product(codes, scale, None, bias, 8, 32, 4, 32), 32, 4)
    assert not operands.fit_product(ops.Product(codes, scale, None, bias, 8, 32, 4, 64), 32, 4)
    assert not operands.fit_product(ops.Product(codes, scale[:3], None, bias, 8, 32, 4, 32), 32, 4)
    assert not operands.fit_product(ops.Product(codes, None, None, bias, 8, 32, 4, 32), 32, 4)
    packed, scales = torch.zeros(4, 64, dtype=torch.uint8), torch.ones(4, 2, dtype=torch.float16)
    assert operands.fit_product(ops.Product(packed, scales, None, bias, 4, 128, 4, 64), 128, 4)
    assert not operands.fit_product(ops.Product(packed, scales, None, bias, 4, 128, 4, 128), 128, 4)
    zeros = torch.zeros(1, 2, dtype=torch.int32)
    assert operands.fit_product(ops.Product(packed, scales, zeros, bias, 4, 128, 4, 64), 128, 4)
    for wrong in (zeros[:, :1], zeros.long(), zeros[:0], zeros[0]):
        product = ops.Product(packed, scales, wrong, bias, 4, 128, 4, 64)
        assert not operands.fit_product(product, 128, 4)
    assert not operands.fit_product(ops.Product(codes, scale, zeros, bias, 8, 32, 4, 32), 32, 4)
    assert not operands.fit_product(ops.Product(weight, None, zeros, bias, 16, 32, 4), 32, 4)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("width", [96, 128, 255, 384])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_embeddings_of_another_width(width: int, dtype: torch.dtype) -> None:
    """Narrower ones once ended the process with a corrupted heap, wider ones gave logits."""
    model = qwen25vl.load().model.to(dtype)
    with torch.inference_mode(), pytest.raises(UsageError, match=f"{width}.*expected .tokens, 256"):
        model(inputs_embeds=torch.zeros(1, 8, width, dtype=dtype))


@pytest.mark.usefixtures("isa")
def test_a_bias_of_another_type_is_no_bias_of_bfloat16() -> None:
    """A partly upcast model once computed with the bytes of its float32 bias."""
    model = qwen25vl.load().model
    projection = model.model.language_model.layers[0].self_attn.q_proj
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(8)[None]).logits
        right = projection.bias
        projection.bias = torch.nn.Parameter(right.float(), requires_grad=False)
        with pytest.raises(RuntimeError, match="type"):
            model(input_ids=torch.arange(8)[None])
        cache = KVCache(model.config.text_config, BF16)
        with pytest.raises(RuntimeError, match="type"):
            model.model.language_model.run(
                numbers(1, 256), torch.zeros(3, 1, dtype=torch.long), [1], [cache]
            )
        projection.bias = right
        assert torch.equal(model(input_ids=torch.arange(8)[None]).logits, logits)

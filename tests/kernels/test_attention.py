"""Compiled attention against the equation in float64: ragged segments, shared heads, caches, and
every row alone."""

import random

import pytest
import torch

from qwen25vl.kernels import library, ops
from qwen25vl.model.attention import eager, sdpa

Segments = list[tuple[torch.Tensor, torch.Tensor]]
CASES = [  # query heads, key heads, head size, rows of each segment, causal
    (4, 4, 80, (64, 64, 17, 1), False),
    (8, 2, 128, (130, 3, 1), True),
    (16, 2, 128, (1, 1, 1, 1), True),
    (6, 2, 32, (200,), True),
    (4, 4, 64, (700,), False),
    (28, 4, 128, (1, 5, 33), True),
    (4, 1, 40, (50, 33), True),
]


def with_past(lengths: tuple[int, ...], num_heads: int, size: int, causal: bool) -> Segments:
    """Keys and values inside a larger cache, whose rest is NaN: what is not asked for must not be
    used."""
    segments = []
    for index, length in enumerate(lengths):
        num_keys = length + (0, 600, 37)[index % 3] * causal
        cache = torch.full((2, num_heads, num_keys + 9, size), float("nan"), dtype=torch.bfloat16)
        cache[:, :, :num_keys] = torch.randn(2, num_heads, num_keys, size)
        segments.append((cache[0, :, :num_keys], cache[1, :, :num_keys]))
    return segments


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("heads", "kv_heads", "size", "lengths", "causal"), CASES)
def test_attention(
    heads: int, kv_heads: int, size: int, lengths: tuple[int, ...], causal: bool
) -> None:
    """Near the equation, and each segment and each row has the same bits alone as in the batch."""
    torch.manual_seed(size)
    q = torch.randn(sum(lengths), 3, heads, size).bfloat16()[:, 0]
    segments = with_past(lengths, kv_heads, size, causal)
    keys, values = zip(*segments, strict=True)
    assert library.function("attend")
    with torch.inference_mode():
        mixed = ops.attend(q, lengths, keys, values, causal)
        assert mixed is not None
        for rows, got, (k, v) in zip(q.split(lengths), mixed.split(lengths), segments, strict=True):
            wanted = eager(
                rows.transpose(0, 1)[None].double(), k[None].double(), v[None].double(), causal
            )
            assert (got - wanted[0].transpose(0, 1)).abs().max() <= 0.01 * wanted.abs().max()
            alone = ops.attend(rows, [len(rows)], [k], [v], causal)
            assert alone is not None
            assert torch.equal(got, alone)
            middle = len(rows) // 2
            seen = k.shape[1] - (len(rows) - 1 - middle) * causal
            one = ops.attend(rows[middle, None], [1], [k[:, :seen]], [v[:, :seen]], causal)
            assert one is not None
            assert torch.equal(got[middle, None], one)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("seed", range(24))
def test_shapes_at_random(seed: int) -> None:
    """Every size of group and head, whole blocks of keys and odd ends, one row and several: the
    same alone."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kv_heads, group, size = (
        rng.choice((1, 2)),
        rng.choice((1, 2, 3, 5, 7, 8, 12)),
        rng.choice((32, 40, 64, 80, 128)),
    )
    causal = rng.random() < 0.7
    lengths = [rng.choice((1, 1, 2, rng.randint(1, 70))) for _ in range(rng.choice((1, 2, 4)))]
    pasts = [rng.choice((0, 1, 127, 128, 511, 512, 700)) * causal for _ in lengths]
    q = torch.randn(sum(lengths), kv_heads * group, size).bfloat16()
    segments = [
        torch.randn(2, kv_heads, past + n, size).bfloat16()
        for past, n in zip(pasts, lengths, strict=True)
    ]
    mixed = ops.attend(q, lengths, [s[0] for s in segments], [s[1] for s in segments], causal)
    assert mixed is not None
    for rows, got, past, (k, v) in zip(
        q.split(lengths), mixed.split(lengths), pasts, segments, strict=True
    ):
        wanted = eager(
            rows.transpose(0, 1)[None].double(), k[None].double(), v[None].double(), causal
        )
        assert (got - wanted[0].transpose(0, 1)).abs().max() <= 0.01 * wanted.abs().max()
        for row in {0, len(rows) - 1}:
            seen = past + row + 1 if causal else len(rows)
            one = ops.attend(rows[row, None], [1], [k[:, :seen]], [v[:, :seen]], causal)
            assert one is not None
            assert torch.equal(got[row, None], one)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [200, 3e4, 1e6])
@pytest.mark.parametrize("rows", [1, 20])
def test_large_scores(rows: int, size: float) -> None:
    """A softmax that chooses one key: nothing overflows, nothing is lost. A shift that was rounded
    by itself once left an exponent above 0, up to infinity."""
    torch.manual_seed(rows)
    q, k, v = (torch.randn(4, n, 64) for n in (rows, 700, 700))
    q, k, v = (q * size).bfloat16(), (k * size).bfloat16(), v.bfloat16()
    mixed = ops.attend(q.transpose(0, 1), [rows], [k], [v], True)
    wanted = eager(q[None].double(), k[None].double(), v[None].double(), True)[0].transpose(0, 1)
    assert mixed is not None
    assert (mixed - wanted).abs().max() <= 0.01 * wanted.abs().max()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("operand", [0, 1, 2])
def test_nan_is_not_swallowed(operand: int, rows: int) -> None:
    """The processor's max(NaN, c) is c: a broken key once gave a plausible answer instead of
    NaN."""
    q, k, v = (torch.randn(4, n, 64).bfloat16() for n in (rows, 200, 200))
    (q, k, v)[operand][:, 0] = float("nan")
    mixed = ops.attend(q.transpose(0, 1), [rows], [k], [v], False)
    assert mixed is not None
    assert torch.equal(
        mixed.isnan(), eager(q[None], k[None], v[None], False)[0].transpose(0, 1).isnan()
    )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize(("group", "rows", "past", "size"), [
    (1, 8, 120, 64), (1, 33, 500, 40), (2, 40, 0, 128), (7, 30, 700, 64), (3, 3, 126, 32),
])  # fmt: skip
def test_a_row_knows_nothing_of_later_values(
    group: int, rows: int, past: int, size: int, broken: float
) -> None:
    """A value that a row may not see has the probability 0, and 0 · ∞ is NaN: one broken token made
    the tokens before it NaN too, as far as they lay in its block of keys."""
    torch.manual_seed(rows)
    q = torch.randn(rows, 2 * group, size).bfloat16()
    keys, values = torch.randn(2, 2, past + rows, size).bfloat16()
    whole = ops.attend(q, [rows], [keys], [values], True)
    assert whole is not None
    for token in (1, rows // 2, rows - 1):
        damaged = values.clone()
        damaged[1, past + token, size - 1] = broken
        mixed = ops.attend(q, [rows], [keys], [damaged], True)
        assert mixed is not None
        assert torch.equal(mixed[:token], whole[:token])
        changed = ~mixed[token:].isfinite()
        assert changed[:, group:, size - 1].all(), "those that see it must not hide it"
        assert changed.sum() == changed[:, group:, size - 1].numel()
        assert torch.equal(mixed[token:][~changed], whole[token:][~changed])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [1, 3])
def test_the_number_of_threads_changes_nothing(rows: int) -> None:
    """The keys of a long context are shared out among threads at places that only its length
    decides."""
    q, cache = torch.randn(rows, 8, 64).bfloat16(), torch.randn(2, 2, 2000, 64).bfloat16()
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(ops.attend(q, [rows], [cache[0]], [cache[1]], True))
    finally:
        torch.set_num_threads(before)
    assert results[0] is not None
    assert all(torch.equal(results[0], other) for other in results[1:] if other is not None)


@pytest.mark.parametrize(("length", "count"), [(64, 9), (16, 4), (1024, 2), (300, 3)])
def test_torch_keeps_the_bits_of_a_segment(length: int, count: int) -> None:
    """torch may serve windows and frames where it is faster: a segment has the same bits alone and
    among others.

    A tower without that would make an answer depend on the other pictures of its batch.
    """
    torch.manual_seed(length)
    qkv = torch.randn(count, length, 3, 4, 80).bfloat16()
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # as the encoder has them
    together = sdpa(q, k, v, False)
    alone = [sdpa(q[i, None], k[i, None], v[i, None], False) for i in range(count)]
    assert torch.equal(together, torch.cat(alone))

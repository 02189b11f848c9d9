"""The kernels called from several Python threads at once: each call has the bits that it has
alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from operations import MAKERS, make, numbers

from qwen25vl.kernels import ops

NUM_CALLERS, REPEATS = 4, 4
INPUTS, OUTPUTS, NUM_KEYS = 2048, 512, 1500
Work = Callable[[], torch.Tensor | None]


def works(caller: int) -> list[Work]:
    """The same operations for every caller, on numbers of its own: long products of one row, of few
    and of many, attention over a long context, and everything else on small operands."""
    torch.manual_seed(0)
    weight = numbers(OUTPUTS, INPUTS)
    codes = torch.randint(0, 256, (OUTPUTS, INPUTS), dtype=torch.uint8)
    packed = torch.randint(0, 256, (OUTPUTS, INPUTS // 2), dtype=torch.uint8)
    scale, scales = torch.rand(OUTPUTS), torch.rand(OUTPUTS, INPUTS // 32).half()
    keys, values = numbers(2, NUM_KEYS, 64), numbers(2, NUM_KEYS, 64)
    torch.manual_seed(caller)
    large: list[Work] = []
    for rows in (1, 9, 50):
        x, q = numbers(rows, INPUTS), numbers(rows, 8, 64)
        large += [
            lambda x=x: ops.linear(x, weight),
            lambda x=x: ops.linear_int8(x, codes, scale),
            lambda x=x: ops.linear_int4(x, packed, scales),
            lambda q=q: ops.attend(q, [len(q)], [keys], [values], True),
        ]
    return large + [make(name, 10 * caller + seed).run for name in MAKERS for seed in range(2)]


@pytest.mark.usefixtures("isa")
def test_bits_of_several_callers() -> None:
    """Scratch memory belongs to the calling thread. One buffer for all callers gave numbers of
    another request, or ended the process."""
    calls = [works(caller) for caller in range(NUM_CALLERS)]
    with torch.inference_mode():
        alone = [[work() for work in mine] for mine in calls]
    together = threading.Barrier(NUM_CALLERS, timeout=60)

    def call_all(caller: int) -> list[int]:
        torch.set_num_threads(2)
        wrong = []
        with torch.inference_mode():
            for index, work in enumerate(calls[caller]):
                together.wait()
                for _ in range(REPEATS):
                    got, wanted = work(), alone[caller][index]
                    assert got is not None
                    assert wanted is not None
                    if not torch.equal(got.nan_to_num(), wanted.nan_to_num()):
                        wrong.append(index)
        return wrong

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(NUM_CALLERS) as pool:
            assert list(pool.map(call_all, range(NUM_CALLERS))) == [[]] * NUM_CALLERS
    finally:
        torch.set_num_threads(before)

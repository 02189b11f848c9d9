"""The kernels called from several Python threads at once: each call has the bits that it has alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from operations import MAKERS, make, numbers

from qwen25vl.kernels import ops

NUM_CALLERS, ROUNDS = 4, 3
Work = Callable[[], torch.Tensor]


def works() -> list[Work]:
    """Every operation on small operands, and products of few and of many rows that take several
    parts."""
    small = [make(name, seed).run for name in MAKERS for seed in range(4)]
    torch.manual_seed(0)
    weight, codes = numbers(200, 300), torch.randint(0, 256, (200, 300), dtype=torch.uint8)
    packed = torch.randint(0, 256, (200, 160), dtype=torch.uint8)
    scale, scales = torch.rand(200), torch.rand(200, 10).half()
    keys, values = numbers(2, 1500, 64), numbers(2, 1500, 64)
    large: list[Work] = []
    for rows in (1, 9, 70):
        x, q = numbers(rows, 300), numbers(rows, 8, 64)
        large += [
            lambda x=x: ops.linear(x, weight),
            lambda x=x: ops.linear_int8(x, codes, scale),
            lambda x=x: ops.linear_int4(x, packed, scales),
            lambda q=q: ops.attend(q, [len(q)], [keys], [values], True),
        ]
    return small + large


@pytest.mark.usefixtures("isa")
def test_bits_of_several_callers() -> None:
    """Scratch memory belongs to the calling thread. One buffer for all callers gave numbers of
    another request, or ended the process."""
    calls = works()
    with torch.inference_mode():
        alone = [work() for work in calls]
    together = threading.Barrier(NUM_CALLERS)

    def call_all(caller: int) -> list[int]:
        torch.set_num_threads(2)
        wrong = []
        together.wait()
        with torch.inference_mode():
            for turn in range(ROUNDS):
                for i in range(len(calls)):
                    index = (i * (caller + 1) + turn * 7 + caller * 11) % len(calls)
                    if not torch.equal(calls[index]().nan_to_num(), alone[index].nan_to_num()):
                        wrong.append(index)
        return wrong

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(NUM_CALLERS) as pool:
            assert list(pool.map(call_all, range(NUM_CALLERS))) == [[]] * NUM_CALLERS
    finally:
        torch.set_num_threads(before)

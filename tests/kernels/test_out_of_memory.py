"""A kernel that finds no memory says so: no allocation that fails may end the process, or leave
wrong numbers behind.

An exception inside a parallel region cannot be caught. A large product beside a full memory once
ended in `std::terminate`, and with it the notebook or the server that had asked for it.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operations import MAKERS, make, numbers
from test_decoding import WEIGHTS, make_model, step

from qwen25vl.errors import OutOfMemoryError
from qwen25vl.kernels import library as kernel_library
from qwen25vl.kernels import ops, pictures

is_built = kernel_library.open_library()[0] is not None
pytestmark = pytest.mark.skipif(not is_built, reason="the kernels were not built here")


def in_fresh_thread(work: Callable[[], Any]) -> Any:
    """The result of `work`, or what it raised, in a thread whose scratch memory is still to be
    taken."""
    results: list[Any] = []

    def run() -> None:
        try:
            with torch.inference_mode():
                results.append(work())
        except OutOfMemoryError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def count_failures(work: Callable[[], torch.Tensor]) -> int:
    """Let the first allocation fail, then the second, and so on: how many there were.

    Every failure must raise, and the work must give its right result afterwards, in the same
    thread.
    """
    library = kernel_library.open_library()[0]
    assert library is not None
    with torch.inference_mode():
        wanted = work()

    def work_with_failure(number: int) -> Any:
        library.fail_allocation(number)
        try:
            return work()
        except OutOfMemoryError as error:
            assert torch.equal(work(), wanted)
            return error
        finally:
            library.fail_allocation(-1)

    for number in range(100):
        result = in_fresh_thread(lambda number=number: work_with_failure(number))
        if not isinstance(result, OutOfMemoryError):
            assert torch.equal(result, wanted)
            return number
    raise AssertionError("100 allocations in one call")


@pytest.fixture(autouse=True)
def _two_threads() -> Any:
    """Other threads' scratch memory must be there too when a parallel region begins."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", range(4))
def test_every_allocation_of_every_operation(name: str, seed: int) -> None:
    """Small shapes at random."""
    call = make(name, seed)
    num_failures = count_failures(call.run)
    takes_none = name in ("rms_norm", "silu_mul", "rotate")
    is_same_size = name == "resize" and call.run().shape == call.tensors["frames"].shape
    assert (num_failures == 0) == (takes_none or is_same_size), num_failures


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [1, 10, 70])
def test_every_allocation_of_large_layers(rows: int) -> None:
    """Few rows, some and many take other memory; so do inputs that come in chunks."""
    x, weight = numbers(rows, 4096), numbers(96, 4096)
    codes, scale = (
        torch.randint(0, 256, (96, 4096), dtype=torch.uint8),
        torch.rand(96, dtype=torch.float32),
    )
    packed, scales = codes[:, :2048].contiguous(), torch.rand(96, 32, dtype=torch.float32).half()
    assert count_failures(lambda: ops.linear(x, weight)) > 0
    assert count_failures(lambda: ops.linear_int8(x, codes, scale)) > 1
    assert count_failures(lambda: ops.linear_int4(x, packed, scales)) > 1


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_allocation_of_a_step(weights: str) -> None:
    """All layers in one call: the call before and the kernels within."""
    model = make_model(WEIGHTS[weights])
    assert count_failures(lambda: step(model, [2, 1])[0]) > 3


@pytest.mark.usefixtures("isa")
def test_every_allocation_of_long_attention() -> None:
    """Parts of a long context that different threads compute."""
    q, keys, values = numbers(1, 4, 64), numbers(2, 3000, 64), numbers(2, 3000, 64)

    def work() -> torch.Tensor:
        mixed = ops.attend(q, [1], [keys], [values], True)
        assert mixed is not None
        return mixed

    assert count_failures(work) > 2


LIMITED = """
import resource, sys, torch
from pathlib import Path
from qwen25vl.errors import OutOfMemoryError
from qwen25vl.kernels import ops, pictures

def work():
    if sys.argv[1] == "product":
        return ops.linear(x, weight)
    return pictures.resize(frames, 100, 2000)

def set_limit(size):
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

def fill_memory():
    taken = []
    for size in (1 << 24, 1 << 20):
        try:
            while True:
                taken.append(bytearray(size))
        except MemoryError:
            pass
    return taken

with torch.inference_mode():
    torch.set_num_threads(2)
    x = torch.ones(4000, 11008, dtype=torch.bfloat16)
    weight = torch.ones(256, 11008, dtype=torch.bfloat16)
    frames = torch.zeros(1, 6000, 2000, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    ops.linear(x[:40, :64].contiguous(), weight[:, :64].contiguous())  # the threads are there
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    set_limit(num_pages * resource.getpagesize() + (1 << 25))
    taken = fill_memory()
    del taken[-4:]  # room for the result, not for the scratch memory
    try:
        work()
    except OutOfMemoryError as error:
        set_limit(resource.RLIM_INFINITY)
        print(error, work().shape)
"""


@pytest.mark.parametrize("what", ["product", "resize"])
def test_a_full_address_space(what: str) -> None:
    """The same by the system's own limit, in a process of its own: it used to end with a signal."""
    if kernel_library.choose().isa == "torch":
        pytest.skip("there are no kernels here")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer needs an address space without a limit")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, what], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    name = {"product": "linear_bf16", "resize": "resize_frames"}[what]
    assert done.stdout.startswith(f"out of memory in {name}"), done.stdout


def test_pictures_say_it_too() -> None:
    """The door for pictures is another one."""
    library = kernel_library.open_library()[0]
    assert library is not None
    frames = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    library.fail_allocation(0)
    try:
        with pytest.raises(OutOfMemoryError, match=r"resize_frames.*try a model in int4"):
            pictures.resize(frames, 4, 4)
    finally:
        library.fail_allocation(-1)

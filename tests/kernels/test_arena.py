"""The memory of large results: used again without page faults, and never more than was live at one
moment."""

import gc
import os
import random
import resource
import subprocess
import sys
import threading

import pytest
import torch

from qwen25vl.kernels import arena as arena_module
from qwen25vl.kernels.allocator import ARENA_BYTES, empty, empty_as
from qwen25vl.kernels.arena import HUGE_PAGE_BYTES, Arena
from qwen25vl.memory import process_bytes

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or arena_module.has_limited_addresses(),
    reason="the arena is for Linux, without a limit of addresses",
)
MIB = 2**20


def take(arena: Arena, num_bytes: int, value: int | None = None) -> torch.Tensor:
    tensor = arena.empty((num_bytes,), torch.uint8, num_bytes)
    assert tensor is not None
    return tensor if value is None else tensor.fill_(value)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


# The address sanitizer keeps pages and addresses of its own.
without_sanitizer = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer takes memory of its own"
)


def run(program: str) -> None:
    """In a process of its own, which must end well and say nothing."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@without_sanitizer
def test_a_result_takes_the_place_of_the_last_one() -> None:
    """Mapped afresh, every result of 40 MB takes 20 faults of huge pages or 9,766 of small ones."""
    arena = Arena()
    places = set()
    for turn in range(6):
        if turn == 1:
            before = faults()
        tensor = take(arena, 40 * MIB, turn)
        places.add(tensor.data_ptr())
        del tensor
    assert len(places) == 1
    assert faults() - before < 20


@without_sanitizer
def test_a_layer_takes_no_new_pages() -> None:
    """Results of several sizes, freed in another order: the second round must find room for all."""
    arena = Arena()

    def layer(x: torch.Tensor) -> torch.Tensor:
        normed, qkv = take(arena, 14 * MIB, 1), take(arena, 42 * MIB, 2)
        q, k = take(arena, 14 * MIB, 3), take(arena, 14 * MIB, 4)
        mixed = take(arena, 14 * MIB, 5)
        del qkv, q, k, normed
        y, normed = take(arena, 14 * MIB, 6), take(arena, 14 * MIB, 7)
        for _ in range(5):
            gate, up = take(arena, 7 * MIB, 8), take(arena, 7 * MIB, 9)
            both = take(arena, 7 * MIB, 10)
            del gate, up, both
        assert int(x[0]) == 0
        assert (int(mixed[-1]), int(y[-1]), int(normed[-1])) == (5, 6, 7)
        return take(arena, 14 * MIB, 0)

    x = layer(layer(take(arena, 14 * MIB, 0)))
    before = faults()
    for _ in range(4):
        x = layer(x)
    assert faults() - before < 20


def test_any_sequence_keeps_numbers_and_stays_below_its_peak() -> None:
    """Two results in one place, bytes counted twice, or free memory beyond the peak."""
    rng, arena, held = random.Random(0), Arena(), {}
    for turn in range(3000):
        if held and rng.random() < 0.5:
            value = rng.choice(list(held))
            tensor = held.pop(value)
            assert int(tensor.min()) == int(tensor.max()) == value % 251
            del tensor
        else:
            tensor = take(arena, rng.choice((1, 3, 5, 8, 13)) * MIB + rng.randrange(MIB))
            held[turn] = tensor.fill_(turn % 251)
            del tensor
        if len(held) > 8:
            held.clear()
        spans = [span for region in arena.regions for span in region.spans]
        assert sum(span.size for span in spans if span.is_resident) == arena.resident_bytes
        parts = [*spans, *arena.live.values()]
        assert sum(part.stop - part.start for part in parts) == sum(
            region.whole.size for region in arena.regions
        )
        pieces = 2 * HUGE_PAGE_BYTES * (len(arena.live) + 1)  # beside each live block
        assert arena.live_bytes + arena.resident_bytes <= arena.peak_bytes + pieces


def test_free_memory_makes_way_for_a_larger_result() -> None:
    """Three free blocks of 64 MiB and a new one of 192 would be twice what was ever needed."""
    arena = Arena()
    before = process_bytes()["anonymous"]
    blocks = [take(arena, 64 * MIB, 1) for _ in range(3)]
    kept = take(arena, MIB, 1)
    assert process_bytes()["anonymous"] - before > 180 * MIB
    blocks.clear()
    large = take(arena, 200 * MIB, 1)
    assert process_bytes()["anonymous"] - before < 220 * MIB
    del large
    arena.release()
    assert process_bytes()["anonymous"] - before < 20 * MIB
    assert int(kept.sum()) == MIB


def test_what_is_idle_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "MAX_IDLE_BYTES", 32 * MIB)
    arena = Arena()
    blocks = [take(arena, 20 * MIB) for _ in range(5)]
    blocks.clear()
    take(arena, 2 * MIB)
    assert 20 * MIB < arena.resident_bytes <= 32 * MIB


def test_unused_addresses_are_given_back() -> None:
    arena = Arena()
    tensor = take(arena, 2**30 + HUGE_PAGE_BYTES)
    small = take(arena, MIB)
    assert len(arena.regions) == 2
    del tensor
    arena.release()
    assert len(arena.regions) == 1
    del small
    arena.release()
    assert not arena.regions


def test_a_view_keeps_the_memory() -> None:
    arena = Arena()
    tensor = take(arena, 4 * MIB, 5)
    view = tensor[3:9]
    del tensor
    other = take(arena, 4 * MIB, 6)
    assert view.tolist() == [5] * 6
    assert int(other[0]) == 6


def test_tensors_are_ordinary() -> None:
    """A view of a buffer may not be changed in place under gradients."""
    x = torch.zeros(3, MIB, dtype=torch.bfloat16)
    with torch.no_grad():
        tensor = empty((2, 3, MIB), x)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((2, 3, MIB), x.dtype, True)
    assert not tensor._is_view()
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert tensor.data_ptr() % 64 == 0
    tensor.zero_().mul_(torch.ones(1, dtype=x.dtype, requires_grad=True))
    assert tensor.requires_grad
    with torch.inference_mode():
        assert empty_as(x).is_inference()
    small = torch.zeros(ARENA_BYTES // 2 - 1, dtype=torch.bfloat16)
    assert empty_as(small).shape == small.shape


def test_freeing_waits_for_nobody() -> None:
    """The garbage collector may find a tensor while its own thread holds the lock."""
    arena = Arena()
    cycle: list[object] = [take(arena, MIB)]
    cycle.append(cycle)
    del cycle
    with arena.lock:
        gc.collect()
    assert arena.live_bytes == MIB
    arena.release()
    assert arena.live_bytes == 0


def test_threads() -> None:
    arena, wrong = Arena(), []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: list[torch.Tensor] = []
        for _ in range(150):
            held.append(take(arena, rng.randrange(MIB, 3 * MIB), seed))
            if len(held) > 3:
                tensor = held.pop(rng.randrange(4))
                wrong.extend({int(tensor.min()), int(tensor.max())} - {seed})

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    arena.release()
    assert (arena.live_bytes, arena.regions) == (0, [])


def test_a_forked_process_has_its_own() -> None:
    run("""
import os, torch
from qwen25vl.kernels.allocator import empty
from qwen25vl.memory import release_free_memory
torch.set_num_threads(1)  # OpenMP's threads do not exist in a forked process
x = torch.zeros(4_000_000)
tensor = empty((4_000_000,), x).fill_(1)
child = os.fork()
for _ in range(3):
    other = empty((8_000_000,), x).fill_(2 + bool(child))
    release_free_memory()
assert tensor[-1] == 1 and other[-1] == 2 + bool(child)
del tensor, other
release_free_memory()
if child:
    assert os.waitpid(child, 0)[1] == 0
""")


def test_a_fork_waits_for_other_threads() -> None:
    """A lock that another thread held would stay locked in the new process for ever."""
    run("""
import os, signal, threading, time, torch
from qwen25vl.kernels.allocator import empty
from qwen25vl.kernels.arena import ARENA
torch.set_num_threads(1)
x = torch.zeros(4_000_000)
empty((4_000_000,), x)
def hold():
    with ARENA.lock:
        time.sleep(0.5)
threading.Thread(target=hold).start()
child = os.fork()
if child == 0:
    signal.alarm(5)
    empty((4_000_000,), x)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""")


def test_tensors_at_the_end_of_the_process() -> None:
    """Those in globals and in cycles are freed when little of the interpreter is left."""
    run("""
import torch
from qwen25vl.kernels.allocator import empty
x = torch.zeros(4_000_000)
kept = empty((4_000_000,), x)
cycle = [empty((4_000_000,), x)]
cycle.append(cycle)
""")


@without_sanitizer
@pytest.mark.parametrize("setting", ["limit", "refusal", "environment"])
def test_without_addresses_torch_serves(setting: str) -> None:
    """Where addresses are limited, an arena would take them from others; one that failed must not
    end the request."""
    prepare = {
        "limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**36, -1))",
        "refusal": "import mmap\ndef refuse(*_, **__): raise OSError\nmmap.mmap = refuse",
        "environment": "import os; os.environ['QWEN25VL_KEEP_MALLOC'] = '1'",
    }[setting]
    run(f"""
{prepare}
import torch
from qwen25vl.kernels.allocator import empty
from qwen25vl.kernels.arena import ARENA
from qwen25vl.memory import release_free_memory
tensor = empty((8_000_000,), torch.zeros(1)).fill_(1)
assert tensor.sum() == 8_000_000 and not ARENA.regions
release_free_memory()
""")

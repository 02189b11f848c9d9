"""The process-wide allocator setting."""

import subprocess
import sys
from pathlib import Path

import pytest

from qwen25vl.kernels.allocator import keep_large_buffers

COUNT_FAULTS = """
import resource, torch
from qwen25vl.kernels.allocator import keep_large_buffers
torch.set_num_threads(1)
keep_large_buffers()
for _ in range(5): torch.ones(10_000_000).add(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): torch.ones(10_000_000).add(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_large_results_reuse_their_pages() -> None:
    """Without the setting every result of 40 MB is mapped afresh: 9,766 page faults each."""
    if (
        not Path("/proc/self/maps").exists()
        or "libc.so.6" not in Path("/proc/self/maps").read_text()
    ):
        pytest.skip("the setting is for glibc on Linux")
    assert 4 * faults() < faults(QWEN25VL_KEEP_MALLOC="1")


def test_it_is_left_alone_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application may have its own allocator policy."""
    monkeypatch.setenv("QWEN25VL_KEEP_MALLOC", "1")
    keep_large_buffers.cache_clear()
    assert not keep_large_buffers()
    keep_large_buffers.cache_clear()

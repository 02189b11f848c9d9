"""What counts as free memory, from files that the test writes: a machine's and a container's."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen25vl import memory

CPU = torch.device("cpu")
FILES = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 400\nfile 200\n"}
MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\nHugePages_Total: 0\n"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group with a limit of 1000 bytes; the machine beside it has 10⁶."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "free_bytes_of_machine", lambda: 10**6)
    monkeypatch.setattr(memory, "mapped_bytes", lambda: 0)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def read_as(monkeypatch: pytest.MonkeyPatch, text: str | OSError) -> None:
    """Let /proc/meminfo hold a text, or be unreadable."""
    read = Path.read_text

    def pretend(path: Path, *rest: Any, **options: Any) -> str:
        if path != Path("/proc/meminfo"):
            return read(path, *rest, **options)
        if isinstance(text, OSError):
            raise text
        return text

    monkeypatch.setattr(Path, "read_text", pretend)


def test_a_container_has_its_limit_less_its_use_and_its_file_cache_back(group: Path) -> None:
    """Mapped weights are file cache. Without it counted back, a second model was refused in a
    container that had room for it."""
    assert memory.free_bytes_of_container() == 1000 - 700 + 200
    assert memory.available_bytes(CPU) == 500
    (group / "memory.stat").write_text("file_mapped 7\ninactive_file 3\nfile 1\nslab 9\n")
    assert memory.free_bytes_of_container() == 301


def test_weights_that_are_in_use_are_not_free(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were: requests could push the model out of memory, and each token read it again."""
    monkeypatch.setattr(memory, "mapped_bytes", lambda: 150)
    assert memory.available_bytes(CPU) == 500 - 150
    monkeypatch.setattr(memory, "mapped_bytes", lambda: 501)
    assert memory.available_bytes(CPU) == 0


def test_mapped_files_are_counted_once_they_are_read(tmp_path: Path) -> None:
    size = 32 * 2**20
    path = tmp_path / "weights"
    path.write_bytes(bytes(size))
    weights = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    before = memory.mapped_bytes()
    assert weights.sum() == 0
    assert memory.mapped_bytes() - before >= size * 0.9


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", [None, "", "max\n", "a lot\n"])
def test_a_group_that_tells_nothing_limits_nothing(
    name: str, text: str | None, group: Path
) -> None:
    """Without a limit ("max"), and on machines where a file is missing or written otherwise, the
    machine's own memory counts."""
    path = group / name
    path.unlink() if text is None else path.write_text(text)
    assert memory.free_bytes_of_container() is None
    assert memory.available_bytes(CPU) == 10**6


def test_the_smaller_of_the_two_counts(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit may be above what the machine has left."""
    (group / "memory.max").write_text(str(10**9))
    assert memory.available_bytes(CPU) == 10**6
    monkeypatch.setattr(memory, "free_bytes_of_machine", lambda: None)
    assert memory.available_bytes(CPU) == 10**9 - 500
    (group / "memory.max").write_text("max")
    assert memory.available_bytes(CPU) is None


def test_what_can_be_had_without_swapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """MemFree leaves out the file cache, and kB are 1024 bytes."""
    read_as(monkeypatch, MEMINFO)
    assert memory.free_bytes_of_machine() == 4000 * 1024


@pytest.mark.parametrize(
    "text",
    ["", "MemTotal: 9000 kB\n", "MemAvailable: ? kB\n", "no table", OSError("none")],
    ids=str,
)
def test_a_system_without_that_file(text: str | OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere all that is installed stands for what is free, or nothing is known."""
    read_as(monkeypatch, text)
    sizes = {"SC_PHYS_PAGES": 300, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", lambda name: sizes[name])
    assert memory.free_bytes_of_machine() == 300 * 4096
    monkeypatch.delattr(os, "sysconf")
    assert memory.free_bytes_of_machine() is None


def test_what_cannot_fit_is_refused_with_both_numbers(group: Path) -> None:
    """Exactly as much as is free still fits."""
    memory.require_bytes(500, CPU, "a request")
    with pytest.raises(memory.OutOfMemoryError, match=r"a request needs 0\.0 GB .* only 0\.0 GB"):
        memory.require_bytes(501, CPU, "a request")
    memory.require_bytes(10**15, torch.device("meta"), "a model without memory")

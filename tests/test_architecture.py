"""The plan of the house, enforced: who may import whom, how long a file may be, what an import may
cost."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwen25vl

SOURCE = Path(qwen25vl.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
COMMON = {"arguments", "config", "cost", "errors", "footprint", "inputs", "memory"}
MAY_IMPORT = {
    "arguments": {"errors"},
    "config": {"errors"},
    "cost": {"config"},
    "errors": set(),
    "footprint": {"config", "cost"},
    "inputs": set(),
    "memory": {"errors"},
    "kernels": COMMON,
    "model": COMMON | {"kernels"},
    "processing": COMMON | {"kernels"},
    "generation": COMMON | {"model"},
    "loading": COMMON | {"model", "processing", "generation", "kernels"},
    "grounding": COMMON,
}
DOORS = {  # methods of the ecosystem that open the room behind them when they are called
    ("config.py", "from_pretrained"): {"loading"},
    ("model/conditional_generation.py", "from_pretrained"): {"loading"},
    ("model/conditional_generation.py", "save_pretrained"): {"loading"},
    ("model/conditional_generation.py", "generate"): {"generation"},
    ("model/conditional_generation.py", "stream"): {"generation"},
    ("model/conditional_generation.py", "resolve_generation"): {"generation"},
    ("processing/processor.py", "from_pretrained"): {"loading"},
}


def imports(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    """(function it stands in, room) of every import from this package that runs; annotations'
    imports do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        inside = node.name if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen25vl."):
            yield inside, (node.module or "").split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (
                (inside, alias.name.split(".")[1])
                for alias in node.names
                if "qwen25vl." in alias.name
            )
        yield from imports(node, inside)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_import_law(path: Path) -> None:
    """A room that reaches back into an earlier one can no longer be read, tested or replaced
    alone."""
    name = path.relative_to(SOURCE).as_posix()
    room = name.split("/")[0].removesuffix(".py")
    if room not in MAY_IMPORT:
        return
    for function, target in imports(ast.parse(path.read_text(encoding="utf-8"))):
        allowed = MAY_IMPORT[room] | {room} | DOORS.get((name, function), set())
        assert target in allowed, f"{name} imports {target} in {function or 'the module'}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_is_one_idea(path: Path) -> None:
    """300 lines at most, and no drawer for leftovers."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    assert path.stem not in ("utils", "common", "helpers", "misc")


def test_import_is_instant_and_without_torch() -> None:
    """`qwen25vl --help` must not wait for torch."""
    program = (
        "import time, sys; start = time.perf_counter(); import qwen25vl; took = time.perf_counter() - start; "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(took)"
    )
    times = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3)]
    assert min(times) <= 0.1


def test_public_names_resolve() -> None:
    """A lazy name that leads nowhere fails only when somebody uses it."""
    assert all(callable(getattr(qwen25vl, name)) for name in qwen25vl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Qwen3'"):
        _ = qwen25vl.Qwen3

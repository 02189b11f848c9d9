"""The plan of the house, enforced: who may import whom, how long a file may be,
what an import may cost."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import qwen25vl

SOURCE = Path(qwen25vl.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
COMMON = {
    "arguments",
    "config",
    "config_base",
    "config_values",
    "errors",
    "hub",
    "inputs",
    "load_options",
    "memory",
    "progress",
    "rope_scaling",
    "single_file",
    "threads",
}
MAY_IMPORT = {
    **dict.fromkeys(COMMON, COMMON),
    "kernels": COMMON,
    "model": COMMON | {"kernels"},
    "processing": COMMON | {"kernels"},
    "engine": COMMON | {"model", "processing"},
    "loading": COMMON | {"model", "kernels", "engine"},
    "grounding": COMMON,
}
TOP = {
    "__init__", "__main__", "answer", "cli", "conversation", "demo", "documents", "ecosystem",
    "measure", "question", "ray", "serving", "structured", "vlm",
}  # fmt: skip
MAX_LINES, MAX_FUNCTION_LINES = 300, 60


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module of this package that is imported at run time, wherever in the file it stands;
    imports for annotations alone are not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen25vl"):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("qwen25vl."))
        yield from imported_modules(node)


GRAPH = {
    module_name(path): set(imported_modules(ast.parse(path.read_text(encoding="utf-8"))))
    - {module_name(path), "qwen25vl"}
    for path in FILES
}


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_import_law() -> None:
    """A room that reaches back into an earlier one can no longer be read, tested or replaced
    alone. Imports inside functions count too."""
    assert {room_of(module) for module in GRAPH} == set(MAY_IMPORT) | TOP
    for module, targets in GRAPH.items():
        room = room_of(module)
        allowed = {room, *MAY_IMPORT.get(room, set(MAY_IMPORT) | TOP)}
        against = {target for target in targets if room_of(target) not in allowed}
        assert not against, f"{module} imports {against}"


def test_no_circle() -> None:
    """Files that import each other in a circle can only be understood all at once. A file that is
    opened by its own package (`__init__`) lies in no circle with it."""
    graph = {module: set(targets) for module, targets in GRAPH.items()}
    while graph:
        leaves = {module for module, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: targets for module, targets in graph.items() if module not in leaves}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_is_one_idea(path: Path) -> None:
    """300 lines at most, and no drawer for leftovers."""
    assert path.stem not in ("utils", "common", "helpers", "misc")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def long_functions(path: Path) -> list[str]:
    """The functions of a file that do not fit on a screen:
    from `def` to their last line, the docstring included."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return [name for name, length in lengths.items() if length > MAX_FUNCTION_LINES]


def test_a_function_fits_on_a_screen() -> None:
    root = Path(__file__).parents[1]
    folders = [SOURCE, *(root / name for name in ("tests", "benchmarks", "train_demo", "examples"))]
    found = {path: long_functions(path) for folder in folders for path in folder.rglob("*.py")}
    assert not {str(path): names for path, names in found.items() if names}


def test_import_is_instant_and_without_torch() -> None:
    """`qwen25vl --help` must not wait for torch."""
    program = (
        "import time, sys; start = time.perf_counter(); import qwen25vl; took = "
        "time.perf_counter() - start; assert 'torch' not in sys.modules and 'numpy' not in "
        "sys.modules; print(took)"
    )
    times = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3)]
    assert min(times) <= 0.1


def test_public_names_resolve() -> None:
    """A lazy name that leads nowhere fails only when somebody uses it."""
    assert all(callable(getattr(qwen25vl, name)) for name in qwen25vl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Qwen3'"):
        _ = qwen25vl.Qwen3


def documented_walk() -> list[tuple[str, str]]:
    """The (file, function) rows of the page that follows one request."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## One request, from room to room")[1].split("\n## ")[0]
    return re.findall(r"^\| `([\w/]+\.py)` \| `(\w+)` \|", section, re.MULTILINE)


def test_the_documented_walk_is_the_real_one() -> None:
    """A page that tells where a request goes is worse than none once it is not true."""
    walk, called = documented_walk(), []
    vlm = qwen25vl.load(dtype="bfloat16", prefix_cache_bytes=2**20)

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
            path = Path(frame.f_code.co_filename).relative_to(SOURCE).as_posix()
            called.append((path, frame.f_code.co_name))

    scene = SOURCE.parents[1] / "examples" / "scene.png"
    sys.setprofile(note)
    try:
        vlm.ask("What is red?", images=[scene], max_new_tokens=3)
    finally:
        sys.setprofile(None)
    assert len(walk) > 15
    places = [called.index(station) for station in walk]
    assert places == sorted(places), [
        walk[i] for i in sorted(range(len(walk)), key=places.__getitem__)
    ]

"""The C++ sources keep the limits of the Python sources: nobody reads a function of two screens."""

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "src/qwen25vl/kernels/native"
FILES = sorted(file for file in NATIVE.iterdir() if file.suffix in (".h", ".cpp", ".map"))
MAX_WIDTH, MAX_FILE_LINES, MAX_FUNCTION_LINES = 100, 300, 60
NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL)
SCOPE = re.compile(r"\b(?:namespace|struct|class|enum|union)\b[^;(){}=]*$|extern\s*$")


def functions(text: str) -> list[tuple[str, int]]:
    """(first line, number of lines) of everything in outermost braces that is no scope: functions
    and tables."""
    text = NOT_CODE.sub(lambda match: "\n" * match.group().count("\n"), text)
    found, start, stack = [], 0, []
    for match in re.finditer(r"[{};]|\n#[^\n]*", text):
        sign = match.group()
        head = text[start : match.start()]
        if sign == "{":
            stack.append((SCOPE.search(head) is not None, match.start() - len(head.lstrip())))
        elif sign == "}":
            is_scope, begin = stack.pop()
            if not is_scope and all(outer for outer, _ in stack):
                body = text[begin : match.end()]
                found.append((body.split("\n")[0], body.count("\n") + 1))
        start = match.end()
    assert not stack, "braces do not match"
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_lines_and_files(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > MAX_WIDTH] == []
    assert len(lines) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_functions(path: Path) -> None:
    long = [
        one for one in functions(path.read_text(encoding="utf-8")) if one[1] > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_the_functions_are_found() -> None:
    """A counter that finds nothing would pass everything. Methods count by themselves, not their
    class, and what a function contains counts as its own."""
    text = """
namespace {
struct A : B {  // {
    int f() const {
        if (x) { y(); }
        return 1;
    }
};
}
extern "C" int64_t KERNEL(g)(int a,
                             int b) {
    return h([&] { return '{'; });
}
"""
    assert functions(text) == [("int f() const {", 4), ("extern  int64_t KERNEL(g)(int a,", 4)]
    long = "void f() {\n" + "    g();\n" * MAX_FUNCTION_LINES + "}\n"
    assert functions(long) == [("void f() {", MAX_FUNCTION_LINES + 2)]
    assert sum(len(functions(path.read_text(encoding="utf-8"))) for path in FILES) > 200

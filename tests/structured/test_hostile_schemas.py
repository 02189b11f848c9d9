"""Whatever is sent as a schema: a grammar or a typed refusal, in bounded time and memory."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import HOSTILE, texts

import qwen25vl
from qwen25vl.errors import Qwen25VLError, SchemaError, UsageError
from qwen25vl.structured.compiler import GrammarCompiler
from qwen25vl.structured.constraints import Constraint
from qwen25vl.structured.limits import MAX_BYTES
from qwen25vl.structured.tool_choice import tool_constraint


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    made = GrammarCompiler(qwen25vl.load().processor.tokenizer)
    made.compile(Constraint.of_object())
    return made


def resident_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(each for each in status.read_text().splitlines() if each.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def follow(compiler: GrammarCompiler, constraint: Constraint) -> None:
    """Compile, and write some tokens."""
    state = compiler.compile(constraint).start()
    scores = torch.randn(1046, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        masked = state.mask(scores)
        best = int(masked.argmax())
        if state.is_over or not bool(masked.isfinite().any()) or best in (1024, 1026):
            break
        state.accept(best)


def refusal_of(compiler: GrammarCompiler, schema: Any) -> str | None:
    try:
        follow(compiler, Constraint.of_schema(schema))
    except UsageError as error:
        return str(error)
    return None


def test_there_are_a_hundred() -> None:
    assert len(HOSTILE) >= 100


def test_nothing_hangs_or_grows(compiler: GrammarCompiler) -> None:
    """A stack overflow in the compiler ended the server, allOf of patterns never ended, and a
    repetition of 10⁹ filled its memory."""
    before, refused, slowest = resident_bytes(), 0, 0.0
    for schema in HOSTILE:
        started = time.process_time()
        message = refusal_of(compiler, schema)
        refused += message is not None
        assert len(message or "") < 1000
        assert "\n" not in (message or "")
        slowest = max(slowest, time.process_time() - started)
    assert refused > len(HOSTILE) // 2
    assert slowest < 2
    assert resident_bytes() - before < 128 * 2**20


def test_the_compiler_is_killed_and_comes_back(compiler: GrammarCompiler) -> None:
    """Without a process of its own this takes minutes and gigabytes; with one that is not started
    again every later schema would be refused. What was refused once is not tried again."""
    endless = Constraint.of_schema({"allOf": [texts(f".*b{i}.*") for i in range(30)]})
    with pytest.raises(SchemaError, match="takes more than"):
        compiler.compile(endless)
    follow(compiler, Constraint.of_schema({"type": "integer", "maximum": 77}))
    started = time.perf_counter()
    with pytest.raises(SchemaError, match="takes more than"):
        compiler.compile(endless)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {}}, "'not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"properties": {"a": {"if": {}}}}, r"properties\.a has 'if'"),
        ({"minLenght": 3}, "did you mean minLength"),
        ({"format": "phone"}, "format is 'phone'"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"$ref": "#/$defs/x"}, r"\$ref"),
        ({"$ref": "#"}, r"\$ref"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, "oneOf"),
        (texts("(?=a)b"), "look"),
        ({"enum": list(range(1001))}, "1,001 values"),
        ("{", "no JSON"),
        (False, "false"),
    ],
)
def test_a_refusal_names_the_cause(compiler: GrammarCompiler, schema: Any, named: str) -> None:
    """A keyword that is ignored lets answers through that the caller relies on never to see."""
    with pytest.raises(SchemaError, match=named):
        compiler.compile(Constraint.of_schema(schema))


GRAMMARS = [
    "", "start:", "start: foo", "start: start", 'start: "a" start', "start: /(/", "root ::=",
    'root ::= "a', "root ::= root root", "root ::= (" * 3000, "root ::= [", "start: <|nope|>",
    'root ::= "a"{1,99999999}', "start: %json {", 'start: ""', "start: " + '"a" ' * 15_000,
    "start: ~/a/", "%ignore /x/", "start: %regex {}", "start: <[0-999999999]>", "x" * 70_000,
    "start: a\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(2000)),
]  # fmt: skip


def test_hostile_grammars(compiler: GrammarCompiler) -> None:
    """The converter of GBNF is a recursive program; a grammar may recurse in itself."""
    for grammar in GRAMMARS:
        started = time.process_time()
        with suppress(UsageError):
            follow(compiler, Constraint.of_grammar(grammar))
        assert time.process_time() - started < 2, grammar[:50]


def test_hostile_patterns(compiler: GrammarCompiler) -> None:
    for pattern in (
        "(",
        "a{1,1000}{1,1000}{1,1000}",
        "(" * 3000,
        "x" * (MAX_BYTES + 1),
        "",
        ".*" * 999,
    ):
        with suppress(UsageError):
            follow(compiler, Constraint.of_regex(pattern))


def test_tools_are_bounded() -> None:
    """A hundred small schemas are as much work as a large one."""
    tool = {"name": "t", "parameters": {"enum": ["x" * 1000]}}
    for tools in (
        [{**tool, "name": f"t{i}"} for i in range(129)],
        [{"name": f"t{i}", "parameters": {"enum": ["x" * 60_000]}} for i in range(9)],
        [tool, tool], [{"name": ""}], [{"name": "a\nb"}], [{}], ["x"], "x", {},
        [{"name": "x" * 200}],
        [{"name": "t", "strict": True, "parameters": {"not": {}}}],
    ):  # fmt: skip
        with pytest.raises(SchemaError):
            tool_constraint(tools)


def test_a_process_of_another_owner_is_left_alone(compiler: GrammarCompiler) -> None:
    """A forked child that wrote into its parent's pipe would mix up their answers."""
    trial = compiler.trial
    compiler.compile(Constraint.of_schema({"type": "integer", "maximum": 78}))
    process = trial.process
    assert process is not None
    trial.owner = os.getpid() + 1
    compiler.compile(Constraint.of_schema({"type": "integer", "maximum": 79}))
    assert trial.process is not process
    assert process.wait(10) is not None  # its input was closed, so it ended by itself


def test_a_process_that_has_ended_is_started_again(compiler: GrammarCompiler) -> None:
    """Ended by anything but the job itself, it would have every later schema refused."""
    compiler.compile(Constraint.of_schema({"type": "integer", "maximum": 80}))
    assert compiler.trial.process is not None
    compiler.trial.process.kill()
    compiler.trial.process.wait()
    compiler.compile(Constraint.of_schema({"type": "integer", "maximum": 81}))


def test_a_process_that_does_not_start(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schema is not to blame, and may be asked for again."""
    compiler.trial.close()
    constraint = Constraint.of_schema({"type": "integer", "maximum": 82})
    with monkeypatch.context() as patch:
        patch.setattr("qwen25vl.structured.trial.sys.path", ["/nowhere"])
        with pytest.raises(Qwen25VLError, match="does not start"):
            compiler.compile(constraint)
    compiler.compile(constraint)


def test_messages_tell_nothing_else(compiler: GrammarCompiler) -> None:
    """The compiler's own messages hold the whole grammar, and in time the prompt."""
    secret = "canary" * 20
    schema = {"properties": {secret: {"type": "string"}}, "required": ["b"], "allOf": [False, {}]}
    with pytest.raises(SchemaError) as caught:
        compiler.compile(Constraint.of_schema(schema))
    assert secret not in str(caught.value)
    assert json.dumps(schema) not in str(caught.value)

"""What may be called: each choice, from what clients send to calls that are read again."""

import json
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.engine.additions import Additions
from qwen25vl.engine.generate import stream
from qwen25vl.errors import SchemaError
from qwen25vl.structured.compiler import GrammarCompiler
from qwen25vl.structured.tool_choice import read_tool_choice, read_tools, tool_constraint
from qwen25vl.structured.tool_events import WrittenCall, collect
from qwen25vl.structured.tool_parser import ToolCallParser

POINT = {"$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "type": "object",
         "properties": {"x": {"$ref": "#/$defs/n"}, "y": {"$ref": "#/$defs/n"}},
         "required": ["x", "y"]}  # fmt: skip
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "click", "strict": True, "parameters": POINT}},
    {"type": "function", "function": {"name": "stop", "description": "no arguments"}},
    {"name": "odd", "parameters": {"type": "object", "not": {}}},  # cannot be compiled, nor strict
]


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture(scope="module")
def compiler(vlm: VisionLanguageModel) -> GrammarCompiler:
    return GrammarCompiler(vlm.processor.tokenizer)


def write(
    vlm: VisionLanguageModel, compiler: GrammarCompiler, seed: int, *choice: Any, **options: Any
) -> tuple[str, list[WrittenCall], str | None]:
    """An answer in which the opening tag is likely."""
    tokenizer = vlm.processor.tokenizer
    opening = tokenizer.control_ids["<tool_call>"]

    def lift(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([opening]), float(scores.max()) - 1)

    start = compiler.compile(tool_constraint(TOOLS, *choice, **options)).start
    own = {"max_new_tokens": 150, "temperature": 1.5, "do_sample": True, "seed": seed}
    config = vlm.model.resolve_generation(None, own)
    inputs = tokenizer("Click!", return_tensors="pt")
    added = Additions(processors=(lift,), constraint=start)
    parser, events, reason = ToolCallParser(tokenizer), [], None
    for chunk in stream(vlm.model.engine, inputs, config, tokenizer=tokenizer, added=added):
        events += parser.push(chunk.text, chunk.token)
        reason = chunk.finish_reason
    return *collect([*events, *parser.finish()]), reason


def check(calls: list[WrittenCall]) -> None:
    for call in calls:
        value = json.loads(call.arguments)
        schema = {"click": POINT, "stop": {"maxProperties": 0}}.get(call.name, {"type": "object"})
        Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("seed", range(4))
def test_auto_writes_text_or_whole_calls(
    vlm: VisionLanguageModel, compiler: GrammarCompiler, seed: int
) -> None:
    """Without a grammar the model writes half calls, names of its own and arguments that nobody
    takes."""
    _, calls, reason = write(vlm, compiler, seed)
    check([call for call in calls if call.is_complete])
    assert reason == "length" or all(call.is_complete for call in calls)


def test_required_calls_at_once(vlm: VisionLanguageModel, compiler: GrammarCompiler) -> None:
    for seed in range(3):
        text, calls, reason = write(vlm, compiler, seed, "required", parallel=False)
        assert text == ""
        assert len(calls) == 1
        assert reason == "stop" or calls[0].name == "odd"
        check([call for call in calls if call.is_complete])


def test_one_function_is_called_once(vlm: VisionLanguageModel, compiler: GrammarCompiler) -> None:
    for name in ("click", "stop"):
        choice = {"type": "function", "function": {"name": name}}
        text, (call,), reason = write(vlm, compiler, 5, choice)
        assert (text, call.name, call.is_complete, reason) == ("", name, True, "stop")
        check([call])


def test_none_calls_nothing(vlm: VisionLanguageModel, compiler: GrammarCompiler) -> None:
    _, calls, _ = write(vlm, compiler, 1, "none")
    assert calls == []


def test_several_calls(compiler: GrammarCompiler) -> None:
    """Calls follow each other after a line break; with `parallel=False` only the end follows."""
    tokenizer = compiler.tokenizer
    text = 'Yes.\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    for parallel in (True, False):
        state = compiler.compile(tool_constraint(TOOLS[:2], parallel=parallel)).start()
        for number in tokenizer.encode_pieces([(text, True)]):
            assert bool(state.mask(torch.zeros(1046))[number].isfinite())
            state.accept(number)
        assert state.may_end
        assert state.is_over != parallel


def test_strict_tools_must_compile(compiler: GrammarCompiler) -> None:
    """A tool that is not strict takes any object where its schema says what no grammar can; one
    that is strict was promised."""
    look_ahead = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}
    for strict in (False, True):
        tool = {"name": "t", "strict": strict, "parameters": look_ahead}
        constraint = tool_constraint([tool], "required")
        if strict:
            with pytest.raises(SchemaError, match="look"):
                compiler.compile(constraint)
        else:
            compiler.compile(constraint).start()


def test_tags_that_are_spelt(compiler: GrammarCompiler) -> None:
    """A tokenizer without the control tokens writes the same letters."""
    plain = GrammarCompiler(compiler.tokenizer)
    tokenizer = type(compiler.tokenizer)(
        compiler.tokenizer.bpe,
        [{"content": "<|im_end|>", "id": 1024}, {"content": "<|endoftext|>", "id": 1025}],
        "<|im_end|>",
        "<|endoftext|>",
    )
    plain = GrammarCompiler(tokenizer)
    for text, is_good in (
        ('So:\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>', False),
        ("a <b> c", True),
    ):
        state = plain.compile(tool_constraint(TOOLS[:2])).start()
        ids = tokenizer.encode_ordinary(text)
        taken = 0
        while taken < len(ids) and bool(state.mask(torch.zeros(1026))[ids[taken]].isfinite()):
            state.accept(ids[taken])
            taken += 1
        assert (taken == len(ids) and state.may_end) == is_good, text


def test_shapes_that_clients_send() -> None:
    shapes: list[Any] = [
        {"type": "function", "function": {"name": "f", "parameters": None, "strict": None}},
        {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False},
        {"name": "f", "input_schema": {"type": "object"}},
        {"name": "f", "inputSchema": {"type": "object"}},
    ]
    assert [tool.name for shape in shapes for tool in read_tools([shape])] == ["f"] * 4
    assert read_tool_choice(None).mode == "auto"
    assert read_tool_choice("any").mode == read_tool_choice({"type": "any"}).mode == "required"
    assert read_tool_choice({"type": "function", "name": "f"}).name == "f"
    assert read_tool_choice({"type": "tool", "name": "f"}).name == "f"
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"name": "f"}]}
    assert read_tool_choice(allowed).names == ("f",)
    for wrong in ("all", 3, {"type": "x"}, {"type": "function"}):
        with pytest.raises(SchemaError, match="tool_choice"):
            read_tool_choice(wrong)
    with pytest.raises(SchemaError, match="not among the tools"):
        tool_constraint(TOOLS, {"type": "function", "function": {"name": "fly"}})
    with pytest.raises(SchemaError, match="no tools"):
        tool_constraint([], "required")

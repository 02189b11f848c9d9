"""Every kind of constraint, with the official vocabulary and the demo's: what it lets through."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as ByteLevelBPE

from qwen25vl.errors import DependencyError, SchemaError
from qwen25vl.processing.tokenizer import SPOKEN, Tokenizer
from qwen25vl.structured.compiler import GrammarCompiler
from qwen25vl.structured.constraints import Constraint
from qwen25vl.structured.grammar import Grammar
from qwen25vl.structured.vocabulary import keep_allowed

ROWS = 151_936  # of the 3B model's head, 271 more than the tokenizer has ids


@pytest.fixture(scope="module")
def compiler(tokenizer_json: dict[str, Any]) -> GrammarCompiler:
    plain = {**tokenizer_json, "added_tokens": []}
    bpe = ByteLevelBPE.from_str(json.dumps(plain))
    added = tokenizer_json["added_tokens"]
    return GrammarCompiler(Tokenizer(bpe, added, "<|im_end|>", "<|endoftext|>"))


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether a text, cut into tokens as the tokenizer does it, is a whole answer."""
    state = grammar.start()
    scores = torch.zeros(ROWS)
    for number in grammar.vocabulary.tokenizer.encode_ordinary(text):
        if state.is_over or not bool(state.mask(scores)[number].isfinite()):
            return False
        state.accept(number)
    return state.may_end


def draw(grammar: Grammar, seed: int, longest: int = 60) -> tuple[list[int], bool]:
    """Tokens drawn evenly among those that are allowed, and whether they are a whole answer."""
    state, chance = grammar.start(), np.random.default_rng(seed)
    tokenizer = grammar.vocabulary.tokenizer
    ids: list[int] = []
    while not state.is_over and len(ids) < longest:
        scores = torch.from_numpy(chance.normal(size=ROWS).astype(np.float32))
        best = int(state.mask(scores).argmax())
        if best == tokenizer.eos_token_id:
            break
        ids.append(best)
        state.accept(best)
    return ids, state.may_end


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint.of_choices(["yes", "no", "no way", "é\n\"q\""]),
         ["yes", "no", "no way", "é\n\"q\""], ["", "ye", "yes ", "nope"]),
        (Constraint.of_regex("^(?:[a-c]{2}|\\d+)$"), ["ab", "1", "12"], ["a", "abc", "1a", "^ab$"]),
        (Constraint.of_regex("a/b\n[\\s\\S]+"), ["a/b\nx\ny"], ["a/b\n", "a/b x"]),
        (Constraint.of_grammar('start: "(" start ")" | "x"'), ["x", "((x))"], ["(x", "", "x)"]),
        (Constraint.of_grammar('root ::= "a" root "b" | [x-z]+'), ["x", "aaxyzbb"], ["ab", "axbb"]),
        (Constraint.of_object(), ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", "{} ", " {}"]),
        (Constraint.of_schema({"type": "array", "items": {"type": "integer"}}),
         ["[]", "[1,2]", "[1, -2]"], ["[1,  2]", "[ 1]", "[1\n]", "[1.5]", "[1, 2"]),
        (Constraint.of_schema({"const": "e\u0301"}), ['"e\u0301"'], []),
        (Constraint.of_schema({"type": "object", "properties": {"a": {"const": 1}}}),
         ["{}", '{"a":1}'], ['{"b":1}', '{"a":1,"b":2}']),
        (Constraint.of_schema({"type": "number"}),
         ["0", "-1.5", "0.3333333333", "9" * 18], ["1e5", "0.33333333333", "9" * 19, "01", "1."]),
        (Constraint.of_schema({"type": ["integer", "null"]}), ["-7", "null"], ["9" * 19, "1.5"]),
        (Constraint.of_schema({"type": "number", "maximum": 1e-15, "minimum": 1e-20}),
         ["0.000000000000000001"], ["0", "1"]),
        (Constraint.of_schema({"type": "string"}), ['"é漢\\n"', '"\\""'], ['"\\u0041"', '"\n"']),
    ],
)  # fmt: skip
def test_what_is_accepted(
    compiler: GrammarCompiler, constraint: Constraint, good: list[str], bad: list[str]
) -> None:
    grammar = compiler.compile(constraint)
    if constraint.text != '{"const":"e\u0301"}':  # the tokenizer composes it: see below
        assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


def test_text_that_the_tokenizer_would_change(compiler: GrammarCompiler) -> None:
    """It composes characters; tokens of the composed text contradict the grammar's bytes."""
    for value in ("e\u0301", "한", "Å\n", "ﷺ"):
        grammar = compiler.compile(Constraint.of_schema({"const": value}))
        ids, is_whole = draw(grammar, 0)
        assert is_whole
        assert json.loads(compiler.tokenizer.decode(ids)) == value


def test_only_text_may_be_written(compiler: GrammarCompiler) -> None:
    """Control tokens within a text are turns, slots of pictures or calls that nobody asked for; the
    model's further rows decode to nothing. The letters of a control token are a text like any."""
    controls = compiler.tokenizer.control_ids
    for constraint in (
        Constraint.of_object(),
        Constraint.of_regex("(?s:.)*"),
        Constraint.of_grammar("start: (/(?s:.)/ | <[*]>)*"),
    ):
        state = compiler.compile(constraint).start()
        allowed = state.mask(torch.zeros(ROWS)).isfinite()
        assert not allowed[151_665:].any()
        frame = {controls[text] for text in compiler.tokenizer.structure}
        frame -= {compiler.tokenizer.eos_token_id, compiler.tokenizer.pad_token_id}
        assert not allowed[sorted(frame)].any()
        if constraint.kind != "grammar":
            assert not allowed[[controls[text] for text in SPOKEN]].any()
    assert accepts(compiler.compile(Constraint.of_regex("(?s:.)*")), "<|im_end|><tool_call>")


def test_a_grammar_may_name_what_the_model_speaks(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Constraint.of_grammar('start: <tool_call> "x" </tool_call>'))
    ids, is_whole = draw(grammar, 0)
    assert is_whole
    assert compiler.tokenizer.decode(ids) == "<tool_call>x</tool_call>"


def test_rows_of_any_width() -> None:
    """The demo model has fewer rows than ids, the released ones more."""
    allowed = np.zeros(10, np.bool_)
    allowed[[2, 9]] = True
    for size in (5, 10, 16):
        for many in (allowed, np.ones(10, np.bool_)):
            scores = torch.arange(float(size))
            masked = keep_allowed(scores, many)
            wanted = [number for number in np.flatnonzero(many).tolist() if number < size]
            assert masked.isfinite().nonzero()[:, 0].tolist() == wanted
            assert torch.equal(masked[wanted], scores[wanted])
            assert bool(scores.isfinite().all())
    wide = np.ones(5000, np.bool_)
    wide[17] = False
    assert keep_allowed(torch.zeros(6000), wide).isfinite().sum() == 4999


def test_states_are_apart(compiler: GrammarCompiler) -> None:
    """Answers, and threads, share a grammar and nothing else."""
    grammar = compiler.compile(Constraint.of_regex("[ab]{6}"))
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda seed: draw(grammar, seed), range(12)))
    assert drawn == [draw(grammar, seed) for seed in range(12)]


def test_equal_constraints_compile_once(compiler: GrammarCompiler) -> None:
    """Titles and descriptions say nothing of the answer."""
    one = compiler.compile(Constraint.of_schema({"type": "integer", "title": "A"}))
    assert compiler.compile(Constraint.of_schema('{"title": "B", "type": "integer"}')) is one
    assert hash(Constraint.of_object()) == hash(Constraint.of_object())


def test_the_cache_is_bounded(compiler: GrammarCompiler) -> None:
    """A client that sends another schema with every request fills the memory."""
    small = GrammarCompiler(compiler.tokenizer, cache_bytes=400_000)
    small.read_vocabulary = compiler.vocabulary
    kept = [Constraint.of_regex(f"a{{{i}}}") for i in range(1, 9)]
    first = small.compile(kept[0])
    for constraint in kept:
        small.compile(constraint)
        small.compile(kept[0])
    assert small.num_bytes <= 400_000
    assert 1 < len(small.kept) < 8
    assert small.compile(kept[0]) is first  # asked for all the time
    with pytest.raises(SchemaError):
        small.compile(Constraint.of_regex("("))
    assert all(small.num_bytes >= len(constraint.text) for constraint in small.kept)


def test_a_compiler_is_copied(compiler: GrammarCompiler) -> None:
    """Its locks and its process cannot be."""
    small = GrammarCompiler(compiler.tokenizer, cache_bytes=5)
    kind, (_, cache_bytes) = small.__reduce__()
    assert kind is GrammarCompiler
    assert cache_bytes == 5
    assert pickle.loads(pickle.dumps(Constraint.of_object())) == Constraint.of_object()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, compiler: GrammarCompiler) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DependencyError, match=r'pip install "qwen25vl\[schema\]"'):
        GrammarCompiler(compiler.tokenizer)

"""Answers of the demo model, drawn at a high temperature, are valid under their schemas."""

import datetime
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from schemas import SCHEMAS, modern

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.engine.additions import Additions
from qwen25vl.engine.answers import GenerateOutput
from qwen25vl.engine.generate import generate
from qwen25vl.structured.compiler import GrammarCompiler
from qwen25vl.structured.constraints import Constraint


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture(scope="module")
def compiler(vlm: VisionLanguageModel) -> GrammarCompiler:
    return GrammarCompiler(vlm.processor.tokenizer)


def answers(
    vlm: VisionLanguageModel, compiler: GrammarCompiler, constraint: Constraint, **options: Any
) -> list[tuple[str, str]]:
    """(text, finish reason) of each answer to one prompt."""
    inputs = vlm.processor.tokenizer("Answer.", return_tensors="pt")
    ids = inputs.input_ids
    added = Additions(constraint=compiler.compile(constraint).start)
    own = {"max_new_tokens": 100, "do_sample": True, "temperature": 1.5, "seed": 7}
    config = vlm.model.resolve_generation(None, {**own, **options})
    config = config.merge(return_dict_in_generate=True)
    out = generate(vlm.model.engine, inputs, config, added=added)
    assert isinstance(out, GenerateOutput)
    texts = vlm.processor.batch_decode(out.sequences[:, ids.shape[1] :], skip_special_tokens=True)
    return list(zip(texts, out.finish_reasons, strict=True))


def test_there_are_a_hundred() -> None:
    assert len(SCHEMAS) >= 100
    for schema in SCHEMAS:
        Draft202012Validator.check_schema(modern(schema))


def test_answers_are_valid(vlm: VisionLanguageModel, compiler: GrammarCompiler) -> None:
    """A mask that allows one byte too many shows up as an answer that another implementation
    refuses; one that allows too little as answers that never end."""
    num_over = num_all = 0
    for number, schema in enumerate(SCHEMAS):
        validator = Draft202012Validator(modern(schema))
        found = answers(
            vlm, compiler, Constraint.of_schema(schema), num_return_sequences=2, seed=number
        )
        for text, reason in found:
            num_all += 1
            if reason == "stop":
                num_over += 1
                errors = [error.message for error in validator.iter_errors(json.loads(text))]
                assert not errors, (schema, text, errors)
    assert num_over > 0.85 * num_all


@pytest.mark.parametrize("kind", [datetime.time, datetime.datetime])
def test_seconds_end(vlm: VisionLanguageModel, compiler: GrammarCompiler, kind: Any) -> None:
    """A fraction of any number of digits is valid, is where unsure models go on, and is what few
    programs read."""
    form = {datetime.time: "time", datetime.datetime: "date-time"}[kind]
    constraint = Constraint.of_schema({"type": "string", "format": form})
    for text, reason in answers(vlm, compiler, constraint, num_return_sequences=8, temperature=2.0):
        assert reason == "stop"
        kind.fromisoformat(json.loads(text))

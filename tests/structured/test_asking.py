"""The short way: a question with a schema, in Python and as a command."""

import copy
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.cli import main
from qwen25vl.errors import SchemaError, UsageError
from qwen25vl.structured.constraints import Constraint

SCENE = str(Path(__file__).parents[2] / "examples" / "scene.png")


class Box(BaseModel):
    label: Literal["star", "dog", "carrot"]
    bbox_2d: list[int] = Field(min_length=4, max_length=4)
    score: float


class Found(BaseModel):
    boxes: list[Box] = Field(max_length=2)
    note: str | None = Field(default=None, max_length=9)


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


def test_a_class_of_pydantic(vlm: VisionLanguageModel) -> None:
    """Its schema has $defs, anyOf with null and bounds; what comes back is an object of it."""
    answer = vlm.ask("Find everything.", [SCENE], schema=Found, max_new_tokens=400)
    assert answer.finish_reason == "stop"
    assert isinstance(answer.parsed, Found)
    assert answer.parsed.model_dump() == Found.model_validate_json(answer.text).model_dump()
    one = TypeAdapter(Annotated[list[Box], Field(max_length=1)])
    assert isinstance(vlm.ask("Find all.", [SCENE], schema=one, max_new_tokens=400).parsed, list)


@pytest.mark.parametrize("seed", range(3))
def test_every_form_of_a_schema(vlm: VisionLanguageModel, seed: int) -> None:
    schema = {"enum": ["red", "green", 3]}
    for form in (schema, json.dumps(schema), Constraint.of_schema(schema)):
        answer = vlm.ask("Which?", schema=form, temperature=1.5, seed=seed)
        assert answer.parsed in schema["enum"]
        assert answer.parsed == json.loads(answer.text)
    choice = vlm.ask("Which?", schema=Constraint.of_choices(["red", "blue"]), seed=seed)
    assert choice.parsed == choice.text
    assert choice.text in ("red", "blue")


def test_streams_and_chats(vlm: VisionLanguageModel) -> None:
    """The text of a stream joins to the same; an earlier turn is shown to the next one."""
    stream = vlm.stream("Find everything.", [SCENE], schema=Found, max_new_tokens=400)
    text = "".join(chunk.text for chunk in stream)
    assert stream.answer.parsed == Found.model_validate_json(text)
    chat = vlm.chat()
    assert chat.ask("Yes?", schema={"type": "boolean"}).parsed in (True, False)
    assert isinstance(chat.ask("How many?", schema={"type": "integer", "maximum": 9}).parsed, int)


def test_what_cannot_be_parsed(vlm: VisionLanguageModel) -> None:
    """Half an answer is no value; neither is one that nobody asked to be JSON."""
    cut = vlm.ask("Find everything.", [SCENE], schema=Found, max_new_tokens=4)
    assert cut.finish_reason == "length"
    with pytest.raises(UsageError, match="ended with 'length'"):
        _ = cut.parsed
    with pytest.raises(UsageError, match="schema="):
        _ = vlm.ask("Hi", max_new_tokens=2).parsed

    class Strict(BaseModel):
        value: Literal["a"]

        @field_validator("value")
        @classmethod
        def refuse(cls, value: str) -> str:
            raise ValueError("never")

    with pytest.raises(ValidationError, match="never"):
        _ = vlm.ask("Hi", schema=Strict).parsed


def test_what_is_refused(vlm: VisionLanguageModel) -> None:
    """Before anything is computed."""
    wrong: list[tuple[Any, str]] = [
        ({"not": {}}, "'not'"),
        ("{", "no JSON"),
        (3, "expected a mapping"),
        (object(), "expected a mapping"),
    ]
    for schema, message in wrong:
        with pytest.raises(UsageError, match=message):
            vlm.ask("Hi", schema=schema)
    with pytest.raises(UsageError, match="beam search"):
        vlm.ask("Hi", schema={"type": "null"}, num_beams=2)


def test_options_go_together(vlm: VisionLanguageModel) -> None:
    """Drafts change no answer; penalties and stop strings still hold."""
    plain = vlm.ask("Find everything.", [SCENE], schema=Found, max_new_tokens=99)
    drafted = vlm.ask(
        "Find everything.", [SCENE], schema=Found, max_new_tokens=99, prompt_lookup_num_tokens=6
    )
    assert drafted.text == plain.text
    options: dict[str, Any] = {"frequency_penalty": 1.5, "min_new_tokens": 30}
    other = vlm.ask("Find everything.", [SCENE], schema=Found, max_new_tokens=400, **options)
    assert isinstance(other.parsed, Found)
    stopped = vlm.ask("Find everything.", [SCENE], schema=Found, stop_strings=[":"])
    assert stopped.text == '{"boxes"'


def test_a_copy_compiles_anew(vlm: VisionLanguageModel) -> None:
    vlm.ask("Hi", schema={"type": "null"})
    assert vlm.grammars is not None
    assert len(vlm.grammars.kept) > 0
    other = copy.deepcopy(vlm)
    assert other.ask("Hi", schema={"type": "null"}).parsed is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "array", "items": {"enum": ["é"]}, "maxItems": 2}))
    assert main(["run", "Which?", "--schema", str(path)]) == 0
    assert set(json.loads(capsys.readouterr().out)) <= {"é"}
    path.write_text('{"uniqueItems": true}')
    for wrong, message in ((path, "'uniqueItems'"), (tmp_path / "none", "cannot be read")):
        assert main(["run", "Which?", "--schema", str(wrong)]) == 2
        assert message in capsys.readouterr().err


def test_the_error_has_a_type_of_its_own() -> None:
    """A server tells it apart from other mistakes."""
    with pytest.raises(SchemaError):
        Constraint.of_schema({"not": {}})

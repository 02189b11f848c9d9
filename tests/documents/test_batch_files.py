"""Files of requests: OpenAI's batch files and parquet."""

import json
from pathlib import Path
from typing import Any

import pytest
from document_files import BUSY, EchoBackend, page, read_lines, work
from live_server import data_url

import qwen25vl
from qwen25vl.documents.batch import Target
from qwen25vl.documents.failures import Failure
from qwen25vl.errors import UsageError


def batch_line(custom_id: str, **changes: Any) -> dict[str, Any]:
    """As a program for OpenAI writes it."""
    content = [
        {"type": "text", "text": "What is in the picture?"},
        {"type": "image_url", "image_url": {"url": data_url(page(2))}},
    ]
    messages = [{"role": "user", "content": content}]
    body = {"model": "gpt-4o", "messages": messages, "max_completion_tokens": 5}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return {**line, **changes}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_openai_files_as_openai_writes_them(
    tmp_path: Path, demo: qwen25vl.VisionLanguageModel
) -> None:
    """A program that reads OpenAI's output reads this one: its types, its two files, its codes."""
    from openai.types.chat import ChatCompletion

    bad = {"model": "gpt-4o", "messages": [{"role": "user", "content": [{"type": "audio"}]}]}
    lines = [
        batch_line("b"),
        batch_line("a"),
        batch_line("wrong", body=bad),
        batch_line("stream", body={**batch_line("")["body"], "stream": True}),
        batch_line("url", url="/v1/embeddings"),
    ]
    given = write(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"
    list(qwen25vl.batch(given, model=demo, output=output))
    good = read_lines(output)
    assert [line["custom_id"] for line in good] == ["b", "a"]
    for line in good:
        assert line.keys() == {"id", "custom_id", "response", "error"}
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"].startswith("req_")
        completion = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert completion.choices[0].message.content
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 5
    errors = read_lines(tmp_path / "out.errors.jsonl")
    assert [line["custom_id"] for line in errors] == ["wrong", "stream", "url"]
    for line in errors:
        assert line["response"]["status_code"] == 400
        assert line["response"]["body"]["error"]["message"]
    whole = [(tmp_path / name).read_bytes() for name in ("out.jsonl", "out.errors.jsonl")]
    output.write_bytes(whole[0].splitlines(keepends=True)[0])
    results = list(qwen25vl.batch(given, model=demo, output=output, resume=True))
    assert [each.custom_id for each in results] == ["a"]
    assert whole == [(tmp_path / name).read_bytes() for name in ("out.jsonl", "out.errors.jsonl")]


def test_openai_failures_change_their_file(tmp_path: Path) -> None:
    """An answer beside the error that an earlier run wrote: the line is there twice."""
    given = write(tmp_path / "in.jsonl", [batch_line("a"), batch_line("b")])
    output = tmp_path / "out.jsonl"
    gone = Failure("vanished", "the file is gone")
    backend = EchoBackend({"a": [BUSY, BUSY, BUSY], "b": [gone]})
    work([str(given)], backend, Target(output), ask=None)
    assert output.read_bytes() == b""
    codes = [line["error"] and line["error"]["code"] for line in read_lines(errors_of(output))]
    assert codes == [None, "vanished"]
    from qwen25vl.documents.batch_job import JobLimits

    limits = JobLimits(retry_failed=True)
    work([str(given)], EchoBackend(), Target(output, resume=True), limits, ask=None)
    assert [line["custom_id"] for line in read_lines(output)] == ["a", "b"]
    assert not errors_of(output).exists()


def errors_of(output: Path) -> Path:
    return output.with_name("out.errors.jsonl")


def test_openai_file_that_is_wrong(tmp_path: Path) -> None:
    """Two lines of one custom_id cannot be told apart in the output."""
    given = write(tmp_path / "in.jsonl", [batch_line("a"), batch_line("a")])
    backend = EchoBackend()
    with pytest.raises(UsageError, match="the id 'a' a second time"):
        work([str(given)], backend, ask=None)
    first, second = (write(tmp_path / f"{each}.jsonl", [batch_line("a")]) for each in range(2))
    with pytest.raises(UsageError, match="the id 'a' a second time"):
        work([str(first), str(second)], backend, ask=None)
    assert not backend.asked
    other = write(tmp_path / "other.jsonl", [[{"role": "user", "content": "Hi"}]])
    with pytest.raises(UsageError, match="cannot be mixed"):
        work([str(given), str(other)], EchoBackend(), ask=None)


def test_parquet(tmp_path: Path) -> None:
    """Data sets keep pictures as bytes, as paths, or as both; a row may be empty."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    page(1).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    rows = [
        {"bytes": data, "path": "x.png"}, {"bytes": None, "path": "a.png"}, None,
        {"bytes": None, "path": "gone.png"}, {"bytes": b"text", "path": None},
    ]  # fmt: skip
    table = pyarrow.table({"id": list(range(5)), "image": rows})
    parquet.write_table(table, tmp_path / "set.parquet")
    results = work([str(tmp_path / "set.parquet")], EchoBackend())
    kinds = {each.source.rpartition(":")[2]: each.error and each.error.kind for each in results}
    assert kinds == {"0": None, "1": None, "2": "empty", "3": "vanished", "4": "not a picture"}
    texts = [each.text for each in results if each.error is None]
    assert texts[0] == texts[1]
    pyarrow.parquet.write_table(pyarrow.table({"scan": [data]}), tmp_path / "own.parquet")
    with pytest.raises(UsageError, match="has no column image; it has scan"):
        work([str(tmp_path / "own.parquet")], EchoBackend())


def test_schema_and_json(tmp_path: Path) -> None:
    """An answer that is no JSON taken for one; or JSON in a fence taken for none."""
    for name in ("a", "b", "c"):
        page(len(name)).save(tmp_path / f"{name}.png")
    backend = EchoBackend({"a.png": ['{"total": 3}'], "b.png": ["```json\n[1]\n```"]})
    schema = {"type": "object"}
    results = work([str(tmp_path)], backend, schema=schema)
    by_name = {Path(each.source).name: each for each in results}
    assert (by_name["a.png"].parsed, by_name["b.png"].parsed) == ({"total": 3}, [1])
    assert by_name["c.png"].error is not None
    assert by_name["c.png"].error.kind == "not JSON"
    assert backend.bodies[0]["response_format"]["json_schema"]["schema"] == schema
    results = work([str(tmp_path)], EchoBackend(), ask=None, task="invoice")
    assert [(each.parsed, each.error) for each in results] == [(None, None)] * 3


def test_answers_follow_a_schema(tmp_path: Path, demo: qwen25vl.VisionLanguageModel) -> None:
    """A schema that is sent and not obeyed, or an answer that was cut off taken for whole."""
    page(1).save(tmp_path / "a.png")
    fields = {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "maximum": 9}}
    schema = {"type": "object", "properties": fields, "required": ["colour", "n"]}
    schema["additionalProperties"] = False
    asked: dict[str, Any] = {"model": demo, "schema": schema}
    (result,) = qwen25vl.batch(tmp_path / "a.png", "What is it?", **asked, max_new_tokens=60)
    assert result.error is None
    assert result.parsed.keys() == {"colour", "n"}
    (result,) = qwen25vl.batch(tmp_path / "a.png", "What is it?", **asked, max_new_tokens=3)
    assert result.error is not None
    assert result.error.kind == "cut off"

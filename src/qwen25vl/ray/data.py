"""Pages of a Ray dataset, asked in replicas of a model on any number of machines.

    pages = ray.data.read_binary_files("scans/", include_paths=True)
    answers = pages.map_batches(
        AskPages, fn_constructor_kwargs={"task": "ocr"}, concurrency=8, num_cpus=4, batch_size=64
    )
    answers.write_json("answers/")

Ray starts the replicas, hands them batches, and asks a batch again whose replica died; what it
writes has each page once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Unpack

from qwen25vl.documents.inputs import Source
from qwen25vl.documents.local import LocalBackend
from qwen25vl.documents.plan import make_plan
from qwen25vl.documents.results import Result
from qwen25vl.documents.session import Session
from qwen25vl.errors import UsageError
from qwen25vl.question import GenerationOptions
from qwen25vl.vlm import load

Columns = dict[str, list[Any]]


class AskPages:
    """For `Dataset.map_batches`: a row for each page of each file.

    ask, task, prompts, schema, system, pages and the options of answers are as in
    `qwen25vl.batch`. model: what `load` takes; the machines must all have it. load_options: more
    of its arguments, such as quantize. column: the files, as bytes or as paths; name_column: their
    names, where these are in a column of their own.
    """

    def __init__(
        self,
        ask: str | None = None,
        *,
        task: str | None = None,
        prompts: Mapping[str, str] | None = None,
        schema: Any = None,
        system: str | None = None,
        pages: str = "each",
        model: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        column: str = "bytes",
        name_column: str = "path",
        **options: Unpack[GenerationOptions],
    ) -> None:
        lookup = options.pop("prompt_lookup_num_tokens", None)
        plan = make_plan(
            identity={"model": model or "built-in"}, ask=ask, prompts=prompts, task=task,
            schema=schema, system=system, pages=pages, options=options,
        )  # fmt: skip
        if not plan.questions:
            raise UsageError("it is not said what to ask; give a question, prompts or a task")
        vlm = load(model, **(load_options or {}))
        backend = LocalBackend(vlm, prompt_lookup=lookup, num_workers=1)
        backend.keeps_pages = len(plan.questions) > 1
        self.column, self.name_column = column, name_column
        self.session = Session(backend, plan)

    def __call__(self, batch: Mapping[str, Any]) -> Columns:
        if self.column not in batch:
            have = ", ".join(batch)
            raise UsageError(f"the rows have no column {self.column}; they have {have} (column=)")
        files = list(batch[self.column])
        names = batch.get(self.name_column, files)
        sources = [make_source(str(name), file) for name, file in zip(names, files, strict=True)]
        return to_columns(self.session.ask(sources))


def make_source(name: str, file: Any) -> Source:
    from pathlib import Path

    if isinstance(file, bytes):
        return Source("memory", name, content=file)
    return Source("file", name, Path(str(file)))


def to_columns(results: list[Result]) -> Columns:
    """The fields of an output line of `qwen25vl batch`; what has a shape of its own is JSON."""
    return {
        "key": [each.key for each in results],
        "source": [each.source for each in results],
        "page": [each.page for each in results],
        "prompt": [each.prompt for each in results],
        "text": [each.text for each in results],
        "parsed": [to_text(each.parsed) for each in results],
        "boxes": [to_text(list(each.boxes)) for each in results],
        "finish_reason": [each.finish_reason for each in results],
        "prompt_tokens": [each.num_tokens[0] for each in results],
        "completion_tokens": [each.num_tokens[1] for each in results],
        "error": [to_text(each.error and each.error.describe()) for each in results],
    }


def to_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)

"""What a job asks, and how the answers are written: the same for all inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen25vl.documents.abilities import find_task
from qwen25vl.errors import UsageError

DEFAULT_TOKENS = 4096
WIRE_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop_strings": "stop",
    "seed": "seed",
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Plan:
    """questions: by name, None for the only one. fields: of every request, beside its messages.
    identity: the model and everything else that decides an answer. pages: a request for each page
    of a document, or for all of them."""

    questions: Mapping[str | None, str]
    identity: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    is_json: bool = False
    must_be_json: bool = False
    pages: Literal["each", "all"] = "each"

    @property
    def settings(self) -> dict[str, Any]:
        """What is compared when a job goes on."""
        return {
            **self.identity,
            "questions": {name or "": text for name, text in self.questions.items()},
            "system": self.system,
            "pages": self.pages,
            **self.fields,
        }

    def messages(self, question: str, parts: list[Any]) -> list[dict[str, Any]]:
        content = [*parts, {"type": "text", "text": question}]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": content}]


def make_plan(
    *,
    identity: Mapping[str, Any],
    ask: str | None = None,
    prompts: Mapping[str, str] | None = None,
    task: str | None = None,
    schema: Any = None,
    system: str | None = None,
    pages: str = "each",
    model: str | None = None,
    media: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Raises UsageError for what excludes each other, and for options that a request cannot have;
    SchemaError for a schema that answers cannot be made to follow.

    schema: a mapping, JSON text, or a class of pydantic. model: the name in the requests. media:
    mm_processor_kwargs.
    """
    if pages not in ("each", "all"):
        raise UsageError(f"pages is {pages!r}; expected each or all")
    found = find_task(task) if task else None
    if ask is not None and prompts is not None:
        raise UsageError("ask and prompts both say what to ask; give one")
    questions: dict[str | None, str] = {}
    if prompts is not None:
        questions = dict(prompts.items())
    elif ask is not None or found:
        questions = {None: found.question if ask is None and found else ask or ""}
    if any(not text.strip() for text in questions.values()):
        raise UsageError("a question is empty")
    fields = read_options(options or {})
    if model is not None:
        fields["model"] = model
    if media:
        fields["mm_processor_kwargs"] = dict(media)
    if schema is not None:
        from qwen25vl.structured.constraints import Constraint, describe

        Constraint.of_schema(schema)
        named = {"name": "answer", "schema": describe(schema), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    if system is None and found and ask is None:
        system = found.system
    check_fields(fields)
    is_json = schema is not None or bool(found and found.is_json)
    return Plan(
        questions, dict(identity), fields, system, is_json, schema is not None,
        "all" if pages == "all" else "each",
    )  # fmt: skip


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise UsageError for a value that every single request would be refused for."""
    from pydantic import ValidationError

    from qwen25vl.serving.reading import wrong_field
    from qwen25vl.serving.wire import ChatRequest

    try:
        ChatRequest.model_validate({**fields, "messages": [{}]})
    except ValidationError as error:
        raise UsageError(wrong_field(error).message) from None


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an answer as fields of a request. Without any of sampling, the likeliest token is
    taken, so that another run writes the same."""
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := given.keys() - WIRE_NAMES.keys():
        known = ", ".join(WIRE_NAMES)
        raise UsageError(f"{min(unknown)} is no option of a batch; expected some of {known}")
    fields = {WIRE_NAMES[name]: value for name, value in given.items()}
    fields.setdefault("max_tokens", DEFAULT_TOKENS)
    if not given.keys() & set(SAMPLING):
        fields["temperature"] = 0.0
    return fields


def read_prompts(path: str) -> dict[str, str]:
    """A file of questions: a JSON object of names and questions, or one question a line, whose
    names are their numbers."""
    text = read_text(path)
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{path} is no valid JSON: {error}") from None
        if not all(isinstance(value, str) for value in found.values()):
            raise UsageError(f"{path} has something else than a text for a question")
        prompts: dict[str, str] = found
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        prompts = {str(number + 1): line for number, line in enumerate(lines)}
    if not prompts:
        raise UsageError(f"{path} has no questions")
    return prompts


def read_text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8") from None

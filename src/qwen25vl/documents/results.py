"""One input with its answer, and the lines of the two kinds of output."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

from qwen25vl.documents.failures import Failure
from qwen25vl.documents.items import Item

FENCE = re.compile(r"\A\s*```[\w-]*\n(.*?)\n?```\s*\Z", re.DOTALL)
VOLATILE = ("seconds", "attempts")  # what differs from run to run


@dataclass(frozen=True)
class Result:
    """key: of the input with everything that decides the answer. source: the file, or what an input
    is called. page: of a document, from 1. parsed: the answer as JSON, where it was asked for.
    boxes: as {"label", "box": [x1, y1, x2, y2], "picture"}, in pixels of the picture. error: why
    there is no answer. seconds: from the first try to the answer."""

    key: str
    source: str
    page: int | None = None
    text: str | None = None
    parsed: Any = None
    boxes: tuple[Mapping[str, Any], ...] = ()
    usage: Mapping[str, Any] | None = None
    error: Failure | None = None
    seconds: float = 0.0
    finish_reason: str | None = None
    prompt: str | None = None
    custom_id: str | None = None
    attempts: int = 1
    slot: str = ""
    reply: Mapping[str, Any] | None = None

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Of the prompt, of the answer."""
        usage = self.usage or {}
        return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0


class Lines(Protocol):
    """How results are written. names: of the files."""

    names: tuple[str, ...]

    def encode(self, result: Result) -> tuple[int, dict[str, Any]]:
        """The number of the file, and the line."""

    def decode(self, number: int, line: Mapping[str, Any]) -> tuple[str, str, bool]:
        """Slot, key, and whether it failed. Raises KeyError or TypeError for a strange line."""

    def settle(self, line: dict[str, Any]) -> dict[str, Any]:
        """The line without what differs from run to run."""


class PageLines:
    """A line for each page, or for each input that is no document."""

    names: tuple[str, ...] = ("",)

    def encode(self, result: Result) -> tuple[int, dict[str, Any]]:
        line: dict[str, Any] = {"key": result.key, "source": result.source, "page": result.page}
        for name in ("prompt", "custom_id"):
            if (value := getattr(result, name)) is not None:
                line[name] = value
        line |= {"text": result.text, "parsed": result.parsed, "boxes": list(result.boxes)}
        line |= {"finish_reason": result.finish_reason, "usage": result.usage}
        line |= {"error": result.error and result.error.describe()}
        line |= {"seconds": round(result.seconds, 3), "attempts": result.attempts}
        return 0, line

    def decode(self, number: int, line: Mapping[str, Any]) -> tuple[str, str, bool]:
        identity = (line["source"], line["page"], line.get("prompt"), line.get("custom_id"))
        return slot_of(*identity), str(line["key"]), line["error"] is not None

    def settle(self, line: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in line.items() if name not in VOLATILE}
        if kept.get("usage"):
            kept["usage"] = settle_usage(kept["usage"])
        return kept


class OpenAILines:
    """OpenAI's two files of a batch: answers, and what has none. created: for all answers, which
    makes two runs equal; an id is made of the input's key."""

    names: tuple[str, ...] = ("", ".errors")

    def __init__(self, created: int) -> None:
        self.created = created

    def encode(self, result: Result) -> tuple[int, dict[str, Any]]:
        short = result.key[:24]
        line: dict[str, Any] = {"id": f"batch_req_{short}", "custom_id": result.custom_id}
        error = result.error
        if error is None:
            body = {**(result.reply or {}), "id": f"chatcmpl-{short}", "created": self.created}
            response = {"status_code": 200, "request_id": f"req_{short}", "body": body}
            return 0, {**line, "response": response, "error": None}
        if error.status is None:
            said: dict[str, Any] = {"code": error.kind.replace(" ", "_"), "message": error.message}
            return 1, {**line, "response": None, "error": said}
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        said = {"message": error.message, "type": kind, "param": None, "code": error.code}
        response = {
            "status_code": error.status, "request_id": f"req_{short}", "body": {"error": said}
        }  # fmt: skip
        return 1, {**line, "response": response, "error": None}

    def decode(self, number: int, line: Mapping[str, Any]) -> tuple[str, str, bool]:
        key = str(line["id"]).removeprefix("batch_req_")
        return slot_of("", None, None, line["custom_id"]), key, number == 1

    def settle(self, line: dict[str, Any]) -> dict[str, Any]:
        body = dict((line["response"] or {}).get("body") or {})
        body.pop("timings", None)
        if body.get("usage"):
            body["usage"] = settle_usage(body["usage"])
        return {**line, "response": line["response"] and {**line["response"], "body": body}}


def slot_of(source: str, page: int | None, prompt: str | None, custom_id: str | None) -> str:
    """What stands for an input: one line at most has it, whatever its settings were."""
    if custom_id is not None:
        return json.dumps([custom_id])
    return json.dumps([source, page, prompt])


def source_of(slot: str) -> str:
    """The file, or the custom_id, that a slot belongs to."""
    source: str = json.loads(slot)[0]
    return source


def settle_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """How many tokens a kept cache had depends on what was asked before."""
    details = dict(usage.get("prompt_tokens_details") or {})
    details.pop("cached_tokens", None)
    return {**usage, "prompt_tokens_details": details} if details else dict(usage)


def to_line(line: Mapping[str, Any]) -> bytes:
    """One line of JSON. Half of a letter, which a model may write, is written as an escape."""
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def unfence(text: str) -> str:
    """An answer without the ``` that some models put around all of it."""
    found = FENCE.match(text)
    return found[1] if found else text


def read_reply(item: Item, reply: Mapping[str, Any]) -> Result:
    """A chat completion as a result. Raises KeyError, TypeError or IndexError for anything else."""
    choice = reply["choices"][0]
    message, reason = choice["message"], choice["finish_reason"]
    text = message.get("content") or ""
    parsed, error = None, None
    if item.is_json:
        try:
            parsed = json.loads(unfence(text))
        except ValueError:
            if item.must_be_json:
                cut = Failure("cut off", f"{item.name}: the JSON was cut off at its longest")
                no_json = Failure("not JSON", f"{item.name}: the answer is no JSON")
                error = cut if reason == "length" else no_json
    if choice.get("stop_reason") == "repetition":
        error = Failure("repetition", f"{item.name}: the answer went round in circles")
    return Result(
        item.key, item.source, item.page, text, parsed, tuple(message.get("boxes") or ()),
        reply.get("usage"), error, finish_reason=reason, prompt=item.prompt,
        custom_id=item.custom_id, slot=item.slot, reply=reply,
    )  # fmt: skip


def read_failure(item: Item, failure: Failure, attempts: int, seconds: float) -> Result:
    return Result(
        item.key, item.source, item.page, error=failure, seconds=seconds, prompt=item.prompt,
        custom_id=item.custom_id, attempts=attempts, slot=item.slot,
    )  # fmt: skip


def beside(path: PurePath, word: str) -> PurePath:
    """out.jsonl as out.WORD.jsonl."""
    return path.with_name(f"{path.stem}{word}{path.suffix}") if word else path

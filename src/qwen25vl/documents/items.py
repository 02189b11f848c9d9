"""One request of a job, and the files that it names in place of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qwen25vl.documents.failures import Failure

KEY_LETTERS = 24


@dataclass(frozen=True)
class Attachment:
    """A picture, clip or document in a request, read when the request is sent.

    source: its path, or its bytes. digest: of its content. pages: of a document, None for all.
    frame: which one of a TIFF file, or 0, is sent as PNG.
    """

    source: Path | bytes
    digest: str
    kind: Literal["image", "video", "file"] = "image"
    media_type: str = "application/octet-stream"
    pages: str | None = None
    frame: int | None = None

    @property
    def name(self) -> str:
        return self.source.name if isinstance(self.source, Path) else "content"


@dataclass(frozen=True)
class Item:
    """slot: what it is in the output, see `results.slot_of`. body: of a chat completion, with
    attachments. num_bytes: what it takes in memory while it is asked, about. num_pages: in it.
    failure: why it cannot be asked. is_json: whether the answer is read as JSON; must_be_json:
    whether anything else is a failure."""

    key: str
    slot: str
    source: str
    body: Mapping[str, Any]
    page: int | None = None
    num_pages: int = 1
    prompt: str | None = None
    custom_id: str | None = None
    num_bytes: int = 0
    failure: Failure | None = None
    is_json: bool = False
    must_be_json: bool = False

    @property
    def name(self) -> str:
        """What errors call it."""
        name = self.custom_id or self.source
        return name if self.page is None else f"{name}, page {self.page}"

    def varied(self, num_circles: int) -> Item:
        """The item as it is asked after so many answers that went round in circles: each time,
        repeated tokens are less likely."""
        if not num_circles or self.body.get("repetition_penalty") is not None:
            return self
        body = {**self.body, "repetition_penalty": round(1 + 0.05 * num_circles, 2)}
        return replace(self, body=body)


def key_of(identity: object, body: Mapping[str, Any], slot: str) -> str:
    """Equal for equal inputs under equal settings. identity: the model with its settings."""
    content = [identity, fill(body, describe), slot]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()[:KEY_LETTERS]


def describe(attachment: Attachment) -> dict[str, Any]:
    return {"kind": attachment.kind, "digest": attachment.digest, "pages": attachment.pages,
            "frame": attachment.frame}  # fmt: skip


def fill(value: Any, make: Callable[[Attachment], Mapping[str, Any]]) -> Any:
    """A body in which a part of another form stands for each {"attachment": …}."""
    if isinstance(value, Mapping):
        attachment = value.get("attachment")
        if isinstance(attachment, Attachment):
            others = {name: each for name, each in value.items() if name != "attachment"}
            return {**others, **make(attachment)}
        return {name: fill(each, make) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [fill(each, make) for each in value]
    return value


def attachments_in(value: Any) -> list[Attachment]:
    found: list[Attachment] = []

    def note(attachment: Attachment) -> dict[str, Any]:
        found.append(attachment)
        return {}

    fill(value, note)
    return found


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()

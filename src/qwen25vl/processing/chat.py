"""Messages in every common shape become one shape.

Three shapes of a part of a message are in use: the ecosystem's ({"type": "image", "url" | "path" | "base64" |
"image": …}), OpenAI's ({"type": "image_url", "image_url": {"url": …}}) and qwen-vl-utils' ({"type": "image",
"image": …, "max_pixels": …}), each also for videos. All become `Part`.

A key that nobody defines is refused by name, with one exception: OpenAI's `detail` asks for a resolution of its own
servers, and clients send it with every picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen25vl.errors import MessageError

IMAGE_SLOT, VIDEO_SLOT = "<|image_pad|>", "<|video_pad|>"
Kind = Literal["text", "image", "video"]
SOURCES: dict[Kind, tuple[str, ...]] = {
    "image": ("image", "image_url", "url", "path", "base64"),
    "video": ("video", "video_url", "url", "path", "base64"),
}
SIZE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
OPTIONS: dict[Kind, tuple[str, ...]] = {
    "image": SIZE_OPTIONS,
    "video": (*SIZE_OPTIONS, "total_pixels", "fps", "nframes", "min_frames", "max_frames", "video_start",
              "video_end", "sample_fps", "raw_fps"),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Text, or a picture or video; a `source` of None is a slot whose content is given beside the messages."""

    kind: Kind
    text: str = ""
    source: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    role: str
    parts: tuple[Part, ...]
    is_string: bool  # templates may treat a plain text and a list of one text differently


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """One conversation. Raises MessageError for a shape that nobody defines."""
    if not messages:
        raise MessageError("a conversation has no messages")
    return [read_message(message, index) for index, message in enumerate(messages)]


def is_batch(messages: Sequence[Any]) -> bool:
    """Whether these are conversations, not messages."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise MessageError(f"messages are {type(messages).__name__}; expected a list of messages or of conversations")
    return bool(messages) and isinstance(messages[0], Sequence) and not isinstance(messages[0], str)


def read_message(message: Mapping[str, Any], index: int) -> Message:
    where = f"message {index + 1}"
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise MessageError(f"{where} is {message!r:.80}; expected an object with role and content")
    if unknown := sorted(map(str, message.keys() - {"role", "content"})):
        raise MessageError(f"{where} has {', '.join(unknown)}; the model is told only role and content")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not re.fullmatch(r"[A-Za-z_]+", role):
        raise MessageError(f"{where} has the role {role!r}; expected a word like system, user or assistant")
    if isinstance(content, str):
        return Message(role, (Part("text", content),), True)
    if not isinstance(content, Sequence):
        raise MessageError(f"{where} has {type(content).__name__} as content; expected a text or a list of parts")
    return Message(role, tuple(read_part(part, f"{where}, part {i + 1}") for i, part in enumerate(content)), False)


def read_part(part: Any, where: str) -> Part:
    if isinstance(part, str):
        return Part("text", part)
    if not isinstance(part, Mapping):
        raise MessageError(f"{where} is {type(part).__name__}; expected a text or an object with a type")
    part = {key: value for key, value in part.items() if value is not None}  # data sets fill absent keys with null
    kind = part_kind(part, where)
    if kind == "text":
        if not isinstance(part.get("text"), str) or part.keys() - {"type", "text"}:
            raise MessageError(f"{where} is {dict(part)!r:.80}; expected {{'type': 'text', 'text': …}}")
        return Part("text", part["text"])
    named = [key for key in SOURCES[kind] if key in part]
    options = {key: part[key] for key in OPTIONS[kind] if key in part}
    if unknown := sorted(map(str, part.keys() - {"type", "detail", *SOURCES[kind], *options})):
        known = ", ".join((*SOURCES[kind], *OPTIONS[kind]))
        raise MessageError(f"{where} has {', '.join(unknown)}; known for {kind} are {known}")
    if len(named) > 1:
        raise MessageError(f"{where} names its {kind} twice: {' and '.join(named)}")
    return Part(kind, "", read_source(part[named[0]], named[0], where) if named else None, options)


def part_kind(part: Mapping[str, Any], where: str) -> Kind:
    stated = part.get("type")
    if stated in ("image", "image_url", "input_image") or (stated is None and {"image", "image_url"} & part.keys()):
        return "image"
    if stated in ("video", "video_url") or (stated is None and {"video", "video_url"} & part.keys()):
        return "video"
    if stated in ("text", "input_text") or (stated is None and "text" in part):
        return "text"
    raise MessageError(f"{where} is of type {stated!r}; expected text, image, image_url, video or video_url")


def read_source(value: Any, key: str, where: str) -> Any:
    if isinstance(value, Mapping):  # OpenAI's {"url": …}
        if not isinstance(value.get("url"), str):
            raise MessageError(f"{where}: {key} has no url")
        if unknown := sorted(map(str, value.keys() - {"url", "detail"})):
            raise MessageError(f"{where}: {key} has {', '.join(unknown)}; known are url and detail")
        return value["url"]
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        return f"data:;base64,{value}"
    return value

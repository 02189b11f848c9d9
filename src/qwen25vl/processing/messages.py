"""Messages in every common shape become one shape.

Three shapes of a part of a message are in use: the ecosystem's ({"type": "image", "url" | "path" |
"base64" | "image": …}), OpenAI's ({"type": "image_url", "image_url": {"url": …}}) and
qwen-vl-utils' ({"type": "image", "image": …, "max_pixels": …}), each also for videos. All become
`Part`. `clients` reads uploaded files and what the clients of OpenAI's two APIs dump.

A key whose value is None equals an absent key. Keys that clients and servers add for their own use
(`detail`, `id`, `status`, `annotations`, `metadata`, …) are accepted and not shown to the model.
Any other key of a part with a value is refused, and the error names the nearest known one. Those of
a message are there for templates that ask for them; one that is nearly a known one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qwen25vl.arguments import name_hint, nearest_name, outline, plain_number
from qwen25vl.errors import MessageError
from qwen25vl.processing.base64_text import is_data_uri, plain_base64
from qwen25vl.processing.blocks import UNTOLD_OF_PART, read_source_keys, split_blocks
from qwen25vl.processing.clients import (
    ToolCall,
    plain_list,
    plain_text,
    present,
    read_file,
    read_file_tuple,
    read_response_item,
    read_tool_calls,
    refuse_keys,
)
from qwen25vl.processing.content import identify
from qwen25vl.processing.pdf_sources import open_pages

IMAGE_SLOT, VIDEO_SLOT = "<|image_pad|>", "<|video_pad|>"
PartKind = Literal["text", "image", "video"]
SOURCES: dict[PartKind, tuple[str, ...]] = {
    "image": ("image", "image_url", "url", "path", "base64"),
    "video": ("video", "video_url", "url", "path", "base64"),
}
SIZE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
OPTIONS: dict[PartKind, tuple[str, ...]] = {
    "image": SIZE_OPTIONS,
    "video": (*SIZE_OPTIONS, "total_pixels", "fps", "nframes", "min_frames", "max_frames",
              "video_start", "video_end", "sample_fps", "raw_fps", "strict"),
}  # fmt: skip
TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
UNTOLD_OF_TEXT = ("annotations", "logprobs", "citations", "cache_control", "id", "index")
SAME_ROLE = {"developer": "system", "function": "tool"}  # OpenAI's newer and older names
UNTOLD = ("metadata", "options")  # Gradio's, of its own display
KEYS_OF_ROLE = {
    "assistant": (
        *("tool_calls", "function_call", "refusal"),
        *("annotations", "reasoning_content", "reasoning", "reasoning_details"),
    ),
    "tool": ("tool_call_id", "name"),
}
NAMES = ("name", "id", "recipient", "weight")  # of other templates


@dataclass(frozen=True)
class Part:
    """Text, or a picture or video; a `source` of None is a slot whose content is
    given beside the messages."""

    kind: PartKind
    text: str = ""
    source: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """role: as the template knows it; tool_calls: what the assistant called after its words;
    further: other keys, which the template may ask for."""

    role: str
    parts: tuple[Part, ...]
    is_string: bool  # templates may treat a plain text and a list of one text differently
    tool_calls: tuple[ToolCall, ...] = ()
    further: Mapping[str, Any] = field(default_factory=dict)


def read_messages(messages: Sequence[Any]) -> list[Message]:
    """One conversation, without the items that hold an assistant's thoughts.

    Raises MessageError for a shape that nobody defines.
    """
    if not messages:
        raise MessageError("a conversation has no messages")
    read: list[Message] = []
    for index, message in enumerate(messages):
        where = f"message {index + 1}"
        read += [read_message(values, where) for values in plain_messages(message, where)]
    if not read:
        wanted = "expected an object with role and content"
        raise MessageError(f"the conversation has nothing but thoughts; {wanted}")
    return read


def plain_messages(message: Any, where: str) -> list[Mapping[str, Any]]:
    """An item of a conversation as messages with a role and content: one, none of a thought, or
    several where a content has the results of tools."""
    values = read_response_item(present(message) or {}, where)
    if values.get("type") == "reasoning" and "role" not in values:
        return []
    is_complete = has_content(message, values) or values.get("role") == "assistant"
    if "role" not in values or not is_complete:
        raise MessageError(
            f"{where} is {outline(message)}; expected an object with role and content"
        )
    return split_blocks(values, where)


def is_batch(messages: Sequence[Any]) -> bool:
    """Whether these are conversations, not messages."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise MessageError(
            f"messages are {type(messages).__name__}; expected a list of messages or of "
            "conversations"
        )
    return bool(messages) and isinstance(messages[0], Sequence) and not isinstance(messages[0], str)


def ends_with_answer(messages: Sequence[Any]) -> bool:
    """Whether a conversation's last message is the assistant's: an answer that was begun."""
    for message in reversed(messages):
        if present(message) is None:
            return False
        if found := plain_messages(message, "the last message"):
            return bool(found[-1]["role"] == "assistant")
    return False


def read_message(values: Mapping[str, Any], where: str) -> Message:
    """Role, content and the assistant's tool calls."""
    role = values["role"]
    if not isinstance(role, str) or not re.fullmatch(r"[A-Za-z_]+", role):
        raise MessageError(
            f"{where} has the role {role!r}; expected a string such as system, user or assistant"
        )
    role = SAME_ROLE.get(role, role)
    further = further_keys(values, role, where)
    content = values.get("content")
    if values.get("refusal"):
        if content:
            raise MessageError(f"{where} has both content and refusal; expected only one")
        content = values["refusal"]
    parts, is_string = read_content(content, where)
    calls = read_tool_calls(values, where) if role == "assistant" else ()
    return Message(role, parts, is_string, calls, further)


def has_content(message: Any, values: Mapping[str, Any]) -> bool:
    """Whether content was given, even as None."""
    return "content" in values or not isinstance(message, Mapping) or "content" in message


def further_keys(values: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """What a message says beside its role, content and calls, for templates that ask for it.

    Raises MessageError for a name that is nearly one of the known, which was probably meant, and
    for audio.
    """
    if "audio" in values:
        raise MessageError(f"{where} has audio, which this model cannot hear; give its transcript")
    known = ("role", "content", *KEYS_OF_ROLE.get(role, ()), *UNTOLD)
    elsewhere = {key for keys in KEYS_OF_ROLE.values() for key in keys} | set(NAMES)
    for name in sorted(map(str, values.keys() - {*known, *elsewhere})):
        if nearest := nearest_name(name, known):
            raise MessageError(f"{where} has {name}; did you mean {nearest}?")
    read = ("role", "content", *KEYS_OF_ROLE["assistant"])
    return {str(key): value for key, value in values.items() if key not in read}


def read_content(content: Any, where: str) -> tuple[tuple[Part, ...], bool]:
    """The parts of a content, and whether it is a plain text.

    None is an empty text; an object is the content's only part.
    """
    if content is None or isinstance(content, str):
        return (Part("text", plain_text(content or "")),), True
    content = plain_list(content)
    if (file := read_file_tuple(content)) is not None:
        content = [file]
    elif present(content) is not None:
        content = [content]
    if not isinstance(content, Sequence):
        got = f"{where} has {type(content).__name__} as content"
        raise MessageError(f"{got}; expected a text or a list of parts")
    parts = [
        each
        for number, part in enumerate(content, start=1)
        if part is not None  # as data sets fill rows
        for each in read_parts(part, f"{where}, part {number}")
    ]
    return tuple(parts), False


def read_parts(part: Any, where: str) -> list[Part]:
    """A part; of a PDF document one picture for each page, or for those that `pages` chooses."""
    read, chosen = read_part(part, where)
    pages = open_pages(read.source, chosen) if read.kind == "image" else None
    if pages is None and chosen is not None:
        raise MessageError(f"{where} has pages, but it is no PDF document")
    return [read] if pages is None else [replace(read, source=page) for page in pages]


def read_part(part: Any, where: str) -> tuple[Part, Any]:
    """A part, and which of its pages are wanted where it is a document."""
    if isinstance(part, str):
        return Part("text", plain_text(part)), None
    values = present(part if (file := read_file_tuple(part)) is None else file)
    if values is None:
        raise MessageError(
            f"{where} is {type(part).__name__}; expected a text or an object with a type"
        )
    if values.get("type") in ("file", "input_file") or (
        "type" not in values and {"path", "url", "file"} & values.keys()
    ):
        values = read_file(values, where)
    values = read_source_keys(values, where)
    kind = part_kind(values, where)
    if kind == "text":
        return Part("text", read_text(values, where)), None
    pages = values.pop("pages", None) if kind == "image" else None
    named = [key for key in SOURCES[kind] if key in values]
    options = {key: read_option(values[key], key, where) for key in OPTIONS[kind] if key in values}
    known = (*SOURCES[kind], *OPTIONS[kind])
    if unknown := sorted(map(str, values.keys() - {"type", *UNTOLD_OF_PART, *known})):
        nearest = nearest_name(unknown[0], known)
        hint = f"did you mean {nearest}?" if nearest else f"known for {kind} are {', '.join(known)}"
        raise MessageError(f"{where} has {', '.join(unknown)}; {hint}")
    if len(named) > 1:
        raise MessageError(f"{where} names its {kind} twice: {' and '.join(named)}")
    source = read_source(values[named[0]], named[0], where) if named else None
    return Part(kind, "", source, options), pages


def read_text(values: Mapping[str, Any], where: str) -> str:
    """The text of a part. The Responses API's citations and probabilities beside it are dropped."""
    key = "refusal" if values.get("type") == "refusal" else "text"
    wanted = f"expected {{'type': '{key}', '{key}': …}}"
    if not isinstance(text := values.get(key), str):
        raise MessageError(f"{where} is {outline(values)}; {wanted}")
    if unknown := sorted(map(str, values.keys() - {"type", key, *UNTOLD_OF_TEXT})):
        hint = name_hint(unknown[0], ("type", key))
        raise MessageError(f"{where} has {', '.join(unknown)}; {hint}; {wanted}")
    return text


def read_option(value: Any, name: str, where: str) -> Any:
    """An option of one picture or video, whose number may be spelt as a text.

    Which numbers it may have is checked where it is used.
    """
    if not isinstance(value, str) or name == "strict":
        return value
    if (number := plain_number(value, from_text=True)) is None:
        raise MessageError(f"{where}: {name} is {value!r}; expected a number")
    return number


def part_kind(part: Mapping[str, Any], where: str) -> PartKind:
    stated = part.get("type")
    if stated in ("image", "image_url", "input_image") or (
        stated is None and {"image", "image_url"} & part.keys()
    ):
        return "image"
    if stated in ("video", "video_url") or (
        stated is None and {"video", "video_url"} & part.keys()
    ):
        return "video"
    if stated in TEXT_TYPES or (stated is None and "text" in part):
        return "text"
    raise MessageError(
        f"{where} is of type {stated!r}; expected text, image, image_url, video or video_url"
    )


def read_source(value: Any, key: str, where: str) -> Any:
    if (values := present(value)) is not None:  # OpenAI's {"url": …}
        if "url" not in values and values.keys() & {"bytes", "path"}:  # as data sets keep files
            return {"bytes": None, **values}
        if "url" not in values:
            raise MessageError(f"{where}: {key} has no url")
        refuse_keys(values, ("url", "detail", "format"), f"{where}: {key}")
        return values["url"]
    if key == "base64" and isinstance(value, bytes | bytearray):
        if identify(value) is not None:  # the content itself
            return value
        value = value.decode("ascii", "replace")
    if key == "base64" and isinstance(value, str) and not is_data_uri(value):
        plain = plain_base64(value.encode("utf-8", "replace"))
        return f"data:;base64,{plain.decode('utf-8', 'replace')}"
    return value

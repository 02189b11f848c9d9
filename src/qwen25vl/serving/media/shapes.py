"""Where the media stand in a request's messages, in whatever shape clients write them.

Only parts that are known to hold text pass as they are. Everything else is a medium, or refused: a
part that came through unread could name a file of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen25vl.processing.blocks import THOUGHTS
from qwen25vl.processing.clients import present
from qwen25vl.processing.messages import TEXT_TYPES
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media.bounds import known_options
from qwen25vl.serving.media.faults import refuse
from qwen25vl.serving.media.medium import Noun

NOUNS: dict[str, Noun] = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
    **dict.fromkeys(("file", "input_file", "document"), "file"),
}
HOLDERS: dict[Noun, tuple[str, ...]] = {
    "image": ("image_url", "image", "source", "url", "base64", "data", "file_id", "path"),
    "video": ("video_url", "video", "input_video", "source", "url", "base64", "data", "path"),
    "file": ("file", "file_data", "file_url", "file_id", "source", "url", "base64", "data", "path"),
}
INNER = ("url", "file_data", "file_url", "file_id", "data", "base64", "path")
PASSED = (*TEXT_TYPES, *THOUGHTS, "tool_use")
CONTENTS = ("content", "output")
MAX_DEPTH = 4  # a message, a tool's result in it, and one to spare


@dataclass(frozen=True)
class Wanted:
    """A medium as the request names it.

    sources: the address or base64 of the file, or of each frame, with the place of each in the
    request; are_frames: whether they were given as a list. options: those beside or inside it.
    """

    noun: Noun
    key: str
    sources: tuple[tuple[str, str], ...]
    param: str
    are_frames: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    detail: Any = None
    pages: Any = None


def find_media(messages: Sequence[Any], root: str) -> list[Any]:
    """The messages, in whose contents a `Wanted` stands for each medium. Raises ApiError."""
    return [read_message(message, f"{root}[{i}]") for i, message in enumerate(messages)]


def read_message(message: Any, param: str) -> Any:
    if not isinstance(message, Mapping):
        raise ApiError(400, "expected an object with role and content", param=param)
    read = dict(message)
    for key in CONTENTS:
        if read.get(key) is not None:
            read[key] = read_content(read[key], f"{param}.{key}")
    if not isinstance(read.get("refusal", ""), str | None):
        raise ApiError(400, "expected a text", param=f"{param}.refusal")
    return read


def read_content(content: Any, param: str, depth: int = 0) -> Any:
    if isinstance(content, str):
        return content
    if depth > MAX_DEPTH:
        raise ApiError(400, "contents are nested too deeply", param=param)
    if isinstance(content, Mapping):
        return [read_part(content, param, depth)]
    if not isinstance(content, list):
        raise ApiError(400, "expected a text or a list of parts", param=param)
    return [
        read_part(part, f"{param}[{i}]", depth)
        for i, part in enumerate(content)
        if part is not None
    ]


def read_part(part: Any, param: str, depth: int) -> Any:
    if isinstance(part, str):
        return part
    values = present(part) if isinstance(part, Mapping) else None
    if values is None:
        raise ApiError(400, "expected a text or an object with a type", param=param)
    kind = values.get("type")
    if kind == "tool_result":
        if values.get("content") is not None:
            values["content"] = read_content(values["content"], f"{param}.content", depth + 1)
        return values
    if kind in PASSED:
        return values
    if kind is None:
        return read_untyped(values, param)
    if not isinstance(kind, str) or kind not in NOUNS:
        known = ", ".join(("text", *NOUNS))
        text = f"content of this type is not supported; known are {known}"
        raise ApiError(400, text, param=f"{param}.type", code="unsupported_content_type")
    if kind == "document" and is_text_document(values):
        return {"type": "text", "text": values["source"]["data"]}
    return read_medium(values, NOUNS[kind], param)


def is_text_document(values: Mapping[str, Any]) -> bool:
    """Anthropic's document of plain text."""
    source = values.get("source")
    return (
        isinstance(source, Mapping)
        and source.get("type") == "text"
        and isinstance(source.get("data"), str)
    )


def read_untyped(values: dict[str, Any], param: str) -> Any:
    """A part that says what it is by its keys alone."""
    for noun, keys in (("image", ("image", "image_url")), ("video", ("video", "video_url"))):
        if any(key in values for key in keys):
            return read_medium(values, NOUNS[noun], param)
    if values.keys() & {"file", "url", "path"}:
        return read_medium(values, "file", param)
    if isinstance(values.get("text"), str):
        return {"type": "text", "text": values["text"]}
    raise ApiError(400, "the part has no type", param=f"{param}.type")


def read_medium(values: Mapping[str, Any], noun: Noun, param: str) -> Wanted:
    held = [key for key in HOLDERS[noun] if values.get(key) not in (None, "", {}, [])]
    if not held:
        raise refuse("url", noun, param, missing_text(values, noun))
    if len(held) > 1:
        text = f"the {noun} is named twice: {' and '.join(held)}"
        raise refuse("url", noun, f"{param}.{held[1]}", text)
    key = held[0]
    value, where = values[key], f"{param}.{key}"
    inner = present(value) if isinstance(value, Mapping) else {}
    found = {**values, **(inner or {})}
    wanted: dict[str, Any] = {
        "options": known_options(found, noun),
        "detail": found.get("detail"),
        "pages": found.get("pages"),
        "param": where,
    }
    if isinstance(value, list):
        if noun != "video":
            raise refuse("url", noun, where, f"expected one {noun}, not a list")
        frames = tuple(read_frame(frame, f"{where}[{i}]") for i, frame in enumerate(value))
        return Wanted(noun, "url", frames, are_frames=True, **wanted)
    if isinstance(value, Mapping):
        key, value, where = read_inner(found, inner or {}, noun, where)
    if not isinstance(value, str):
        raise refuse("url", noun, where, "expected a text")
    if key == "path":
        text = "paths are not read; send the content as data:…;base64,…"
        raise refuse("url", noun, where, text)
    return Wanted(noun, key, ((value, where),), **{**wanted, "param": where})


def read_inner(
    whole: Mapping[str, Any], inner: Mapping[str, Any], noun: Noun, where: str
) -> tuple[str, Any, str]:
    """What kind of source an object holds, the source, and its place. whole: with the keys beside
    the object."""
    held = [name for name in INNER if inner.get(name) not in (None, "")]
    if len(held) != 1:
        text = "several sources are given" if held else missing_text(whole, noun)
        raise refuse("url", noun, where, text)
    return held[0], inner[held[0]], f"{where}.{held[0]}"


def read_frame(frame: Any, where: str) -> tuple[str, str]:
    """A frame of a list: an address or base64, or a picture's part."""
    if isinstance(frame, str):
        return frame, where
    values = present(frame) if isinstance(frame, Mapping) else None
    if values is None:
        raise refuse("url", "video", where, "expected a text or a picture")
    if values.get("type") is None and "url" in values:
        values = {"type": "image_url", "image_url": values}
    found = read_medium(values, "image", where)
    if found.key == "file_id":
        raise refuse("missing", "video", where, "frames cannot be named by the id of a file")
    return found.sources[0]


def missing_text(values: Mapping[str, Any], noun: Noun) -> str:
    if "uuid" in values:
        return (
            f"the {noun} is named by its uuid only; this server keeps none between requests, so "
            "that its content must be sent too"
        )
    return f"the {noun} has no content; expected data:…;base64,…"

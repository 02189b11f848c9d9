"""What clients send, turned into plain messages: dumped objects, uploaded files, calls of tools.

openai-python's `model_dump()` fills absent keys with None and adds what only its servers use; the
Responses API names parts by direction ("input_text", "output_text") and sends calls as items of
their own; Gradio describes a file by its path, name and type. None equals absent everywhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qwen25vl.arguments import name_hint, outline
from qwen25vl.errors import MessageError
from qwen25vl.processing.pdf_sources import Document, split_pages

FILE_KEYS = (
    "path",
    "url",
    "file_data",
    "file_url",
    "mime_type",
    "orig_name",
    "filename",
    "size",
    "is_stream",
    "meta",
    "pages",
)
CALL_KEYS = ("id", "type", "index", "name", "arguments", "parsed_arguments")  # openai's helpers
FILE_SOURCES = ("path", "url", "file_data", "file_url")  # Gradio's url leads to its own server
ANTHROPIC_KEYS = ("model", "stop_reason", "stop_sequence", "usage", "container")  # of an answer
SUFFIXES = {
    "image": "apng avif bmp gif heic heif ico j2k jfif jp2 jpeg jpg pbm pgm png ppm tif tiff webp",
    "video": "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg ogv ts webm wmv",
}


@dataclass(frozen=True)
class ToolCall:
    """A call that the assistant made: the tool's name, and its arguments by name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """The call as the model writes it between <tool_call> and </tool_call>."""
        return f'{{"name": {to_json(self.name)}, "arguments": {to_json(self.arguments)}}}'


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def present(value: Any) -> dict[str, Any] | None:
    """The keys that have a value, of a mapping, a dataclass or what has `model_dump`; else None."""
    if isinstance(value, Mapping):
        values: Any = value
    elif isinstance(value, type):
        return None
    elif callable(dump := getattr(value, "model_dump", None)):
        values = dump()
    elif dataclasses.is_dataclass(value):
        values = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    else:
        return None
    if not isinstance(values, Mapping):
        return None
    return {key: plain_text(content) for key, content in values.items() if content is not None}


def plain_text(value: Any) -> Any:
    """A text of a class of its own, as a member of an enum is one, as the plain text it holds.

    Such a class may write itself differently: str() of a member is the member's name.
    """
    return str.__str__(value) if isinstance(value, str) else value


def plain_list(value: Any) -> Any:
    """A row of objects as pandas reads it from a file, an array of one dimension, as a list."""
    return value.tolist() if getattr(value, "ndim", None) == 1 else value


def refuse_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise MessageError for keys that nobody defines."""
    if unknown := sorted(map(str, values.keys() - set(known))):
        raise MessageError(f"{where} has {', '.join(unknown)}; {name_hint(unknown[0], known)}")


def read_response_item(item: dict[str, Any], where: str) -> dict[str, Any]:
    """An item of the Responses API as a message; what is none of them comes back as it is."""
    kind = item.get("type")
    if kind == "function_call":
        refuse_keys(item, ("type", "id", "call_id", "name", "arguments", "status"), where)
        call = {key: item.get(key) for key in ("name", "arguments")}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "custom_tool_call":
        refuse_keys(item, ("type", "id", "call_id", "name", "input", "status"), where)
        return {"role": "assistant", "tool_calls": [{"type": "custom", "custom": item}]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        refuse_keys(item, ("type", "id", "call_id", "output", "status"), where)
        return {"role": "tool", "content": item.get("output", "")}
    if kind == "message":
        untold = ("type", "id", "status", "phase", *ANTHROPIC_KEYS)
        return {key: value for key, value in item.items() if key not in untold}
    return item


def read_tool_calls(message: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant's message: OpenAI's `tool_calls`, and the older `function_call`."""
    calls = plain_list(message.get("tool_calls", []))
    if isinstance(calls, str) or not isinstance(calls, Sequence):
        got = type(calls).__name__
        raise MessageError(f"{where} has {got} as tool_calls; expected a list of calls")
    named = [(call, f"{where}, tool call {number}") for number, call in enumerate(calls, start=1)]
    if "function_call" in message:
        named.append((message["function_call"], f"{where}, function_call"))
    return tuple(read_tool_call(call, name) for call, name in named)


def read_tool_call(call: Any, where: str) -> ToolCall:
    """{"function": {"name", "arguments"}} or the inner object alone; arguments may be JSON."""
    values = present(call)
    if values is not None and "custom" in values:
        refuse_keys(values, ("id", "type", "index", "custom"), where)
        return read_custom_call(values["custom"], where)
    if values is not None and "function" in values:
        refuse_keys(values, ("id", "type", "index", "function"), where)
        values = present(values["function"])
    if values is None or not isinstance(name := values.get("name"), str):
        wanted = "expected {'function': {'name': …, 'arguments': …}}"
        raise MessageError(f"{where} is {outline(call)}; {wanted}")
    refuse_keys(values, CALL_KEYS, where)
    return ToolCall(name, read_arguments(values.get("arguments", {}), where))


def read_custom_call(call: Any, where: str) -> ToolCall:
    """A tool of OpenAI's that takes any text, as a tool with one argument, `input`."""
    values = present(call) or {}
    name, text = values.get("name"), values.get("input", "")
    if not isinstance(name, str) or not isinstance(text, str):
        wanted = "expected {'custom': {'name': …, 'input': a text}}"
        raise MessageError(f"{where} is {outline(call)}; {wanted}")
    return ToolCall(name, {"input": text})


def read_arguments(arguments: Any, where: str) -> Mapping[str, Any]:
    got = f"{where} has {outline(arguments)} as arguments"
    wanted = "expected an object, or a text that is one in JSON"
    try:
        text = (arguments or "{}") if isinstance(arguments, str) else to_json(arguments)
        read = json.loads(text)
        to_json(read)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"{got}; {wanted}: {error}") from None
    if not isinstance(read, Mapping):
        raise MessageError(f"{got}; {wanted}")
    return read


def read_file(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A file as Gradio or OpenAI describes it, as a part of the kind that its type or name says."""
    described: Mapping[str, Any] | None = part
    if "file" in part:
        refuse_keys(part, ("type", "file", "alt_text", "pages"), where)
        described = present(part["file"])
    if described is not None and "pages" in part:
        described = {**described, "pages": part["pages"]}
    if described is None:
        got = type(part["file"]).__name__
        raise MessageError(f"{where} has {got} as file; expected an object with a path")
    refuse_keys(described, (*FILE_KEYS, "type", "detail"), where)
    key = next((key for key in FILE_SOURCES if key in described), None)
    if key is None:
        wanted = f"expected one of {', '.join(FILE_SOURCES)}"
        raise MessageError(f"{where} is a file without a source; {wanted}")
    source = described[key]
    mime_type = described.get("mime_type") or data_type(source)
    name = described.get("orig_name") or described.get("filename") or source
    pages = {"pages": described["pages"]} if "pages" in described else {}
    if is_pdf(mime_type, name):
        address, chosen = split_pages(source) if isinstance(source, str) else (source, None)
        stated = described.get("orig_name") or described.get("filename")
        return {"type": "image", "image": Document(address, chosen, stated), **pages}
    if (kind := file_kind(mime_type, name)) is None:
        got = f"{where} is the file {str(name)[:60]!r}"
        known = "a picture, a video nor a PDF document"
        raise MessageError(f"{got}, which by its name and type is neither {known}")
    return {"type": kind, "base64" if key == "file_data" else "url": source, **pages}


def is_pdf(mime_type: str | None, name: Any) -> bool:
    """Whether a file's type, else the end of its name, says that it is a PDF document."""
    if mime_type:
        return mime_type.partition(";")[0].strip().lower() == "application/pdf"
    if not isinstance(name, str | Path):
        return False
    return split_pages(str(name))[0].partition("?")[0].lower().endswith(".pdf")


def file_kind(mime_type: str | None, name: Any) -> str | None:
    """image or video, as a media type or the end of a name says; else None."""
    stated = (mime_type or "").partition("/")[0]
    if stated in SUFFIXES:
        return stated
    if mime_type or not isinstance(name, str | Path):
        return None
    path = urlsplit(name).path if isinstance(name, str) and "://" in name else str(name)
    suffix = Path(path).suffix.lower().removeprefix(".")
    return next((kind for kind, known in SUFFIXES.items() if suffix in known.split()), None)


def data_type(source: Any) -> str | None:
    """The media type in a data URI."""
    if not isinstance(source, str) or not source.startswith("data:"):
        return None
    return source[5:100].split(",")[0].split(";")[0] or None


def read_file_tuple(content: Any) -> dict[str, Any] | None:
    """Gradio's (path,) or (path, text beside it) as a part; None for any other content."""
    if not isinstance(content, tuple) or not 1 <= len(content) <= 2:
        return None
    source, text = content[0], content[-1] if len(content) == 2 else None
    if not isinstance(source, str | Path) or not isinstance(text, str | None):
        return None
    kind = file_kind(data_type(source), source)
    return None if kind is None else {"type": kind, "url": source}

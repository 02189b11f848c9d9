"""Lines of requests: messages with files beside them, OpenAI's batch files, rows of parquet."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen25vl.documents.failures import Failure, InputError
from qwen25vl.documents.inputs import Source
from qwen25vl.documents.items import Attachment, digest_of
from qwen25vl.errors import DependencyError, UsageError

URL = "/v1/chat/completions"
HOLDERS = ("image", "image_url", "video", "video_url", "file", "path", "url")
ADDRESSES = ("data:", "http://", "https://")
MEDIA_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width", "fps", "nframes",
           "min_frames", "max_frames", "total_pixels", "detail")  # fmt: skip
IMAGE_NAMES = ("image", "images", "picture", "page", "bytes")


@dataclass(frozen=True)
class Request:
    """content: bytes of a picture or document; body: of a request. One of them is there, or
    failure. name: its place in its file."""

    name: str
    custom_id: str | None = None
    body: Mapping[str, Any] | None = None
    content: bytes | None = None
    failure: Failure | None = None


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each line that is not blank; None for one that is no JSON."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, None


def read_requests(path: Path, name: str) -> Iterator[Request]:
    """A list of messages a line, or an object with `messages` and further fields of a request."""
    for number, line in read_lines(path):
        place = f"{name}:{number}"
        request = {"messages": line} if isinstance(line, list) else line
        if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
            words = "expected messages, or an object with messages"
            yield Request(place, failure=Failure("refused", f"{place} is no request; {words}"))
            continue
        named = request.get("custom_id", request.get("id"))
        body = {key: value for key, value in request.items() if key not in ("custom_id", "id")}
        yield Request(place, None if named is None else str(named), body)


def read_openai(path: Path, name: str) -> Iterator[Request]:
    for number, line in read_lines(path):
        place = f"{name}:{number}"
        custom_id = line.get("custom_id") if isinstance(line, dict) else None
        if not isinstance(custom_id, str):
            raise UsageError(f"{place} has no custom_id, which a batch file needs in every line")
        fault = find_fault(line)
        if fault:
            code, message = fault
            failure = Failure("refused", f"{custom_id}: {message}", 400, code)
            yield Request(place, custom_id, failure=failure)
        else:
            yield Request(place, custom_id, line["body"])


def find_fault(line: Mapping[str, Any]) -> tuple[str, str] | None:
    """Code and words for a line that OpenAI would refuse."""
    if line.get("method", "POST") != "POST":
        return "invalid_method", f"method is {line['method']!r}; expected POST"
    if line.get("url", URL) != URL:
        return "invalid_url", f"url is {line['url']!r}; expected {URL}"
    body = line.get("body")
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return "invalid_request", "body is no chat completion: it has no messages"
    if body.get("stream"):
        return "invalid_request", "stream is not for batches"
    if body.get("n", 1) not in (None, 1):
        return "unsupported_value", "n is not 1; a batch writes one answer for each line"
    return None


def check_requests(sources: Iterable[Source], column: str | None) -> None:
    """Read files of requests once before the job: two of one id could not be told apart in the
    output. Raises UsageError, DependencyError."""
    seen: set[str] = set()
    for source in sources:
        if source.path is None:
            continue
        if source.kind == "parquet":
            for _ in read_parquet(source.path, source.name, column):
                break
        if source.kind not in ("openai", "requests"):
            continue
        read = read_openai if source.kind == "openai" else read_requests
        for request in read(source.path, source.name):
            if request.custom_id in seen:
                place = f"{source.name} has the id {request.custom_id!r}"
                raise UsageError(f"{place} a second time; each line needs its own")
            if request.custom_id is not None:
                seen.add(request.custom_id)


def read_parquet(path: Path, name: str, column: str | None) -> Iterator[Request]:
    """The pictures of a column, in the forms of datasets: bytes, a path, or both in a struct."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise DependencyError(f"{name} needs pyarrow: pip install pyarrow") from None
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        column = column or next((each for each in IMAGE_NAMES if each in names), None)
        if column is None or column not in names:
            have = ", ".join(names)
            raise UsageError(f"{name} has no column {column or 'image'}; it has {have} (--column)")
        row = 0
        for batch in file.iter_batches(batch_size=16, columns=[column]):
            for value in batch.column(0).to_pylist():
                place = f"{name}:{row}"
                row += 1
                try:
                    yield Request(place, content=cell(value, path.parent, place))
                except InputError as error:
                    yield Request(place, failure=error.failure)


def cell(value: Any, folder: Path, place: str) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return read_file(folder / value, place)
    failure = Failure("empty", f"{place} holds no picture")
    raise InputError(failure)


def read_file(path: Path, place: str) -> bytes:
    from qwen25vl.documents.failures import of_system

    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(of_system(error, f"{place}: {path}")) from None


def attach(body: Mapping[str, Any], folder: Path, place: str) -> dict[str, Any]:
    """A request whose messages may name files of this machine, relative to `folder`; each becomes
    an attachment. Raises InputError for a file that cannot be read."""
    messages = [attach_message(each, folder, place) for each in body["messages"]]
    return {**body, "messages": messages}


def attach_message(message: Any, folder: Path, place: str) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = [attach_part(part, folder, place) for part in message["content"]]
    return {**message, "content": parts}


def attach_part(part: Any, folder: Path, place: str) -> Any:
    if not isinstance(part, dict) or part.get("type") in ("text", "input_text"):
        return part
    for holder in HOLDERS:
        held = part.get(holder)
        inner = held if isinstance(held, dict) else {}
        value = inner.get("url") or inner.get("path") or (held if isinstance(held, str) else None)
        if not isinstance(value, str) or (path := find_file(value, folder)) is None:
            continue
        data = read_file(path, place)
        is_video = "video" in (holder, part.get("type")) or holder == "video_url"
        kind: Literal["image", "video"] = "video" if is_video else "image"
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        pages = inner.get("pages", part.get("pages"))
        chosen = None if pages is None else str(pages)
        file = Attachment(path, digest_of(data), kind, media_type, chosen)
        known = {name: each for name, each in {**part, **inner}.items() if name in MEDIA_OPTIONS}
        return {**known, "attachment": file}
    return part


def find_file(value: str, folder: Path) -> Path | None:
    """The file that a text names; None for an address, for base64, and for what is no path."""
    if value.lower().startswith(ADDRESSES):
        return None
    value = value[len("file://") :] if value.lower().startswith("file://") else value
    is_path = len(value) < 4096 and "\n" not in value and "\0" not in value
    if not is_path:
        return None
    path = folder / value
    has_suffix = 0 < len(path.suffix) <= 6 and len(value) < 1024
    return path if has_suffix or path.is_file() else None

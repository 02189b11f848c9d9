"""A question as people give it, a text with media or a list of messages, as messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from qwen25vl.errors import UsageError

Messages = list[Any]
DOCUMENT_TYPES = ("image", "image_url", "input_image", "file", "input_file")


class GenerationOptions(TypedDict, total=False):
    """Options of one answer; see GenerationConfig. None stands for the checkpoint's value."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | str | None
    stop_strings: str | Sequence[str] | None
    max_repeated_tokens: int | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None
    seed: int | None
    max_time: float | None


def compose(
    question: str | Messages, images: Any, videos: Any, system: str | None, pages: Any = None
) -> Messages:
    """Messages of one question, media before text, in which bytes stand for open files, and
    pictures for the pages of documents. pages: those that are wanted."""
    from qwen25vl.processing.keeping import keep_open_files, keep_source
    from qwen25vl.processing.prompt_videos import list_videos

    images, videos = as_list(images), list_videos(videos)
    check_texts(question, system)
    if not isinstance(question, str):
        if images or videos or system is not None or pages is not None:
            raise UsageError(
                "a list of messages holds its own images, videos, pages and system message; "
                "give only the list"
            )
        return [open_documents(each) for each in keep_open_files(list_messages(question))]
    content = read_pictures([keep_source(image) for image in images], pages)
    content += [{"type": "video", "video": keep_source(video)} for video in videos]
    messages: Messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def read_pictures(sources: list[Any], pages: Any) -> list[dict[str, Any]]:
    """A part for each picture and for each page of a document."""
    from qwen25vl.processing.pdf_sources import find_document, open_pages

    parts = []
    for source in sources:
        chosen = None if pages is None or find_document(source) is None else pages
        found = open_pages(source, chosen)
        parts += [{"type": "image", "image": each} for each in found or [source]]
    is_document = [find_document(source) is not None for source in sources]
    if pages is not None and not any(is_document):
        raise UsageError("pages chooses pages of a PDF document, but images has none")
    return parts


def open_documents(message: Any) -> Any:
    """A message in which the pages of documents stand for them, so that each is opened once."""
    from qwen25vl.processing.clients import present
    from qwen25vl.processing.messages import read_parts
    from qwen25vl.processing.pdf import PdfPage

    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    parts: list[Any] = []
    for number, part in enumerate(content, start=1):
        kind = (present(part) or {}).get("type")
        read = read_parts(part, f"part {number}") if kind in DOCUMENT_TYPES else []
        if any(isinstance(each.source, PdfPage) for each in read):
            parts += [{"type": "image", "image": each.source, **each.options} for each in read]
        else:
            parts.append(part)
    return {**message, "content": parts}


def list_messages(messages: Any) -> Messages:
    """Messages of any iterator or row of objects as a list, so that they can be read twice."""
    from qwen25vl.processing.clients import plain_list

    listed = plain_list(messages)
    if isinstance(listed, Iterator | tuple):
        return list(listed)
    if not isinstance(listed, list):
        wanted = "a text (str) or a list of messages"
        raise UsageError(f"the question is {type(messages).__name__}; expected {wanted}")
    return listed


def check_texts(question: Any, system: Any) -> None:
    """Refuse bytes and whatever else is no text, where a picture may have been given in the place
    of one."""
    is_file = isinstance(question, bytes | bytearray) or callable(getattr(question, "read", None))
    if is_file or isinstance(question, Mapping) or not hasattr(question, "__iter__"):
        wanted = "a text (str) or a list of messages; pictures go into images="
        raise UsageError(f"the question is {type(question).__name__}; expected {wanted}")
    if system is not None and not isinstance(system, str):
        raise UsageError(f"system is {type(system).__name__}; expected a text (str)")


def find_sources(messages: Messages) -> tuple[Any, ...]:
    """The pictures and videos of a conversation as they were given, in the order of the prompt."""
    from qwen25vl.processing.messages import read_messages

    return tuple(
        part.source
        for message in read_messages(messages)
        for part in message.parts
        if part.kind != "text"
    )


def as_list(sources: Any) -> list[Any]:
    """No source, one, or a list or tuple of them, as a list."""
    if sources is None:
        return []
    return list(sources) if isinstance(sources, list | tuple) else [sources]

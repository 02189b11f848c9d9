"""A question as people give it, a text with media or a list of messages, as messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from qwen25vl.errors import UsageError

Messages = list[Any]


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


def compose(question: str | Messages, images: Any, videos: Any, system: str | None) -> Messages:
    """Messages of one question, media before text, in which bytes stand for open files."""
    from qwen25vl.processing.keeping import keep_open_files, keep_source
    from qwen25vl.processing.prompt_videos import list_videos

    images, videos = as_list(images), list_videos(videos)
    check_texts(question, system)
    if not isinstance(question, str):
        if images or videos or system is not None:
            raise UsageError(
                "a list of messages holds its own images, videos and system message; "
                "give only the list"
            )
        return list(keep_open_files(list_messages(question)))
    content = [{"type": "image", "image": keep_source(image)} for image in images]
    content += [{"type": "video", "video": keep_source(video)} for video in videos]
    messages: Messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]


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

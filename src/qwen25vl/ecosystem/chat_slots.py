"""Pictures given beside a conversation: they fill its empty slots, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qwen25vl.errors import UsageError
from qwen25vl.processing.clients import present

SOURCES = ("image", "image_url", "url", "path", "base64")


def fill_conversation(conversation: Sequence[Any], images: Any) -> list[Any]:
    """A copy of a conversation whose parts {"type": "image"} have these pictures.

    Raises UsageError unless there are as many slots as pictures.
    """
    pictures = list(images) if isinstance(images, list | tuple) else [images]
    waiting = iter(pictures)
    num_slots = sum(map(is_slot, parts_of(conversation)))
    if num_slots != len(pictures):
        raise UsageError(
            f'{len(pictures)} images are given, but the conversation has {num_slots} parts {{"type"'
            ': "image"} without a picture'
        )
    return [fill_message(message, waiting) for message in conversation]


def fill_conversations(conversations: Sequence[Any], images: Any) -> list[list[Any]]:
    """The same of several; images has an entry for each: a picture, a list of them, or None."""
    if not isinstance(images, list | tuple) or len(images) != len(conversations):
        raise UsageError(
            f"images must have an entry for each of the {len(conversations)} conversations"
        )
    pairs = zip(conversations, images, strict=True)
    return [fill_conversation(chat, [] if own is None else own) for chat, own in pairs]


def fill_message(message: Any, waiting: Iterator[Any]) -> Any:
    values = present(message)
    if values is None or not isinstance(values.get("content"), list | tuple):
        return message
    content = [
        {**(present(part) or {}), "image": next(waiting)} if is_slot(part) else part
        for part in values["content"]
    ]
    return {**values, "content": content}


def parts_of(conversation: Sequence[Any]) -> Iterator[Any]:
    for message in conversation:
        content = (present(message) or {}).get("content")
        if isinstance(content, list | tuple):
            yield from content


def is_slot(part: Any) -> bool:
    """Whether a part of a message is to be a picture and has none."""
    values = None if isinstance(part, str) else present(part)
    if values is None or values.get("type") != "image":
        return False
    return all(values.get(name) is None for name in SOURCES)

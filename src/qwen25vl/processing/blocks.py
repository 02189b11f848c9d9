"""Content blocks as Anthropic, LangChain and MCP write them, turned into plain parts and messages.

Anthropic keeps a picture in `source`, the calls of tools among an assistant's parts and their
results among a user's. Results become messages of the role tool, in which typed text stays text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from qwen25vl.errors import MessageError
from qwen25vl.processing.clients import plain_list, present, refuse_keys

THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
UNTOLD_OF_PART = (
    *("detail", "cache_control", "id", "uuid"),
    *("mime_type", "mimeType", "media_type", "mediaType", "source_type"),
)
"""Keys of a picture or video that say nothing which its bytes do not say themselves."""


def split_blocks(message: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """A message whose content has blocks of tools or thoughts as the plain messages that it holds.

    Any other message comes back as it is. Thoughts are dropped, calls become `tool_calls`, and each
    result is a message of its own, in the order of the content.
    """
    content = plain_list(message.get("content"))
    if isinstance(content, str) or not isinstance(content, Sequence):
        return [message]
    kinds = [block_type(part) for part in content]
    role = message.get("role")
    if role == "assistant" and any(kind in ("tool_use", *THOUGHTS) for kind in kinds):
        return [assistant_message(message, content, where)]
    if role == "user" and "tool_result" in kinds:
        return user_messages(message, content, where)
    return [message]


def assistant_message(
    message: Mapping[str, Any], content: Sequence[Any], where: str
) -> Mapping[str, Any]:
    """An assistant's words with its calls beside them."""
    words, calls = [], [*plain_list(message.get("tool_calls", []))]
    for part in content:
        kind = block_type(part)
        if kind == "tool_use":
            calls.append(read_tool_use(present(part) or {}, where))
        elif kind not in THOUGHTS:
            words.append(part)
    return {**message, "content": words, "tool_calls": calls}


def user_messages(
    message: Mapping[str, Any], content: Sequence[Any], where: str
) -> list[Mapping[str, Any]]:
    """The results of tools and what the user says, each by itself."""
    found: list[Mapping[str, Any]] = []
    for is_result, parts in groupby(content, lambda part: block_type(part) == "tool_result"):
        if is_result:
            found += [read_tool_result(present(part) or {}, where) for part in parts]
        else:
            found.append({**message, "content": list(parts)})
    return found


def read_tool_use(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    refuse_keys(block, ("type", "id", "name", "input", "caller", *UNTOLD_OF_PART), where)
    return {"name": block.get("name"), "arguments": block.get("input", {})}


def read_tool_result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = ("type", "tool_use_id", "content", "is_error", *UNTOLD_OF_PART)
    refuse_keys(block, known, where)
    return {"role": "tool", "content": block.get("content", "")}


def block_type(part: Any) -> Any:
    return (present(part) or {}).get("type")


def read_source_keys(part: dict[str, Any], where: str) -> dict[str, Any]:
    """A part whose picture stands in Anthropic's `source` or in MCP's `data`, with our own key."""
    if part.get("type") not in ("image", "video"):
        return part
    rest = {key: value for key, value in part.items() if key not in ("source", "data")}
    if "source" in part:
        return {**rest, **read_block_source(part["source"], where)}
    return {**rest, "base64": part["data"]} if "data" in part else part


def read_block_source(source: Any, where: str) -> dict[str, Any]:
    """{"type": "base64", "media_type": …, "data": …} or {"type": "url", "url": …}."""
    values = present(source) or {}
    for kind, key, own in (("base64", "data", "base64"), ("url", "url", "url")):
        if values.get("type") == kind and key in values:
            refuse_keys(values, ("type", key, *UNTOLD_OF_PART), f"{where}: source")
            return {own: values[key]}
    wanted = "{'type': 'base64', 'data': …} or {'type': 'url', 'url': …}"
    raise MessageError(f"{where} has the source {source!r:.60}; expected {wanted}")

"""The records that a pipeline returns: an input with what was written for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from qwen25vl.processing.clients import present

if TYPE_CHECKING:
    import torch

Record = dict[str, Any]
IdsAndText = tuple["torch.Tensor", str]  # the ids of prompt and answer, the answer's text
Form = Literal["ids", "new", "full"]  # token ids, the new text alone, or the whole conversation


def records(
    prompt: Any, written: Sequence[IdsAndText], form: Form, continues: bool = False
) -> list[Record]:
    """The ecosystem's answer to one prompt."""
    if form == "ids":
        return [{"input_text": prompt, "generated_token_ids": ids} for ids, _ in written]
    texts = [text if form == "new" else append(prompt, text, continues) for _, text in written]
    return [{"input_text": prompt, "generated_text": text} for text in texts]


def append(prompt: Any, text: str, continues: bool) -> Any:
    """A prompt with its continuation; a conversation with a new last message,
    or with its last message continued."""
    if isinstance(prompt, str):
        return prompt + text
    if not continues:
        return [*prompt, {"role": "assistant", "content": text}]
    last = present(prompt[-1]) or {}
    content = last.get("content", "")
    if isinstance(content, str):
        grown: Any = content + text
    elif isinstance(content[-1], str):
        grown = [*content[:-1], content[-1] + text]
    else:
        part = present(content[-1]) or {}
        grown = [*content[:-1], {**part, "text": part["text"] + text}]
    return [*prompt[:-1], {**last, "content": grown}]

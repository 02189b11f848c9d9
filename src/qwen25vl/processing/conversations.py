"""Conversations rendered with a chat template: the text of each, and its pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen25vl.processing.clients import plain_list
from qwen25vl.processing.messages import Part, is_batch, read_messages
from qwen25vl.processing.template import render
from qwen25vl.processing.tokenizer import Piece, Tokenizer
from qwen25vl.processing.tool_template import with_tools

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RenderedConversations:
    """For each conversation the pieces of its prompt, and its pictures and videos in the order of
    their slots. is_batch: whether a list of conversations was given, not one conversation."""

    pieces: list[list[Piece]]
    media: list[list[Part]]
    is_batch: bool

    @property
    def texts(self) -> str | list[str]:
        """The prompt; a list of prompts for a list of conversations."""
        texts = ["".join(text for text, _ in pieces) for pieces in self.pieces]
        return texts if self.is_batch else texts[0]


def render_conversations(
    conversation: Messages | Sequence[Messages],
    template: str,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    add_vision_id: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> RenderedConversations:
    """Read one conversation or several and fill the template with each; options as in `render`.
    With tools, a template of the released models makes way for the one that shows them."""
    template = with_tools(template) if tools else template
    values: Any = plain_list(conversation)
    batched = is_batch(values)
    rendered = RenderedConversations([], [], batched)
    for messages in map(read_messages, values if batched else [values]):
        pieces = render(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            add_vision_id=add_vision_id,
            continue_final_message=continue_final_message,
            tools=tools,
            variables=variables,
            special_tokens=tokenizer.named_tokens,
            spoken=tokenizer.spoken,
            structure=tokenizer.structure,
        )
        parts = [part for message in messages for part in message.parts]
        rendered.pieces.append(pieces)
        rendered.media.append([part for part in parts if part.kind != "text"])
    return rendered

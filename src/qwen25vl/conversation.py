"""Conversations: questions that are answered from everything that was said before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

from qwen25vl.answer import Answer, AnswerStream
from qwen25vl.arguments import refuse_unknown
from qwen25vl.errors import named_out_of_memory
from qwen25vl.question import GenerationOptions, Messages, compose

if TYPE_CHECKING:
    from qwen25vl.vlm import VisionLanguageModel


@dataclass
class Conversation:
    """The turns of one conversation; each question may add pictures and videos.

    Pictures are read once, when they are given; of a video file only the path is kept.
    Every question is answered from the whole conversation so far. The model's earlier answers keep
    their own control tokens (tool calls, boxes). A turn that got no text as an answer (interrupted
    or failed) is dropped; of an interrupted answer the text written so far is kept.
    """

    vlm: VisionLanguageModel
    system: str | None = None
    fps: float | None = None
    adapter: str | None = None
    turns: list[tuple[dict[str, Any], AnswerStream]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Conversation({len(self.turns)} turns, system={self.system!r}, fps={self.fps})"

    @property
    def messages(self) -> Messages:
        """The conversation so far, in the shape that `ask` takes."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for question, stream in self.turns:
            if stream.spoken_text:
                messages += [question, {"role": "assistant", "content": stream.spoken_text}]
        return messages

    def ask(
        self,
        question: str,
        images: Any = (),
        videos: Any = (),
        *,
        pages: Any = None,
        schema: Any = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Ask the next question, and wait for the whole answer; schema as in the model's `ask`."""
        own: dict[str, Any] = {"pages": pages, "schema": schema}
        stream = self.stream(question, images, videos, **own, **options)
        for _ in stream:
            pass
        return stream.answer

    @named_out_of_memory()
    def stream(
        self,
        question: str,
        images: Any = (),
        videos: Any = (),
        *,
        pages: Any = None,
        schema: Any = None,
        **options: Unpack[GenerationOptions],
    ) -> AnswerStream:
        """Ask the next question, and get the answer chunk by chunk."""
        known = ("images", "videos", "pages", "schema", "min_pixels", "max_pixels")
        refuse_unknown(options, (*known, *GenerationOptions.__annotations__))
        if self.turns:
            self.turns[-1][1].close()
        (message,) = compose(question, images, videos, None, pages)
        own: dict[str, Any] = {"fps": self.fps, "adapter": self.adapter, "schema": schema}
        stream = self.vlm.stream([*self.messages, message], **own, **options)
        self.turns.append((message, stream))
        return stream

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()

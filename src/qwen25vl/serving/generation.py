"""A request that is being answered: what the engine wrote as events, one answer beside another.

All routes that generate stand on this: each turns the same events into its own words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from qwen25vl.answer import Answer, Usage
from qwen25vl.serving.answer_events import (
    AnswerState,
    End,
    Event,
    TokenInfo,
    Waiting,
    together,
)
from qwen25vl.serving.job import Job
from qwen25vl.structured.tool_parser import ToolCallParser

if TYPE_CHECKING:
    from qwen25vl.engine.outbox import Written
    from qwen25vl.engine.prompt_scores import PromptScores
    from qwen25vl.inputs import MediaItem
    from qwen25vl.processing.tokenizer import Tokenizer
    from qwen25vl.serving.service import Service

GATHER_SECONDS = 0.02  # in which tokens are handed out together: a message takes its time
ENDS = {"stop": "stop", "length": "length", "repetition": "length", "time": "length"}


class Generation:
    """The answers to one prompt. copies: how many equal answers each written one stands for."""

    def __init__(
        self,
        service: Service,
        job: Job,
        media: Sequence[MediaItem],
        num_answers: int,
    ) -> None:
        self.service = service
        self.job = job
        self.media = tuple(media)
        self.copies = num_answers // job.num_answers
        self.calls_end = True
        self.is_closed = False
        self.answers = [AnswerState(index) for index in range(num_answers)]

    @property
    def prompt_scores(self) -> PromptScores | None:
        """Of the prompt's tokens, where they were asked for; complete once anything is written."""
        return self.job.leaders[0].prompt_scores

    @property
    def prompt_ids(self) -> list[int]:
        return self.job.leaders[0].ids

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer: Tokenizer = self.service.vlm.processor.tokenizer
        return tokenizer

    def expect_calls(self, *, is_end: bool) -> None:
        """Look for calls of tools in the answers. is_end: whether these are told as the reason why
        an answer ends."""
        self.calls_end = is_end
        for answer in self.answers:
            answer.parser = ToolCallParser(self.tokenizer)

    async def events(self, seconds: float | None = None) -> AsyncIterator[Event]:
        """What is written, as it is; a Waiting where the stage moved on and after so many seconds
        without anything. Leaving it early cancels the request."""
        try:
            while (written := await self.job.read(seconds)) is not None:
                if not written:
                    yield Waiting(*self.job.stage)
                    continue
                for event in together([event for one in written for event in self.take(one)]):
                    yield event
                await self.job.rest(GATHER_SECONDS)
        finally:
            self.close()

    def take(self, written: Written) -> list[Event]:
        chunk = written.chunk
        info = TokenInfo(chunk.token, chunk.logprob, written.likeliest)
        events: list[Event] = []
        for copy in range(self.copies):
            answer = self.answers[chunk.index * self.copies + copy]
            answer.tokens.append(info)
            events += answer.read(chunk.text, info)
            if chunk.finish_reason:
                events += answer.finish()
                is_own = chunk.finish_reason in ("repetition", "time")
                detail = chunk.finish_reason if is_own else chunk.met
                reason = ENDS[chunk.finish_reason]
                if reason == "stop" and answer.calls and self.calls_end:
                    reason = "tool_calls"
                answer.end = End(answer.index, reason, detail)
                events.append(answer.end)
        return events

    def close(self) -> None:
        """Stop what is still written, free its memory, and count how it ended: once."""
        self.service.runner.cancel(self.job)
        if not self.is_closed:
            self.is_closed = True
            self.service.metrics.count_end(self)

    async def finish(self) -> list[AnswerState]:
        """All answers, once they are whole."""
        async for _ in self.events():
            pass
        return self.answers

    def answer(self, state: AnswerState) -> Answer:
        """An answer as `ask` gives it, with its boxes."""
        tokens = [info.token for info in state.tokens]
        visual = sum(item.num_tokens for item in self.media)
        cached = self.job.num_cached
        return Answer(
            text=state.text,
            finish_reason=None,
            usage=Usage(self.job.num_tokens, visual, len(tokens), cached),
            timings=self.job.watch.timings(len(tokens)),
            media=self.media,
            marked_text=self.tokenizer.decode(tokens),
            sources=(),
        )

    def grounding(self, state: AnswerState) -> dict[str, Any]:
        """`media`, `boxes` and `points` of an answer, in pixels of the pictures as they came."""
        if not self.media:
            return {}
        answer = self.answer(state)
        return {
            "media": [describe(item) for item in self.media],
            "boxes": [
                {"label": box.label, "box": [round(v, 2) for v in (box.x1, box.y1, box.x2, box.y2)],
                 "picture": box.picture}
                for box in answer.boxes
            ],
            "points": [
                {"label": point.label, "point": [round(point.x, 2), round(point.y, 2)],
                 "picture": point.picture}
                for point in answer.points
            ],
        }  # fmt: skip

    def usage(self) -> dict[str, Any]:
        """OpenAI's counts, of all answers together."""
        prompt = self.job.num_tokens
        written = sum(len(answer.tokens) for answer in self.answers)
        images = sum(item.num_tokens for item in self.media if item.kind == "image")
        videos = sum(item.num_tokens for item in self.media if item.kind == "video")
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {
                "cached_tokens": self.job.num_cached,
                "audio_tokens": 0,
                "image_tokens": images,
                "video_tokens": videos,
                "text_tokens": prompt - images - videos,
            },
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def timings(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        timings = self.job.watch.timings(max(len(answer.tokens) for answer in self.answers))
        return {name: round(value, 4) for name, value in vars(timings).items()}


def describe(item: MediaItem) -> dict[str, Any]:
    """A picture or clip of the prompt; sizes are [height, width] in pixels."""
    return {
        "kind": item.kind,
        "original_size": list(item.original_size),
        "model_size": list(item.model_size),
        "num_tokens": item.num_tokens,
        "num_frames": item.num_frames,
    }

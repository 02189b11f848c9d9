"""A request at the engine, as the one task that waits for it sees it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from qwen25vl.answer import Stopwatch
from qwen25vl.engine.outbox import MAX_UNREAD, Outbox, Written
from qwen25vl.engine.sequence import Sequence


@dataclass(eq=False)
class Job:
    """A request at the engine. leaders: its sequences, whose followers wait for their prompts.
    num_tokens, num_patches: of its prompt. stage: the last report of progress, ("queued", place,
    length) while it waits. started, first: on the clock of time.monotonic, when it went to the
    engine and when its first token was there."""

    outbox: Outbox
    leaders: list[Sequence]
    num_tokens: int
    num_patches: int
    priority: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)
    stage: tuple[str, int, int] = ("queued", 0, 0)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    seen: tuple[object, ...] = ()
    sequences: list[Sequence] = field(init=False)

    def __post_init__(self) -> None:
        followers = [each for one in self.leaders for each in one.followers]
        self.sequences = [*followers, *self.leaders]

    @property
    def num_answers(self) -> int:
        """Those that are written, each by itself."""
        return len(self.sequences)

    def report(self, stage: str, done: int, total: int) -> None:
        """Of the engine's thread."""
        self.watch.report(stage, done, total)
        self.stage = (stage, done, total)

    @property
    def state(self) -> tuple[object, ...]:
        """Differs whenever there is something new."""
        outbox = self.outbox
        return outbox.num_put, outbox.num_open, outbox.error is None, self.stage

    @property
    def is_due(self) -> bool:
        """Whether the task that waits should look. Where only the whole answer counts, it does so
        at the end, and before its outbox is full."""
        if self.outbox.is_live:
            return self.state != self.seen
        return self.is_over or len(self.outbox.chunks) >= MAX_UNREAD // 2

    @property
    def is_over(self) -> bool:
        """Whether nothing more is written, whatever is still to be read."""
        started = self.started is not None
        return started and (self.outbox.num_open == 0 or self.outbox.error is not None)

    @property
    def num_cached(self) -> int:
        return sum(sequence.num_reused for sequence in self.sequences)

    async def read(self, seconds: float | None = None) -> list[Written] | None:
        """What was written since the last call; [] if there is nothing after so many seconds or
        only progress, None at the end. Raises what went wrong."""
        chunks = self.take()
        if chunks or self.is_over:
            return chunks or None
        self.news.clear()
        try:
            async with asyncio.timeout(seconds):  # NOTE wait_for may lose a cancellation
                await self.news.wait()
        except TimeoutError:
            return []
        chunks = self.take()
        return None if not chunks and self.is_over else chunks

    async def rest(self, seconds: float) -> None:
        """Let so much time go by, or less if the job is over before."""
        if not self.outbox.is_live:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return

    def take(self) -> list[Written]:
        waiting = self.outbox.chunks
        chunks = [waiting.popleft() for _ in range(len(waiting))]
        if not chunks and self.outbox.error is not None:
            raise self.outbox.error
        return chunks

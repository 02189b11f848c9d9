"""One job: requests go out in a bounded window, results come in, and each is written down once.

What fails is tried again where that may help. The last try is made at the end of the job, when
nothing else is under way, so that an input which takes all memory harms no other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from qwen25vl.documents.backends import Backend, BackendGoneError
from qwen25vl.documents.books import Shelf
from qwen25vl.documents.failures import Failure, InputError
from qwen25vl.documents.inputs import Inputs
from qwen25vl.documents.item_reader import ItemReader
from qwen25vl.documents.items import Item
from qwen25vl.documents.journal import SYNC_SECONDS, Journal
from qwen25vl.documents.report import Report
from qwen25vl.documents.results import Result, read_failure, read_reply
from qwen25vl.documents.suspects import Suspects
from qwen25vl.documents.window import Window

Emit = Callable[[Result], Awaitable[None]]


@dataclass(frozen=True)
class JobLimits:
    """max_attempts: of one input. deadline: seconds for a page. max_in_flight: requests at once,
    None for what suits the backend; window_bytes: what they may take here, one alone always
    fits."""

    max_attempts: int = 3
    deadline: float | None = None
    max_in_flight: int | None = None
    window_bytes: int = 2**30
    retry_failed: bool = False


@dataclass
class Trial:
    """An input that is under way. place: among all inputs."""

    item: Item
    place: int
    started: float
    num_attempts: int = 0
    num_circles: int = 0


class Job:
    """emit: is handed each result that this run has made."""

    def __init__(
        self,
        inputs: Inputs,
        reader: ItemReader,
        backend: Backend,
        journal: Journal | None,
        limits: JobLimits,
        report: Report,
        emit: Emit,
        shelf: Shelf,
    ) -> None:
        self.inputs, self.reader, self.backend = inputs, reader, backend
        self.journal, self.limits, self.report, self.emit = journal, limits, report, emit
        path = journal.path.with_name(journal.path.name + ".running") if journal else None
        self.suspects = Suspects(path)
        self.shelf = shelf
        number = limits.max_in_flight or backend.max_in_flight
        self.window = Window(number, limits.window_bytes)
        self.last: list[Trial] = []
        self.num_items = 0

    async def run(self) -> None:
        """Raises BackendGoneError and OutputError; what was answered before is written down."""
        self.suspects.open()
        try:
            await self.backend.start()
            self.report.begin()
            async with asyncio.TaskGroup() as group:
                syncing = group.create_task(self.sync_regularly())
                async with asyncio.TaskGroup() as running:
                    await self.send_all(running)
                self.report.is_listed = True
                for trial in self.last:
                    await self.ask_alone(trial)
                syncing.cancel()
            self.report.end()
        except BaseExceptionGroup as group_error:
            raise first_of(group_error) from None
        finally:
            self.suspects.close()
            await self.backend.close()

    async def send_all(self, running: asyncio.TaskGroup) -> None:
        for number, source in enumerate(self.inputs.sources):
            async for item in self.reader.read(source):
                await self.send(item, running)
                if source.kind not in ("file", "memory"):
                    self.shelf.close(item.source)
            self.shelf.close(source.name)
            self.report.num_sources_read = number + 1

    async def send(self, item: Item, running: asyncio.TaskGroup) -> None:
        place = self.num_items
        self.num_items += 1
        if self.journal is not None and (found := self.journal.find(item.slot, item.key)):
            found.place = place
            if not (found.is_failed and self.limits.retry_failed):
                self.report.skip(item, found.is_failed)
                self.shelf.add(item.source, item.slot, is_done=True)
                return
        self.shelf.add(item.source, item.slot, is_done=False)
        trial = Trial(item, place, time.monotonic())
        if item.failure is not None:
            await self.record(trial, read_failure(item, item.failure, 1, 0.0))
        elif item.key in self.suspects.keys:
            self.last.append(trial)
        else:
            await self.window.enter(item.num_bytes)
            running.create_task(self.ask_among_others(trial))

    async def ask_among_others(self, trial: Trial) -> None:
        """All tries but the last."""
        item = trial.item
        try:
            while True:
                result = await self.attempt(trial, "+")
                may_pass = result.error is not None and result.error.may_pass
                if not may_pass or self.limits.max_attempts == 1:
                    await self.record(trial, result)
                    return
                if trial.num_attempts >= self.limits.max_attempts - 1:
                    self.last.append(trial)
                    return
        finally:
            self.window.leave(item.num_bytes)

    async def ask_alone(self, trial: Trial) -> None:
        """The last try, with nothing else under way."""
        crashes = self.suspects.crashes[trial.item.key]
        if crashes >= self.limits.max_attempts:
            message = f"{trial.item.name}: the job's process died {crashes} times while it asked it"
            failure = Failure("crash", f"{message} alone")
            await self.record(trial, read_failure(trial.item, failure, crashes, 0.0))
            return
        while True:
            result = await self.attempt(trial, "!")
            may_pass = result.error is not None and result.error.may_pass
            if not may_pass or trial.num_attempts >= self.limits.max_attempts:
                await self.record(trial, result)
                return

    async def attempt(self, trial: Trial, mark: str) -> Result:
        item = trial.item.varied(trial.num_circles)
        trial.num_attempts += 1
        self.note(mark, item.key)
        limit = self.limits.deadline
        try:
            async with asyncio.timeout(None if limit is None else limit * item.num_pages):
                result = read_reply(item, await self.backend.ask(item))
        except InputError as error:
            result = read_failure(item, error.failure, 1, 0.0)
        except TimeoutError:
            failure = Failure("deadline", f"{item.name}: no answer within {limit:g} s for a page")
            result = read_failure(item, failure, 1, 0.0)
        if result.error is not None and result.error.kind == "repetition":
            trial.num_circles += 1
        seconds = time.monotonic() - trial.started
        return replace(result, attempts=trial.num_attempts, seconds=seconds)

    async def record(self, trial: Trial, result: Result) -> None:
        if result.error is not None and not threading.main_thread().is_alive():
            raise BackendGoneError("the program ends")  # and with it whatever a try needs
        if self.journal is not None:
            self.journal.write(result, trial.place)
            self.suspects.over(result.key)
        self.shelf.done(trial.item.source)
        self.report.count(trial.item, result)
        await self.emit(result)

    def note(self, mark: str, key: str) -> None:
        if self.journal is not None:
            with self.journal.telling():
                self.suspects.note(mark, key)

    async def sync_regularly(self) -> None:
        while self.journal is not None:
            await asyncio.sleep(SYNC_SECONDS)
            self.journal.sync()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, of several things that did together."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""The one thread that runs the engine for all requests, and the queue before it.

Requests live on the event loop. The loop hands their sequences to the engine, at most
`max_num_seqs` answers at once; between two steps the engine's thread calls `between_steps`, which
wakes the loop to hand out what was written. Nobody's reading or not reading holds a step: an answer
whose reader is slow waits in its outbox, alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen25vl.engine.engine import Engine
from qwen25vl.serving.errors import BUSY, SERVER, ApiError, of_error
from qwen25vl.serving.job import Job
from qwen25vl.serving.rates import Rates
from qwen25vl.serving.trimming import trim_often
from qwen25vl.serving.watchdog import engine_dead, thread_clock, watch

DELIVERY_SECONDS = 0.01  # between two times that the engine's thread wakes the loop
MAX_FAULTS = 3  # of the engine itself, one after another: then it is taken for broken
MAX_FAILED = 5  # requests that fail in the engine, one after another: then health says so
PRIORITY_SECONDS = 60.0  # who has waited longer is not overtaken any more
END_SECONDS = 60.0  # for the last step, before the thread is left alone
log = logging.getLogger("qwen25vl.serving")


@dataclass(frozen=True)
class QueueLimits:
    """max_answers: written at once; the others: of the jobs that wait, together."""

    max_answers: int
    max_tokens: int
    max_patches: int


class Runner:
    """Jobs in a queue and at the engine. All methods but `work` and `between_steps` belong to the
    event loop."""

    def __init__(self, engine: Engine, limits: QueueLimits) -> None:
        self.engine = engine
        self.limits = limits
        self.rates = Rates()
        self.waiting: list[Job] = []
        self.active: list[Job] = []
        self.on_over: list[Callable[[Job], None]] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.has_work = threading.Event()
        self.is_closed = self.is_stopping = False
        self.is_told = False
        self.delivered = 0.0
        self.num_faults = 0
        self.num_failed = 0  # requests in a row, through faults that are not their own
        self.steps_at_fault = -1
        self.last_step = time.monotonic()
        self.clock: int | None = None  # of the thread's work
        self.is_stuck = False
        self.watching: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.watching = [asyncio.ensure_future(each) for each in (watch(self), trim_often())]
        self.thread = threading.Thread(target=self.work, name="engine", daemon=True)
        self.thread.start()

    async def stop(self) -> None:
        """End the thread; whatever still runs is cancelled."""
        for task in self.watching:
            task.cancel()
        for job in [*self.waiting, *self.active]:
            self.cancel(job)
        self.is_stopping = True
        self.has_work.set()
        if self.thread is not None:
            await asyncio.to_thread(self.thread.join, END_SECONDS)

    def check_room(self, new: Job) -> None:
        """Raise a 429 if the queue holds as much as it may. Alone in it, a job may be of any
        size."""
        tokens = sum(job.num_tokens for job in self.waiting)
        patches = sum(job.num_patches for job in self.waiting)
        has_room = tokens + new.num_tokens <= self.limits.max_tokens
        if self.waiting and not (has_room and patches + new.num_patches <= self.limits.max_patches):
            raise ApiError(
                429,
                f"The server is busy: {len(self.waiting)} requests with {tokens} tokens wait.",
                kind=BUSY,
                code="queue_full",
                retry_after=self.rates.retry_seconds(self.active, self.waiting),
            )

    def submit(self, job: Job) -> None:
        """Queue a job; it goes to the engine as soon as there is a place."""
        if self.is_closed:
            raise shutting_down()
        if not self.is_healthy:
            raise engine_dead()
        self.check_room(job)
        self.waiting.append(job)
        self.fill()

    def sort_waiting(self) -> None:
        """By priority, the oldest first; but who has waited for long comes before all others, so
        that no stream of urgent requests holds anybody up for ever."""
        late = time.monotonic() - PRIORITY_SECONDS

        def rank(job: Job) -> tuple[bool, int, float]:
            is_late = job.submitted <= late
            return not is_late, 0 if is_late else job.priority, job.submitted

        self.waiting.sort(key=rank)

    def fill(self) -> None:
        """Hand waiting jobs to the engine, in their order."""
        self.sort_waiting()
        while self.waiting and not self.is_stopping:
            job = self.waiting[0]
            num_active = sum(each.num_answers for each in self.active)
            if self.active and num_active + job.num_answers > self.limits.max_answers:
                break
            self.waiting.pop(0)
            self.active.append(job)
            job.started = time.monotonic()
            job.watch.resume()
            self.engine.add(job.leaders)
            self.has_work.set()
        for place, job in enumerate(self.waiting):
            job.stage = ("queued", place + 1, len(self.waiting))
            job.news.set()

    def interrupt(self) -> None:
        """End all jobs with an error, and take no more: the server goes down."""
        self.is_closed = True
        self.end_all(shutting_down)

    def end_all(self, why: Callable[[], ApiError]) -> None:
        """End all jobs with an error of their own."""
        for job in [*self.waiting, *self.active]:
            self.cancel(job)
            job.outbox.error = why()
            job.started = job.started or time.monotonic()
            job.news.set()

    def cancel(self, job: Job) -> None:
        """Drop a job, wherever it is; what it held is free at the latest after the step that runs
        now."""
        if job in self.waiting:
            self.waiting.remove(job)
            job.outbox.num_open = 0
        if job in self.active:
            self.leave(job)

    def leave(self, job: Job) -> None:
        """Take a job from the engine, with what still runs of it: when one of its answers fails,
        nobody reads the others."""
        if job.outbox.num_open > 0:
            self.engine.scheduler.cancel(job.sequences)
            self.has_work.set()
        self.count_failed(job)
        job.ended.set()
        job.outbox.progress = None  # else a circle keeps its sequences until they are collected
        self.active.remove(job)
        self.rates.learn(job)
        for tell in self.on_over:
            tell(job)
        self.fill()

    def count_failed(self, job: Job) -> None:
        error = job.outbox.error
        if isinstance(error, Exception) and of_error(error).status == 500:
            self.num_failed += 1
        elif error is None and job.outbox.num_open == 0:
            self.num_failed = 0

    def deliver_soon(self) -> None:
        """Deliver now, or a little later if it was done just before: waking the loop takes time
        from the engine's thread. A first token does not wait."""
        assert self.loop is not None
        soonest = self.delivered + DELIVERY_SECONDS
        is_first = any(job.first is None and job.outbox.num_put for job in self.active)
        if is_first or self.loop.time() >= soonest:
            self.deliver()
        else:
            self.loop.call_at(soonest, self.deliver)

    def deliver(self) -> None:
        """Wake those for whom there is something new, and let the next jobs in."""
        self.is_told = False
        self.delivered = self.loop.time() if self.loop is not None else 0.0
        for job in [*self.active]:
            if job.first is None and job.outbox.num_put:
                job.first = time.monotonic()
            if job.is_due:
                job.seen = job.state
                job.news.set()
            if job.is_over:
                self.leave(job)

    @property
    def is_healthy(self) -> bool:
        """Whether the engine's thread runs, and its step does not take forever."""
        is_alive = self.thread is not None and self.thread.is_alive()
        return is_alive and not self.is_stuck and self.num_faults < MAX_FAULTS

    @property
    def is_failing(self) -> bool:
        """Whether the last requests all failed in the engine. New ones are still taken: one that
        is answered ends this."""
        return self.num_failed >= MAX_FAILED

    # Of the engine's thread.

    def work(self) -> None:
        self.clock = thread_clock()
        while not self.is_stopping and self.num_faults < MAX_FAULTS:
            self.has_work.wait()
            self.has_work.clear()
            try:
                self.engine.run_until(self.between_steps)
            except Exception:  # of no single sequence: those are told in their outboxes
                self.survive()
            self.between_steps()
        if self.num_faults >= MAX_FAULTS:
            log.error("the engine failed %d times in a row and is given up", self.num_faults)

    def survive(self) -> None:
        """After a fault that is not known to be of one request: the step is tried again, then
        without those that took part in it, and then the engine is taken for broken."""
        is_first = self.engine.num_steps != self.steps_at_fault
        self.num_faults = 1 if is_first else self.num_faults + 1
        self.steps_at_fault = self.engine.num_steps
        log.exception("the engine failed; it goes on")
        self.has_work.set()
        if is_first or self.loop is None:
            return
        done = threading.Event()
        self.loop.call_soon_threadsafe(self.end_all, engine_failed)
        self.loop.call_soon_threadsafe(done.set)
        done.wait(END_SECONDS)

    def between_steps(self) -> bool:
        """Tell the loop to hand out what was written; whether there is nothing more to do."""
        self.last_step = time.monotonic()
        is_due = any(job.is_due for job in [*self.active])
        if is_due and not self.is_told and self.loop is not None:
            self.is_told = True
            try:
                self.loop.call_soon_threadsafe(self.deliver_soon)
            except RuntimeError:  # the loop is closed
                return True
        scheduler = self.engine.scheduler
        is_idle = not (self.engine.is_busy or scheduler.cancelled)
        return self.is_stopping or is_idle


def engine_failed() -> ApiError:
    message = "The engine failed while this request ran; the server's log has the reason."
    return ApiError(500, message, kind=SERVER, code="internal_error")


def shutting_down() -> ApiError:
    message = "The server shuts down before this answer was finished."
    return ApiError(503, message, kind=SERVER, code="shutting_down", retry_after=5)

"""Jobs wait in line for a media process, and each has one to itself until it is done.

A process that dies, hangs or is not needed any more is killed and replaced. Whatever happens to it
is the fault of one request, and no other one notices.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from qwen25vl.serving.errors import BUSY, ApiError
from qwen25vl.serving.media.faults import of_death, refuse
from qwen25vl.serving.media.forks import Nursery, Worker, WorkerGoneError
from qwen25vl.serving.media.job import GRACE_SECONDS, MediaJob
from qwen25vl.serving.media.medium import CODES, Medium

T = TypeVar("T")
MAX_WAITING = 256
MAX_JOBS = 500  # then a process is replaced, with whatever its decoders have left behind
LARGE_BYTES = 1 << 20  # from here on, bytes are copied in a thread
Open = Callable[[dict[str, Any], int, int, int], T]
"""Turns a header, a descriptor, the offset and the length of its contents into a result."""


class WorkerPool:
    """keeps_documents: whether a process keeps the last document for its next pages. Where others
    send them, it must not: what is kept could be read by the next one's."""

    def __init__(
        self, num_workers: int, worker_bytes: int, *, keeps_documents: bool = False
    ) -> None:
        self.keeps_documents = keeps_documents
        self.num_workers = num_workers
        self.nursery = Nursery(worker_bytes)
        self.slots = asyncio.Semaphore(num_workers)
        self.idle: list[Worker] = []
        self.abandoned: set[asyncio.Task[None]] = set()
        self.num_waiting = 0

    async def start(self) -> None:
        """Raises Qwen25VLError where no process can be started."""
        await self.nursery.start()
        self.idle = [await self.nursery.fork() for _ in range(self.num_workers)]

    async def close(self) -> None:
        for task in self.abandoned:
            task.cancel()
        await asyncio.gather(*self.abandoned, return_exceptions=True)
        for worker in self.idle:
            worker.close()
        self.idle.clear()
        await asyncio.to_thread(self.nursery.close)

    async def run(self, job: MediaJob, medium: Medium, open_answer: Open[T]) -> T:
        """The result of a job. Raises ApiError: what is wrong with the medium, or 429 where too
        many wait."""
        if self.num_waiting >= MAX_WAITING:
            text = "too many pictures and videos wait to be read"
            raise ApiError(429, text, kind=BUSY, code="media_queue_full", retry_after=5)
        self.num_waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.num_waiting -= 1
        is_released = False
        worker = None
        try:
            worker = await self.take()
            result = await self.perform(worker, job, medium, open_answer)
        except asyncio.CancelledError:
            if worker is not None:
                task = asyncio.create_task(self.wind_down(worker))
                self.abandoned.add(task)
                task.add_done_callback(self.abandoned.discard)
                is_released = True
            raise
        finally:
            if not is_released:
                self.slots.release()
        return result

    async def take(self) -> Worker:
        while self.idle:
            worker = self.idle.pop()
            if worker.is_idle and worker.num_jobs < MAX_JOBS:
                return worker
            self.nursery.kill(worker)
        task = asyncio.ensure_future(self.nursery.fork())
        try:
            return await asyncio.shield(task)  # half a fork would leave the nursery in disorder
        except asyncio.CancelledError:
            task.add_done_callback(self.keep)
            raise

    def keep(self, task: asyncio.Future[Worker]) -> None:
        """A process that was forked for a request which is gone waits for the next one."""
        if not task.cancelled() and task.exception() is None:
            self.idle.append(task.result())

    async def perform(
        self, worker: Worker, job: MediaJob, medium: Medium, open_answer: Open[T]
    ) -> T:
        try:
            give = partial(worker.give, job, medium.contents, keeps_document=self.keeps_documents)
            is_known = self.keeps_documents and medium.contents[0] is worker.document
            if sum(job.lengths) > LARGE_BYTES and not is_known:
                await asyncio.to_thread(give)
            else:
                give()
            async with asyncio.timeout(job.seconds + GRACE_SECONDS):
                header, descriptor, offset, length = await worker.answer()
        except TimeoutError:
            self.nursery.kill(worker)
            raise of_death(medium, "deadline") from None
        except (OSError, WorkerGoneError):
            self.nursery.kill(worker)
            raise of_death(medium, "death") from None
        try:
            result = await read_answer(header, descriptor, offset, length, medium, open_answer)
        except (ValueError, TypeError, KeyError):  # it did not keep to what is agreed
            self.nursery.kill(worker)
            raise of_death(medium, "death") from None
        except ApiError:
            self.put_back(worker, is_exhausted=header["fault"] == "memory")
            raise
        self.put_back(worker)
        return result

    def put_back(self, worker: Worker, is_exhausted: bool = False) -> None:
        if is_exhausted or worker.num_jobs >= MAX_JOBS:
            self.nursery.kill(worker)
        else:
            self.idle.append(worker)

    async def wind_down(self, worker: Worker) -> None:
        """Nobody waits for this job any more: a short one may end, a long one is killed."""
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                _, descriptor, _, _ = await worker.answer()
            os.close(descriptor)
            self.put_back(worker)
        except (TimeoutError, OSError, WorkerGoneError, asyncio.CancelledError):
            self.nursery.kill(worker)
        finally:
            self.slots.release()


async def read_answer(
    header: dict[str, Any],
    descriptor: int,
    offset: int,
    length: int,
    medium: Medium,
    open_answer: Open[T],
) -> T:
    """Raises ApiError for a fault that the process found; ValueError, TypeError or KeyError for an
    answer that makes no sense."""
    try:
        if "fault" in header:
            fault, text = header["fault"], header["text"]
            if fault not in CODES or not isinstance(text, str):
                raise ValueError("an unknown fault")
            raise refuse(fault, medium.noun, medium.param, text)
        if length <= LARGE_BYTES:
            return open_answer(header, descriptor, offset, length)
        return await asyncio.to_thread(open_answer, header, descriptor, offset, length)
    finally:
        os.close(descriptor)

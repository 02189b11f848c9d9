"""A model that stays ready for many small jobs, one after the other or at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from qwen25vl.documents.backends import Backend
from qwen25vl.documents.batch_job import Job, JobLimits
from qwen25vl.documents.books import Shelf
from qwen25vl.documents.inputs import Inputs, Source
from qwen25vl.documents.item_reader import ItemReader
from qwen25vl.documents.items import Item
from qwen25vl.documents.plan import Plan
from qwen25vl.documents.report import Report
from qwen25vl.documents.results import Result


class Session:
    """The backend runs on an event loop in a thread, until `close`. Any thread may `ask`."""

    def __init__(self, backend: Backend, plan: Plan, limits: JobLimits | None = None) -> None:
        self.backend, self.plan, self.limits = backend, plan, limits or JobLimits()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="session", daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(backend.start(), self.loop).result()

    def ask(self, sources: list[Source]) -> list[Result]:
        """The results of all pages, in the order of the sources."""
        return asyncio.run_coroutine_threadsafe(self.work(sources), self.loop).result()

    async def work(self, sources: list[Source]) -> list[Result]:
        found: list[Result] = []

        async def emit(result: Result) -> None:
            found.append(result)

        standing = Standing(self.backend)
        reader = ItemReader(self.plan, standing)
        report = Report(len(sources))
        inputs = Inputs(sources)
        job = Job(inputs, reader, standing, None, self.limits, report, emit, Shelf())
        await job.run()
        place = {source.name: number for number, source in enumerate(sources)}
        return sorted(found, key=lambda result: (place[result.source], result.page or 0))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.backend.close(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Standing:
    """A backend that runs before and after a job."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.max_in_flight, self.max_pixels = backend.max_in_flight, backend.max_pixels
        self.bytes_per_pixel, self.keeps_pages = backend.bytes_per_pixel, backend.keeps_pages

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def ask(self, item: Item) -> Mapping[str, Any]:
        return await self.backend.ask(item)

    async def measure(self, data: bytes, name: str) -> list[tuple[float, float]]:
        return await self.backend.measure(data, name)

"""Who answers the requests of a job: the engine in this process, or servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from qwen25vl.documents.failures import InputError, of_reply
from qwen25vl.documents.items import Item
from qwen25vl.errors import Qwen25VLError
from qwen25vl.serving.errors import ApiError

if TYPE_CHECKING:
    from qwen25vl.serving.media.pool import WorkerPool

MAX_PAGES = 100_000  # of one document
MEASURE_SECONDS = 60.0
IN_FLIGHT = 64  # of one engine: what it writes together, and what is made ready meanwhile


class BackendGoneError(Qwen25VLError):
    """Nobody answers any more. What was answered is written down."""


class Backend(Protocol):
    """max_in_flight: requests at once, by default. max_pixels: of a picture as the model sees it;
    bytes_per_pixel: what each takes here while its request waits. keeps_pages: for several
    questions about each; set before `start`."""

    max_in_flight: int
    max_pixels: int
    bytes_per_pixel: float
    keeps_pages: bool

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, item: Item) -> Mapping[str, Any]:
        """The chat completion. Raises InputError, BackendGoneError."""

    async def measure(self, data: bytes, name: str) -> list[tuple[float, float]]:
        """(height, width) in points of each page of a document. Raises InputError."""


async def measure_pages(pool: WorkerPool, data: bytes, name: str) -> list[tuple[float, float]]:
    """The sizes of a document's pages, read by a process that may crash."""
    from qwen25vl.serving.media.job import job_of
    from qwen25vl.serving.media.medium import Medium
    from qwen25vl.serving.media.room import open_sizes

    medium = Medium("page", (data,), "file")
    job = job_of("measure", medium, MEASURE_SECONDS, pages=None, max_pages=MAX_PAGES)
    try:
        sizes = await pool.run(job, medium, open_sizes)
    except ApiError as error:
        raise InputError(of_reply(error.status, error.code, error.message, name)) from None
    return [(size.height, size.width) for size in sizes]

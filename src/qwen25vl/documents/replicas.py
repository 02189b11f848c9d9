"""Copies of a model in processes of their own: for models so small that more threads do not help.

Each replica is a `LocalBackend` with a share of the processors. An item goes to the replica with
the fewest under way. When a replica dies, its items are tried again and another one takes its
place; so an input that ends a process costs nobody else an answer.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from qwen25vl.documents.backends import IN_FLIGHT, BackendGoneError
from qwen25vl.documents.failures import Failure, InputError
from qwen25vl.documents.items import Item
from qwen25vl.documents.replica_process import (
    Ask,
    Cancel,
    Measure,
    Ready,
    Reply,
    Settings,
    read_message,
    share_of_processors,
    to_message,
)

if TYPE_CHECKING:
    from qwen25vl.vlm import VisionLanguageModel

START_SECONDS = 600.0
END_SECONDS = 10.0
MAX_DEATHS = 10  # of one replica without an answer in between


@dataclass
class Replica:
    """open: the requests under way, by number."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    writer: asyncio.StreamWriter | None = None
    listening: asyncio.Task[None] | None = None
    open: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_deaths: int = 0


class ReplicaBackend:
    """settings: of each replica."""

    def __init__(self, number: int, settings: Settings) -> None:
        self.settings = settings
        self.replicas = [Replica(each) for each in range(number)]
        self.numbers = count(1)
        self.keeps_pages = True
        self.max_in_flight = IN_FLIGHT * number
        self.max_pixels, self.bytes_per_pixel = 0, 0.0

    async def start(self) -> None:
        self.settings = self.settings.for_pages(keeps=self.keeps_pages)
        await asyncio.gather(*(self.wake(each) for each in self.replicas))

    async def close(self) -> None:
        for replica in self.replicas:
            if replica.writer is not None:
                replica.writer.close()
            if replica.listening is not None:
                replica.listening.cancel()
        await asyncio.gather(*(asyncio.to_thread(end, each.process) for each in self.replicas))

    async def wake(self, replica: Replica) -> None:
        """Start a replica that does not run. Raises BackendGoneError where that fails."""
        async with replica.lock:
            if replica.writer is not None:
                return
            ours, theirs = socket.socketpair()
            with theirs:
                replica.process = start_process(theirs.fileno(), self.settings.num_threads)
            reader, writer = await asyncio.open_connection(sock=ours)
            writer.write(to_message(self.settings))
            try:
                async with asyncio.timeout(START_SECONDS):
                    ready = await read_message(reader)
            except (OSError, EOFError, TimeoutError):
                writer.close()
                raise BackendGoneError("a replica of the model did not start") from None
            if not isinstance(ready, Ready):
                writer.close()
                raise ready
            self.max_pixels, self.bytes_per_pixel = ready.max_pixels, ready.bytes_per_pixel
            replica.writer = writer
            replica.listening = asyncio.ensure_future(self.listen(replica, reader))

    async def listen(self, replica: Replica, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            while True:
                reply: Reply = await read_message(reader)
                replica.num_deaths = 0
                waiting = replica.open.pop(reply.number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply.value)
        replica.writer = None
        replica.num_deaths += 1
        for waiting in replica.open.values():
            if not waiting.done():
                waiting.set_result(InputError(Failure("crash", "")))
        replica.open.clear()

    async def ask(self, item: Item) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self.request(Ask(next(self.numbers), item), item.name)
        return found

    async def measure(self, data: bytes, name: str) -> list[tuple[float, float]]:
        sizes: list[tuple[float, float]] = await self.request(
            Measure(next(self.numbers), data, name), name
        )
        return sizes

    async def request(self, message: Ask | Measure, name: str) -> Any:
        replica = min(self.replicas, key=lambda each: len(each.open))
        if replica.num_deaths > MAX_DEATHS:
            raise BackendGoneError(f"a replica of the model died {MAX_DEATHS} times in a row")
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        replica.open[message.number] = waiting
        try:
            if replica.writer is None:
                await self.wake(replica)
            assert replica.writer is not None
            replica.open[message.number] = waiting  # what died meanwhile has forgotten it
            replica.writer.write(to_message(message))
            await replica.writer.drain()
            value = await waiting
        except (OSError, asyncio.CancelledError) as error:
            if replica.writer is not None:
                replica.writer.write(to_message(Cancel(message.number)))
            if isinstance(error, asyncio.CancelledError):
                raise
            value = InputError(Failure("crash", ""))
        finally:
            replica.open.pop(message.number, None)
        if isinstance(value, InputError) and value.failure.kind == "crash":
            failure = Failure("crash", f"{name}: the replica that answered died")
            raise InputError(failure) from None
        if isinstance(value, Exception):
            raise value
        return value


def open_replicas(
    number: int, load: Callable[[], VisionLanguageModel], own: Mapping[str, Any]
) -> ReplicaBackend:
    """own: arguments of `LocalBackend`."""
    settings = Settings(load, share_of_processors(number), {**own, "num_workers": 1})
    return ReplicaBackend(number, settings)


def start_process(control: int, num_threads: int) -> subprocess.Popen[bytes]:
    """A replica with this process's modules, which ends when the connection does."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from qwen25vl.documents.replica_process import main; main({control})"
    )
    threads = {"OMP_NUM_THREADS": str(num_threads)}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(control,),
        start_new_session=True, env={**os.environ, **threads},
    )  # fmt: skip


def end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

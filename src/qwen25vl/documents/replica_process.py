"""A replica: this process answers what comes through its connection, until that is closed."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qwen25vl.documents.backends import Backend, BackendGoneError
from qwen25vl.documents.failures import Failure, InputError
from qwen25vl.documents.items import Item
from qwen25vl.errors import Qwen25VLError

if TYPE_CHECKING:
    from qwen25vl.vlm import VisionLanguageModel

LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Settings:
    """load: makes the model. num_threads: of this replica. backend: arguments of `LocalBackend`."""

    load: Callable[[], VisionLanguageModel]
    num_threads: int
    backend: Mapping[str, Any] = field(default_factory=dict)
    keeps_pages: bool = True

    def for_pages(self, *, keeps: bool) -> Settings:
        return replace(self, keeps_pages=keeps)


@dataclass(frozen=True)
class Ready:
    """What the replica's backend says of itself."""

    max_pixels: int
    bytes_per_pixel: float


@dataclass(frozen=True)
class Ask:
    number: int
    item: Item


@dataclass(frozen=True)
class Measure:
    number: int
    data: bytes
    name: str


@dataclass(frozen=True)
class Cancel:
    number: int


@dataclass(frozen=True)
class Reply:
    """value: the result, or the exception that stands for it."""

    number: int
    value: Any


def share_of_processors(num_replicas: int) -> int:
    """Threads of each of several replicas."""
    return max(1, len(os.sched_getaffinity(0)) // num_replicas)


def to_message(content: Any) -> bytes:
    data = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data


async def read_message(reader: asyncio.StreamReader) -> Any:
    """Raises EOFError or OSError where the other side is gone."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


def main(control: int) -> None:
    asyncio.run(serve(socket.socket(fileno=control)))


async def serve(connection: socket.socket) -> None:
    from qwen25vl.documents.local import LocalBackend

    reader, writer = await asyncio.open_connection(sock=connection)
    settings: Settings = await read_message(reader)
    try:
        import torch

        torch.set_num_threads(settings.num_threads)
        backend = LocalBackend(settings.load(), **settings.backend)
        backend.keeps_pages = settings.keeps_pages
        await backend.start()
    except Qwen25VLError as error:
        writer.write(to_message(error))
        await writer.drain()
        return
    writer.write(to_message(Ready(backend.max_pixels, backend.bytes_per_pixel)))
    try:
        await answer_all(reader, writer, backend)
    except (EOFError, OSError):
        return
    finally:
        await backend.close()


async def answer_all(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, backend: Backend
) -> None:
    """Raises EOFError or OSError when the other side is gone."""
    tasks: dict[int, asyncio.Task[None]] = {}
    while True:
        message = await read_message(reader)
        if isinstance(message, Cancel):
            if message.number in tasks:
                tasks[message.number].cancel()
            continue
        task = asyncio.ensure_future(answer(message, writer, backend))
        tasks[message.number] = task
        task.add_done_callback(partial(forget, tasks, message.number))


def forget(tasks: dict[int, asyncio.Task[None]], number: int, _: object) -> None:
    tasks.pop(number, None)


async def answer(message: Ask | Measure, writer: asyncio.StreamWriter, backend: Backend) -> None:
    value: Any
    try:
        if isinstance(message, Ask):
            value = await backend.ask(message.item)
        else:
            value = await backend.measure(message.data, message.name)
    except (InputError, BackendGoneError) as error:
        value = error
    except Exception as error:
        value = InputError(Failure("server", f"{type(error).__name__}: {error}"))
    writer.write(to_message(Reply(message.number, value)))

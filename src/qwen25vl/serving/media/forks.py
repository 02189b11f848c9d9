"""The server's side of the nursery: it is started once, asked for processes, and told to kill
them."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

from qwen25vl.errors import Qwen25VLError
from qwen25vl.serving.media.job import MediaJob
from qwen25vl.serving.media.nursery import COMMAND, FORK, KILL, READY
from qwen25vl.serving.media.parcel import (
    LENGTHS,
    MAX_HEADER_BYTES,
    pack,
    read_bytes,
    receive,
    send,
)

START_SECONDS = 120.0
FORK_SECONDS = 10.0
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
KEPT = ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "HOME", "TZ")
KEPT_PREFIXES = ("PYTHON", "LC_", "QWEN25VL_KERNELS")


class WorkerGoneError(Exception):
    """A process ended, or answered what it should not; a job that was under way is lost."""


class Worker:
    """One media process: its number and the connection to it. document: which it keeps, if it may
    keep any."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number, self.connection = number, connection
        self.num_jobs = 0
        self.document: bytes | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it is still there and says nothing."""
        try:
            self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def give(
        self, job: MediaJob, contents: tuple[bytes, ...], *, keeps_document: bool = False
    ) -> None:
        """Hand over a job. Raises OSError where the process is gone."""
        if keeps_document and job.form == "page":
            is_there = contents[0] is self.document
            self.document = contents[0]
            job = replace(job, document="as before" if is_there else "kept")
            contents = () if is_there else contents
        descriptor, message = pack(pickle.dumps(job), contents)
        try:
            send(self.connection, message, descriptor)
        finally:
            os.close(descriptor)
        self.num_jobs += 1

    async def answer(self) -> tuple[dict[str, Any], int, int, int]:
        """The header of its answer, the descriptor of the file with the contents, and where they
        begin and how long they are. Raises WorkerGoneError."""
        await readable(self.connection)
        try:
            message, descriptors = receive(self.connection, LENGTHS.size)
        except (OSError, ValueError):
            raise WorkerGoneError from None
        if not message or len(descriptors) != 1:
            raise WorkerGoneError
        descriptor = descriptors[0]
        try:
            length, num_bytes = LENGTHS.unpack(message)
            if length > MAX_HEADER_BYTES:
                raise ValueError
            header = json.loads(read_bytes(descriptor, length, 0))
            if not isinstance(header, dict):
                raise ValueError
        except (ValueError, RecursionError):
            os.close(descriptor)
            raise WorkerGoneError from None
        return header, descriptor, length, num_bytes

    def close(self) -> None:
        self.connection.close()


class Nursery:
    """The process that forks. It may die, and is then started again."""

    def __init__(self, worker_bytes: int) -> None:
        self.worker_bytes = worker_bytes
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None
        self.lock = asyncio.Lock()

    async def start(self) -> None:
        """Raises Qwen25VLError where it does not become ready."""
        if not hasattr(os, "fork") or not hasattr(socket, "recv_fds"):
            raise Qwen25VLError("media are read in forked processes, which this system lacks")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.connection = ours
        with theirs:
            self.process = start_process(theirs.fileno(), self.worker_bytes)
        try:
            async with asyncio.timeout(START_SECONDS):
                command, _ = await self.hear()
        except (TimeoutError, WorkerGoneError):
            command = b""
        if command != READY:
            await asyncio.to_thread(self.close)
            raise Qwen25VLError("the process that reads pictures and videos did not start")

    async def fork(self) -> Worker:
        """Another media process. Raises Qwen25VLError where there can be none."""
        async with self.lock:
            for _ in range(2):
                if self.connection is None:
                    await self.start()
                with suppress(OSError, TimeoutError, WorkerGoneError):
                    return await self.fork_once()
                await asyncio.to_thread(self.close)
        raise Qwen25VLError("no process can be started to read pictures and videos")

    async def fork_once(self) -> Worker:
        if self.connection is None:
            raise WorkerGoneError
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                send(self.connection, COMMAND.pack(FORK, 0), theirs.fileno())
            async with asyncio.timeout(FORK_SECONDS):
                _, number = await self.hear()
        except BaseException:
            ours.close()
            self.hang_up()  # a number that comes later would be taken for another's
            raise
        return Worker(number, ours)

    async def hear(self) -> tuple[bytes, int]:
        if self.connection is None:
            raise WorkerGoneError
        await readable(self.connection)
        message = self.connection.recv(COMMAND.size)
        if len(message) != COMMAND.size:
            raise WorkerGoneError
        command, number = COMMAND.unpack(message)
        return command, number

    def kill(self, worker: Worker) -> None:
        worker.close()
        if self.connection is not None:
            with suppress(OSError):
                self.connection.send(COMMAND.pack(KILL, worker.number))

    def close(self) -> None:
        """It kills its processes once the connection is closed; what does not end then is killed
        itself. Takes up to two seconds: not for the event loop."""
        self.hang_up()
        if self.process is not None:
            try:
                self.process.wait(2.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def hang_up(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


def start_process(control: int, worker_bytes: int) -> subprocess.Popen[bytes]:
    """Python with this one's modules, in a session of its own, without the server's descriptors
    and most of its environment, which may hold keys."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from qwen25vl.serving.media.nursery import main; main({control}, {worker_bytes})"
    )
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(control,),
        start_new_session=True,
        env=kept | dict.fromkeys(ONE_THREAD, "1"),
    )


async def readable(connection: socket.socket) -> None:
    """Wait until there is something to read, or the other side is gone."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(connection.fileno(), note)
    try:
        await arrived
    finally:
        loop.remove_reader(connection.fileno())

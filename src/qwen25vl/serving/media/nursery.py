"""The process from which media processes are forked.

It imports what decoding needs, reads one picture so that all of it is loaded, and then waits. A
fork of it is ready within milliseconds, and shares its memory until it writes. It has one thread,
so that a fork finds no lock held, and nothing of the server: no model, no keys, no connections.

The server sends COMMANDS of eight bytes: a letter and a number. "F" with a descriptor forks a
process that serves the connection behind it, and is answered with its number; "K" kills one. When
the server is gone, all of them are killed.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

COMMAND = struct.Struct("<cxxxi")
PR_SET_PDEATHSIG = 1
READY, FORK, KILL = b"R", b"F", b"K"


def main(control: int, worker_bytes: int) -> None:
    """control: the descriptor of the connection to the server."""
    connection = socket.socket(fileno=control)
    warm_up()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    silence()
    connection.sendall(COMMAND.pack(READY, os.getpid()))
    children: set[int] = set()
    while True:
        waiting: list[Any] = [connection, wake]
        ready, _, _ = select.select(waiting, [], [])
        if wake in ready:
            os.read(wake, 4096)
        reap(children)
        if connection in ready and not obey(connection, children, worker_bytes, (wake, woken)):
            break
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def warm_up() -> None:
    """Load all that a usual picture needs: importing it in each process would take a second."""
    import torch
    from PIL import Image

    from qwen25vl.processing import prepare, video
    from qwen25vl.processing.image import ImageSettings
    from qwen25vl.processing.messages import Part

    for name in ("qwen25vl.serving.media.worker", "av", "pypdfium2", "pypdfium2.raw"):
        with suppress(ImportError):
            __import__(name)
    torch.set_num_threads(1)
    settings = ImageSettings()
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        file = io.BytesIO()
        Image.new("RGB", (56, 56)).save(file, kind)
        how = prepare.Preparation(settings, settings, video.VideoOptions(), 1 << 20, torch.bfloat16)
        prepare.prepare_part(Part("image", "", file.getvalue()), how)
    gc.collect()
    gc.freeze()  # what is here now stays shared


def silence() -> None:
    """What decoders print may hold pieces of a picture."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def reap(children: set[int]) -> None:
    """Take note of those that have ended; only then can their numbers be used again."""
    while children:
        child, _ = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        children.discard(child)


def obey(
    connection: socket.socket, children: set[int], worker_bytes: int, pipe: tuple[int, int]
) -> bool:
    """Carry out one command; False where the server is gone."""
    message, descriptors, _, _ = socket.recv_fds(connection, COMMAND.size, 1)
    if len(message) != COMMAND.size:
        return False
    command, number = COMMAND.unpack(message)
    if command == KILL and number in children:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    if command == FORK:
        (descriptor,) = descriptors
        child = os.fork()
        if child == 0:
            become_worker(connection, descriptor, worker_bytes, pipe)
        os.close(descriptor)
        children.add(child)
        connection.sendall(COMMAND.pack(FORK, child))
    return True


def die_with_parent() -> None:
    """Linux: have this process killed when the nursery ends, however that happens."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def become_worker(
    connection: socket.socket, descriptor: int, worker_bytes: int, pipe: tuple[int, int]
) -> None:
    """Serve jobs in this fork, and end it without going back."""
    from qwen25vl.serving.media.worker import serve

    status = 1
    try:
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.close()
        for each in pipe:
            os.close(each)
        serve(socket.socket(fileno=descriptor), worker_bytes)
        status = 0
    finally:
        os._exit(status)

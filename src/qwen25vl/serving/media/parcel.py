"""What the server and its media processes hand each other: a header, and bytes in a file without a
name.

Through the socket go two lengths and the file's descriptor. Both sides read the file with `read`,
which a shorter file than promised cannot crash, as it would crash a mapping. The server pickles
what it sends; what it receives is JSON, because a process that has read a hostile file is not
trusted.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any

LENGTHS = struct.Struct("<QQ")  # of the header and of the contents
MAX_HEADER_BYTES = 1 << 20
BLOCK_BYTES = 1 << 26


def make_file() -> int:
    """A descriptor of an empty file in memory, where the system has such; else on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("media", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_all(descriptor: int, data: Any) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        view = view[os.write(descriptor, view[:BLOCK_BYTES]) :]


def read_into(descriptor: int, view: memoryview, offset: int) -> None:
    """Fill a buffer. Raises ValueError where the file ends before."""
    while len(view):
        count = os.preadv(descriptor, [view[:BLOCK_BYTES]], offset)
        if count == 0:
            raise ValueError("a parcel is shorter than it says")
        view, offset = view[count:], offset + count


def read_bytes(descriptor: int, length: int, offset: int) -> bytes:
    """Raises ValueError as `read_into`."""
    data = os.pread(descriptor, length, offset)
    if len(data) != length:
        raise ValueError("a parcel is shorter than it says")
    return data


def pack(header: bytes, contents: Sequence[Any]) -> tuple[int, bytes]:
    """A new file with all of it, and the message that goes with its descriptor."""
    descriptor = make_file()
    try:
        write_all(descriptor, header)
        for content in contents:
            write_all(descriptor, content)
    except BaseException:
        os.close(descriptor)
        raise
    total = sum(memoryview(content).nbytes for content in contents)
    return descriptor, LENGTHS.pack(len(header), total)


def send(connection: socket.socket, message: bytes, descriptor: int) -> None:
    """The message and the descriptor, which stays open here. Raises OSError."""
    rights = array.array("i", [descriptor])
    sent = connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    if sent != len(message):
        raise OSError("a message was sent in part")


def receive(connection: socket.socket, length: int) -> tuple[bytes, list[int]]:
    """A message of this length and the descriptors with it; empty where the other side is gone.
    Raises OSError; ValueError for a part of a message, or several descriptors."""
    message, descriptors, _, _ = socket.recv_fds(connection, length, 1)
    if len(message) not in (0, length):
        for descriptor in descriptors:
            os.close(descriptor)
        raise ValueError("a message came in part")
    return message, list(descriptors)

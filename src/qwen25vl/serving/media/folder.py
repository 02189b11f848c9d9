"""Files that a request names with file://, of one folder that was named at the server's start.

The path is walked one name after the other from the open folder, and no link is followed. So there
is no moment between a check and its use, and nothing outside of the folder is opened.
"""

from __future__ import annotations

import os
import re
import stat
import urllib.parse
from pathlib import Path

FILE_URL = re.compile(r"file://(?:localhost)?(/[^?#\\]*)(?:#([^#]*))?", re.IGNORECASE)
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_PATH = 4096


class RefusedPathError(Exception):
    """An address that names no regular file in the folder; nothing says which part of it is wrong,
    so that nobody can explore what there is."""


class TooLargeError(Exception):
    """A file of more bytes than are allowed."""


def read_file(url: str, root: Path, max_bytes: int) -> bytes:
    """Raises RefusedPathError, TooLargeError."""
    names = names_below(url, root)
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise RefusedPathError from None
    try:
        for name in names[:-1]:
            inner = os.open(name, OPEN_FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(names[-1], OPEN_FILE, dir_fd=folder)
    except (OSError, ValueError):
        raise RefusedPathError from None
    finally:
        os.close(folder)
    try:
        return read_regular(file, max_bytes)
    finally:
        os.close(file)


def names_below(url: str, root: Path) -> list[str]:
    """The names on the way from the folder to the file. Raises RefusedPathError."""
    found = FILE_URL.fullmatch(url)
    if not found or len(url) > MAX_PATH:
        raise RefusedPathError
    try:
        path = urllib.parse.unquote(found[1], errors="strict")
    except UnicodeDecodeError:
        raise RefusedPathError from None
    prefix = str(root).rstrip("/") + "/"
    if not path.startswith(prefix):
        raise RefusedPathError
    names = path[len(prefix) :].split("/")
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        raise RefusedPathError
    return names


def read_regular(descriptor: int, max_bytes: int) -> bytes:
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise RefusedPathError
    if state.st_size > max_bytes:
        raise TooLargeError
    pieces, total = [], 0
    while piece := os.read(descriptor, 1 << 20):
        total += len(piece)
        if total > max_bytes:  # it has grown
            raise TooLargeError
        pieces.append(piece)
    return b"".join(pieces)


def fragment_of(url: str) -> str:
    """What stands behind # in a file:// address."""
    found = FILE_URL.fullmatch(url)
    return (found[2] or "") if found else ""

"""Notes which connections and files Python opens while a test looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WATCHED = ("socket.connect", "open", "os.open")
notes: list[tuple[str, Any]] = []
state = {"is_on": False, "is_hooked": False}


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if state["is_on"] and event in WATCHED:
        notes.append((event, arguments[1] if event == "socket.connect" else arguments[0]))


@contextmanager
def watching() -> Iterator[list[tuple[str, Any]]]:
    """A hook cannot be taken away again, so that it is set once and sleeps between tests."""
    if not state["is_hooked"]:
        sys.addaudithook(hook)
        state["is_hooked"] = True
    notes.clear()
    state["is_on"] = True
    try:
        yield notes
    finally:
        state["is_on"] = False

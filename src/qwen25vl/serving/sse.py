"""Streams of events, and replies that end when the client leaves.

A closed connection is the client's stop button. Both kinds of reply listen for it while they wait,
and cancel the request then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

SEND_SECONDS = 60.0  # in which a client must take what is sent; it is gone otherwise
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def data(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def event(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + to_json(value) + b"\n\n"


class ClientGoneError(Exception):
    """The client closed its connection."""


class EventStream:
    """A reply of parts, each sent as soon as it is there; status and headers are sent at once."""

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        media_type: str = "text/event-stream",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.parts = parts
        self.media_type = media_type
        self.headers = headers or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = {
            "content-type": f"{self.media_type}; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **self.headers,
        }
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        writing = asyncio.ensure_future(self.write(send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not writing.done():
                writing.cancel()
            await asyncio.gather(writing, gone, return_exceptions=True)

    async def write(self, send: Send) -> None:
        async with aclosing(self.parts) as parts:  # type: ignore[type-var]
            async for part in parts:
                message = {"type": "http.response.body", "body": part, "more_body": True}
                # NOTE not asyncio.wait_for: in Python 3.11 it may lose a cancellation
                async with asyncio.timeout(SEND_SECONDS):
                    await send(message)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled when the client leaves; ClientGoneError then."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)

"""A response as a stream of events, in the order that OpenAI's clients rely on.

    created  in_progress  (events of items) …  completed | incomplete | failed

Events are numbered from 0. What goes wrong after the start is a `response.failed`, never a cut
connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import TYPE_CHECKING, Any

from qwen25vl.serving.errors import of_error
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.opening import abandon, until_open
from qwen25vl.serving.responses.opening import Asked
from qwen25vl.serving.responses.output import Output
from qwen25vl.serving.responses.reply import Reply
from qwen25vl.serving.sse import KEEP_ALIVE, event

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service


class ResponseStream:
    """reply, output: of the response that is written."""

    def __init__(self, service: Service, asked: Asked, opening: asyncio.Future[Generation]) -> None:
        self.service, self.asked, self.opening = service, asked, opening
        self.reply = Reply(service, asked.body)
        self.output = Output(service.vlm.processor.tokenizer, asked.body.shows_logprobs)
        self.numbers = count()

    def event(self, payload: dict[str, Any]) -> bytes:
        return event(payload["type"], {**payload, "sequence_number": next(self.numbers)})

    def state(self, name: str, response: dict[str, Any]) -> bytes:
        return self.event({"type": f"response.{name}", "response": response})

    async def parts(self) -> AsyncIterator[bytes]:
        keep_alive = self.service.settings.keep_alive_seconds
        try:
            for name in ("created", "in_progress"):
                yield self.state(name, self.reply.started())
            async for part in until_open(self.opening, keep_alive):
                yield part
            generation = self.opening.result()
            async for part in self.written(generation, keep_alive):
                yield part
            whole = self.reply.finished(self.output, generation)
            self.asked.keep(self.service, whole)
            yield self.state(whole["status"], whole)
        except Exception as error:
            self.service.report(error)
            failed = self.reply.failed(of_error(error), self.output)
            self.asked.keep(self.service, failed)
            yield self.state("failed", failed)
        finally:
            abandon(self.opening)

    async def written(self, generation: Generation, keep_alive: float) -> AsyncIterator[bytes]:
        """The events of the items, and comment lines where there are none for a while."""
        last = time.monotonic()
        async for one in generation.events(keep_alive):
            for payload in self.output.take(one):
                yield self.event(payload)
                last = time.monotonic()
            if time.monotonic() - last >= keep_alive:
                yield KEEP_ALIVE
                last = time.monotonic()

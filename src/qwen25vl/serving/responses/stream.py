"""A response as a stream of events, in the order that OpenAI's clients rely on.

    created  in_progress  (events of items) …  completed | incomplete | failed

Events are numbered from 0. What goes wrong after the start is a `response.failed`, never a cut
connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import TYPE_CHECKING, Any

from qwen25vl.serving.errors import of_error
from qwen25vl.serving.generation import Generation
from qwen25vl.serving.opening import abandon, paced, until_open
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
            async for _ in until_open(self.opening, keep_alive):
                yield KEEP_ALIVE
            generation = self.opening.result()
            events = generation.events(keep_alive)
            async for payload in paced(events, self.output.take, keep_alive):
                yield KEEP_ALIVE if payload is None else self.event(payload)
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

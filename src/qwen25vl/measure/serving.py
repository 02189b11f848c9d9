"""How fast a running server answers: as its clients see it, over HTTP.

Every request asks about a picture of noise of its own, so that nothing of it is known, and writes
so many tokens whatever the model says.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

PROMPT = "Describe this picture in one sentence."
SMALL, LARGE = 448, 1024  # sides of pictures in pixels
NUM_CLIENTS = 8
TIMEOUT = 600.0
MAX_TOKENS = 4000  # of the stream that a picture interrupts; it is left when that is answered


@dataclass
class Answered:
    """A streamed answer. arrivals: when each token came, in seconds after the request was sent."""

    arrivals: list[float] = field(default_factory=list)
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> float:
        return self.arrivals[0]

    @property
    def per_token(self) -> float:
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, len(self.arrivals) - 1)

    @property
    def longest_pause(self) -> float:
        pairs = pairwise(self.arrivals)
        return max((after - before for before, after in pairs), default=0.0)


@dataclass(frozen=True)
class Figures:
    """first: seconds to the first token of one client; per_token: seconds of each later one;
    alone, together: tokens a second of one client and of NUM_CLIENTS; pause: the longest between
    two tokens while a large picture arrives; again: to the first token of a second question about
    a picture, as a part of the first's."""

    first: float
    per_token: float
    alone: float
    together: float
    pause: float
    again: float


class Client:
    """A client of one server, which asks for the model that it lists first."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=TIMEOUT,
            trust_env=False,
        )  # fmt: skip
        self.model = ""

    async def open(self) -> None:
        reply = await self.http.get("/v1/models")
        reply.raise_for_status()
        self.model = reply.json()["data"][0]["id"]

    async def ask(
        self, messages: Sequence[Any], num_tokens: int, answered: Answered | None = None
    ) -> Answered:
        """One streamed answer of exactly so many tokens. answered: where it is written, for those
        who look at it before it is whole."""
        body = {
            "model": self.model, "messages": messages, "stream": True, "temperature": 0,
            "max_tokens": num_tokens, "ignore_eos": True, "return_token_ids": True,
            "repetition_penalty": 1.0, "stream_options": {"include_usage": True},
        }  # fmt: skip
        answered, start = answered or Answered(), time.perf_counter()
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != httpx.codes.OK:
                raise RuntimeError(f"{reply.status_code}: {(await reply.aread()).decode()}")
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise RuntimeError(chunk["error"]["message"])
                answered.usage = chunk.get("usage") or answered.usage
                for choice in chunk["choices"]:
                    now = time.perf_counter() - start
                    answered.arrivals += [now] * len(choice.get("token_ids") or ())
                    answered.text += choice["delta"].get("content") or ""
        return answered


def question(side: int, seed: int, text: str = PROMPT) -> list[Any]:
    """A message about a picture of noise."""
    import numpy as np
    from PIL import Image

    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


async def measure(client: Client, num_tokens: int = 48) -> Figures:
    """All figures of a server that nobody else uses at the time."""
    await client.open()
    await client.ask(question(SMALL, 0), 4)  # warms up
    one = await client.ask(question(SMALL, 1), num_tokens)
    start = time.perf_counter()
    asked = [client.ask(question(SMALL, 10 + i), num_tokens) for i in range(NUM_CLIENTS)]
    await asyncio.gather(*asked)
    together = NUM_CLIENTS * num_tokens / (time.perf_counter() - start)
    return Figures(
        one.first,
        one.per_token,
        num_tokens / one.arrivals[-1],
        together,
        await measure_pause(client),
        await measure_again(client),
    )


async def measure_pause(client: Client) -> float:
    """The longest pause of a running stream from when a large picture is sent until its first token
    is there."""
    lead = 2.0  # seconds by which the stream begins before the picture is sent
    running = Answered()
    words = [{"role": "user", "content": PROMPT}]
    streaming = asyncio.ensure_future(client.ask(words, MAX_TOKENS, running))
    await asyncio.sleep(lead)
    large = await client.ask(question(LARGE, 99), 2)
    if streaming.done():
        raise RuntimeError("the stream ended before the picture was answered")
    streaming.cancel()
    await asyncio.wait({streaming})
    window = [at for at in running.arrivals if lead <= at <= lead + large.first]
    return max(after - before for before, after in pairwise(window))


async def measure_again(client: Client) -> float:
    """First token of a second question in a chat about a large picture, over that of the first."""
    messages = question(LARGE, 77)
    first = await client.ask(messages, 8)
    messages = [
        *messages,
        {"role": "assistant", "content": first.text or "Noise."},
        {"role": "user", "content": "What else?"},
    ]
    second = await client.ask(messages, 8)
    return second.first / first.first

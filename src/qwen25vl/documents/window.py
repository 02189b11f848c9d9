"""How much may be under way at once: so many requests, and so many bytes of pictures."""

from __future__ import annotations

import asyncio


class Window:
    """What is larger than the whole window enters when it is empty."""

    def __init__(self, max_number: int, max_bytes: int) -> None:
        self.max_number, self.max_bytes = max_number, max_bytes
        self.number = self.bytes = 0
        self.moved = asyncio.Event()

    def has_room(self, num_bytes: int) -> bool:
        fits = self.bytes + num_bytes <= self.max_bytes
        return not self.number or (self.number < self.max_number and fits)

    async def enter(self, num_bytes: int) -> None:
        while not self.has_room(num_bytes):
            self.moved.clear()
            await self.moved.wait()
        self.number += 1
        self.bytes += num_bytes

    def leave(self, num_bytes: int) -> None:
        self.number -= 1
        self.bytes -= num_bytes
        self.moved.set()

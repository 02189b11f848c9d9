"""Memory that requests left is given back to the system while the server runs.

Loading a model tells glibc to keep freed memory for the next operation. In a server, requests of
all sizes in several threads leave holes in every heap, which would add up for hours.
"""

from __future__ import annotations

import asyncio

from qwen25vl import memory

TRIM_SECONDS = 15.0


async def trim_often() -> None:
    """Give unused memory back now and then, beside the loop: it takes some milliseconds."""
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(memory.trim_heap)

"""Several tasks of one request at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def in_order(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of several tasks, in their order. When one fails, the others are cancelled, and
    nothing is left running."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""One media room for all tests of a process: starting its processes takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from media_files import Hosted, host

from qwen25vl.serving.settings import MediaLimits


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="session")
def hosted(runner: asyncio.Runner) -> Iterator[Hosted]:
    """A room with two processes, of which a picture may keep one for five seconds."""
    with host(runner, MediaLimits(num_workers=2, worker_seconds=5.0)) as room:
        yield room

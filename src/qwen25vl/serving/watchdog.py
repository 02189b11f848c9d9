"""Whether the engine works: looked at from the event loop, twice a second.

A step of a large model may take minutes, so its length alone says little. But a thread that
computes, or reads weights from a disk, uses the processor; one that waits for what never comes does
not. A step that computes for ever is found too, much later: when it takes ten times as long as the
slowest step that this machine's measured speed explains.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING

from qwen25vl.engine.footprint import MAX_TOKENS_PER_STEP
from qwen25vl.serving.errors import SERVER, ApiError

if TYPE_CHECKING:
    from qwen25vl.serving.runner import Runner

TICK_SECONDS = 0.5
QUIET_TICKS = 7  # in a row without a step and without work: then the step is stuck
MIN_WORK_SECONDS = 0.0005  # of the processor, between two looks
MAX_STEP_SECONDS = 120.0
log = logging.getLogger("qwen25vl.serving")


async def watch(runner: Runner) -> None:
    """Keep `runner.is_stuck`, and end the requests of an engine that does not work."""
    num_quiet, before = 0, (0.0, 0.0)
    was_healthy = True
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = (runner.last_step, work_seconds(runner.clock))
        is_quiet = now[0] == before[0] and now[1] - before[1] < MIN_WORK_SECONDS
        num_quiet = num_quiet + 1 if is_quiet and runner.active else 0
        before = now
        is_endless = time.monotonic() - runner.last_step > longest_step(runner)
        runner.is_stuck = num_quiet >= QUIET_TICKS or (bool(runner.active) and is_endless)
        if was_healthy and not runner.is_healthy:
            log.error("the engine does not work any more: %s", describe(runner))
        was_healthy = runner.is_healthy
        if not was_healthy:
            runner.end_all(engine_dead)


def engine_dead() -> ApiError:
    return ApiError(503, "The engine does not run.", kind=SERVER, code="engine_dead")


def describe(runner: Runner) -> str:
    if runner.thread is not None and runner.thread.is_alive():
        return f"a step began {time.monotonic() - runner.last_step:.0f} s ago and is stuck"
    return "its thread has ended"


def longest_step(runner: Runner) -> float:
    """Seconds after which a step that uses the processor is taken for endless."""
    per_token = runner.rates.prompt_seconds or 0.0
    return max(MAX_STEP_SECONDS, 10 * MAX_TOKENS_PER_STEP * per_token)


def thread_clock() -> int | None:
    """The clock of the processor's time of the thread that calls this; None where the system has
    none."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return None
    return time.pthread_getcpuclockid(threading.get_ident())


def work_seconds(clock: int | None) -> float:
    """What a clock shows; without a clock the time itself, as if there were always work."""
    if clock is None:
        return time.monotonic()
    try:
        return time.clock_gettime(clock)
    except OSError:  # the thread has ended
        return 0.0

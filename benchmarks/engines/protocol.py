"""How `peers.py` talks to an engine: a process of its own, started with its job as JSON, told to
run line by line.

An answer is one line that begins with RESULT, since libraries like to print. Standard library only:
every engine has its own Python and packages.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], dict[str, float]]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def serve(open_engine: Callable[[dict[str, Any]], Run]) -> None:
    """Open the engine that the job names, then run once for every line of standard input.
    Seconds and bytes."""
    took, run = timed(lambda: open_engine(json.loads(sys.argv[1])))
    reply({"load": took})
    for _ in sys.stdin:
        reply(memory() | run())


def reply(result: dict[str, float]) -> None:
    print("\nRESULT", json.dumps(result), flush=True)


def memory() -> dict[str, float]:
    """Peak of resident memory, and what is held now of its own and mapped from files,
    in bytes (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = {
        name: int(value) * 1024
        for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)
    }
    return {
        "peak memory": found["VmHWM"],
        "anonymous": found["RssAnon"],
        "mapped": found["RssFile"],
    }

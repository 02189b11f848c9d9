"""`qwen25vl bench --serve URL`: a running server as its clients see it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import asdict

from qwen25vl.cli.opening import say
from qwen25vl.errors import UsageError
from qwen25vl.measure.serving import NUM_CLIENTS, Client, Figures, measure


def bench_server(arguments: argparse.Namespace) -> int:
    import httpx

    say(f"measuring the server at {arguments.serve}; nobody else should use it")
    client = Client(arguments.serve, os.environ.get("QWEN25VL_API_KEY"))
    try:
        figures = asyncio.run(measure(client))
    except (httpx.HTTPError, RuntimeError) as error:
        raise UsageError(f"the server at {arguments.serve} cannot be measured: {error}") from None
    print(json.dumps(asdict(figures), indent=1) if arguments.json else table(figures))
    return 0


def table(figures: Figures) -> str:
    gain = figures.together / figures.alone
    rows = [
        ("first token", f"{figures.first:.3f} s"),
        ("each later token", f"{figures.per_token * 1000:.1f} ms"),
        ("one client", f"{figures.alone:.1f} tokens/s"),
        (f"{NUM_CLIENTS} clients", f"{figures.together:.1f} tokens/s, {gain:.1f} times as many"),
        ("longest pause while a 1024² picture arrives", f"{figures.pause:.2f} s"),
        ("first token of a second question about it", f"{figures.again:.3f} of the first's"),
    ]
    return "\n".join(f"{name:45}{value}" for name, value in rows)

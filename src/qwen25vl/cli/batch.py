"""`qwen25vl batch`: many inputs, a line for each answer."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from qwen25vl.cli.opening import (
    CLEAR_LINE,
    generation_options,
    load_options,
    obeys_escape_codes,
    open_model,
    say,
)
from qwen25vl.cli.serve import read_bytes, split_names
from qwen25vl.errors import DependencyError, UsageError

MISSING = 'batch needs more packages: pip install "qwen25vl[batch]" ({})'
SOME_FAILED = 3
SECONDS_BETWEEN_LINES = 0.5


def batch(arguments: argparse.Namespace) -> int:
    try:
        from qwen25vl.documents.batch import run_job
    except ImportError as error:
        raise DependencyError(MISSING.format(error.name)) from error
    from qwen25vl.documents.inputs import list_inputs
    from qwen25vl.documents.report import Report

    check_batch(arguments)
    inputs = list_inputs(arguments.inputs)
    if inputs.num_ignored:
        say(f"{inputs.num_ignored} files are neither pictures nor documents by their names")
    target = find_target(arguments)
    report = Report(len(inputs.sources))
    plan = find_plan(arguments)
    check_output(target, inputs)
    results = run_job(
        inputs, plan, find_backend(arguments), target, find_limits(arguments),
        column=arguments.column, password=arguments.password, report=report,
    )  # fmt: skip
    show = ProgressOfJob(report)
    try:
        with terminable():
            for _ in results:
                show()
    except KeyboardInterrupt:
        results.close()
        show.clear()
        say(f"interrupted; {report.sentence()}; --resume goes on")
        write_summary(arguments.summary, report.summary())
        raise
    finally:
        show.clear()
    say(report.sentence())
    write_summary(arguments.summary, report.summary())
    return SOME_FAILED if report.num_failed or report.num_failed_before else 0


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a job as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_batch(arguments: argparse.Namespace) -> None:
    """Raises UsageError for options that exclude each other, before a model is loaded."""
    from qwen25vl.processing.image import check_number

    if arguments.retry_failed and not arguments.resume:
        raise UsageError("--retry-failed needs --resume")
    if arguments.replicas < 1:
        raise UsageError(f"--replicas {arguments.replicas} must be at least 1")
    if arguments.server:
        own = ("quantize", "processor", "device", "adapter", "allowed_media_domains")
        given = [name for name in own if getattr(arguments, name)]
        given += ["replicas"] if arguments.replicas > 1 else []
        given += ["prompt_lookup"] if arguments.prompt_lookup_num_tokens is not None else []
        if given:
            name = given[0].replace("_", "-")
            raise UsageError(f"--{name} is for a model in this process; --server has its own")
    if arguments.max_decoded_pixels is not None:
        check_number("max_decoded_pixels", arguments.max_decoded_pixels)


def find_plan(arguments: argparse.Namespace) -> Any:
    from qwen25vl.documents.plan import make_plan, read_prompts, read_text

    media = {
        name: value
        for name in ("min_pixels", "max_pixels")
        if (value := getattr(arguments, name)) is not None
    }
    options = dict(generation_options(arguments))
    options.pop("prompt_lookup_num_tokens", None)
    name = arguments.model or "built-in"
    if arguments.server:
        from qwen25vl.documents.remote import find_model

        name = arguments.model or find_model(arguments.server[0])
    identity = {
        "model": name,
        "quantize": arguments.quantize,
        "dtype": arguments.dtype,
        "processor": arguments.processor,
        "adapter": arguments.adapter or None,
        "revision": arguments.revision,
    }
    model = name if arguments.server else adapter_name(arguments.adapter)
    return make_plan(
        identity=identity,
        ask=arguments.ask,
        prompts=read_prompts(arguments.prompts) if arguments.prompts else None,
        task=arguments.task,
        schema=read_text(arguments.schema) if arguments.schema else None,
        system=arguments.system,
        pages=arguments.pages,
        model=model,
        media=media,
        options=options,
    )


def adapter_name(typed: list[str]) -> str | None:
    """The adapter that answers, the first one."""
    from qwen25vl.cli.opening import read_adapters

    adapters = read_adapters(typed)
    return next(iter(adapters)) if adapters else None


def find_backend(arguments: argparse.Namespace) -> Any:
    if arguments.server:
        from qwen25vl.documents.remote import RemoteBackend

        return RemoteBackend(arguments.server)
    own: dict[str, Any] = {
        "allowed_domains": split_names(arguments.allowed_media_domains),
        "max_decoded_pixels": arguments.max_decoded_pixels,
        "prompt_lookup": arguments.prompt_lookup_num_tokens,
    }
    if arguments.replicas > 1:
        from qwen25vl.documents.replicas import open_replicas
        from qwen25vl.vlm import load

        make = partial(load, arguments.model, **load_options(arguments))
        return open_replicas(arguments.replicas, make, own)
    from qwen25vl.documents.local import LocalBackend

    return LocalBackend(open_model(arguments), **own)


def find_target(arguments: argparse.Namespace) -> Any:
    from qwen25vl.documents.batch import Target

    return Target(
        Path(arguments.output),
        arguments.resume,
        arguments.order,
        Path(arguments.markdown) if arguments.markdown else None,
        arguments.group == "file",
    )


def check_output(target: Any, inputs: Any) -> None:
    """Before a model is loaded for nothing."""
    if target.output.exists() and not target.resume:
        raise UsageError(f"{target.output} is there already; --resume goes on with it")
    if not target.output.parent.is_dir():
        raise UsageError(f"{target.output.parent} is no folder; the output would go there")


def find_limits(arguments: argparse.Namespace) -> Any:
    from qwen25vl.documents.batch_job import JobLimits

    window = read_bytes(arguments.window)
    return JobLimits(
        arguments.max_attempts,
        arguments.deadline,
        arguments.max_in_flight,
        window or 2**30,
        arguments.retry_failed,
    )


def write_summary(path: str | None, summary: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"--summary {path} cannot be written: {error.strerror}") from None


class ProgressOfJob:
    """A line on a terminal that is written over."""

    def __init__(self, report: Any) -> None:
        self.report = report
        self.is_wanted = obeys_escape_codes(sys.stderr)
        self.shown_at = 0.0
        self.is_shown = False

    def __call__(self) -> None:
        if self.is_wanted and time.monotonic() - self.shown_at >= SECONDS_BETWEEN_LINES:
            self.shown_at = time.monotonic()
            self.is_shown = True
            print(f"{CLEAR_LINE}{self.report.line()}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.is_shown:
            self.is_shown = False
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)

"""`qwen25vl.batch`: results of many inputs as they come, from a job in a thread of its own.

for result in qwen25vl.batch(["invoices/"], task="invoice", output="invoices.jsonl"):
    print(result.source, result.page, result.parsed or result.error)
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from qwen25vl.documents.backends import Backend
from qwen25vl.documents.batch_job import Job, JobLimits
from qwen25vl.documents.books import MarkdownFolder, Shelf, write_groups
from qwen25vl.documents.inputs import Inputs, list_inputs
from qwen25vl.documents.item_reader import ItemReader
from qwen25vl.documents.journal import Journal
from qwen25vl.documents.plan import Plan, make_plan
from qwen25vl.documents.report import Report
from qwen25vl.documents.request_lines import check_requests
from qwen25vl.documents.results import Lines, OpenAILines, PageLines, Result
from qwen25vl.errors import UsageError
from qwen25vl.question import GenerationOptions

if TYPE_CHECKING:
    from qwen25vl.vlm import VisionLanguageModel

MAX_UNREAD = 256  # results that wait for whoever iterates; then the job waits too


@dataclass(frozen=True)
class Target:
    """Where the answers go. order: "key", the order of the inputs, or "finished". markdown: a
    folder for a .md of each document. is_grouped: a line for each file, its pages inside."""

    output: Path | None = None
    resume: bool = False
    order: str = "key"
    markdown: Path | None = None
    is_grouped: bool = False

    def __post_init__(self) -> None:
        if self.order not in ("key", "finished"):
            raise UsageError(f"order is {self.order!r}; expected key or finished")
        if self.output is None and (self.resume or self.markdown or self.is_grouped):
            raise UsageError("resume, markdown and group need an output file")


def batch(
    items: Any,
    ask: str | None = None,
    *,
    task: str | None = None,
    prompts: Mapping[str, str] | None = None,
    schema: Any = None,
    model: VisionLanguageModel | str | Path | None = None,
    server: str | Sequence[str] | None = None,
    replicas: int = 1,
    output: str | Path | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    order: str = "key",
    markdown: str | Path | None = None,
    group: str | None = None,
    pages: str = "each",
    system: str | None = None,
    max_attempts: int = 3,
    max_in_flight: int | None = None,
    deadline: float | None = None,
    column: str | None = None,
    password: str | None = None,
    **options: Unpack[GenerationOptions],
) -> Generator[Result, None, Report]:
    """Ask about many inputs, and yield each result as it is there; an input that fails yields one
    with an `error`, and the others go on.

    items: paths of pictures and documents, folders, patterns, files of requests (JSONL, OpenAI's
    batch files, parquet), bytes, pictures of Pillow, or lists of messages. ask, task, prompts: the
    question, one of `abilities.TASKS`, or several questions by name. schema: what the answers
    follow, as in `ask`. model: a loaded model or what `load` takes, the built-in one by default;
    with server, its name there. server: addresses of servers that answer instead. replicas: copies
    of the model in processes of their own, for a small one. output: a JSONL
    file to which each result is appended; with resume, what it holds is skipped. pages: "each"
    asks each page of a document alone, "all" all in one request. deadline: seconds for a page.
    password: of encrypted documents. options: of the answer, see GenerationConfig. Raises
    UsageError at once for a wrong call.
    """
    if group not in (None, "file"):
        raise UsageError(f"group is {group!r}; expected file")
    given = [items] if isinstance(items, str | os.PathLike | bytes | dict) else items
    inputs = list_inputs(given)
    urls = [server] if isinstance(server, str) else list(server or [])
    lookup = options.pop("prompt_lookup_num_tokens", None)
    backend, name = find_backend(model, urls, lookup, replicas)
    plan = make_plan(
        identity={"model": name}, ask=ask, prompts=prompts, task=task, schema=schema,
        system=system, pages=pages, options=options, model=name if urls else None,
    )  # fmt: skip
    target = Target(
        Path(output) if output is not None else None, resume, order,
        Path(markdown) if markdown is not None else None, group == "file",
    )  # fmt: skip
    limits = JobLimits(max_attempts, deadline, max_in_flight, retry_failed=retry_failed)
    return run_job(inputs, plan, backend, target, limits, column=column, password=password)


def find_backend(
    model: Any, urls: list[str], lookup: int | None, replicas: int
) -> tuple[Backend, str]:
    """Who answers, and what the model is called."""
    if urls:
        from qwen25vl.documents.remote import RemoteBackend, find_model

        if lookup is not None or replicas != 1 or not isinstance(model, str | None):
            wrong = "model is a name, and prompt lookup and replicas are the server's own"
            raise UsageError(f"with server, {wrong}")
        return RemoteBackend(urls), model or find_model(urls[0])
    from qwen25vl.vlm import VisionLanguageModel, load

    if replicas != 1:
        return find_replicas(model, lookup, replicas), "built-in" if model is None else str(model)
    from qwen25vl.documents.local import LocalBackend

    name = "built-in" if model is None else str(model)
    if isinstance(model, VisionLanguageModel):
        name = str(model.processor.folder)
    else:
        model = load(model)
    return LocalBackend(model, prompt_lookup=lookup), name


def find_replicas(model: Any, lookup: int | None, number: int) -> Backend:
    """Raises UsageError for a model that is loaded already."""
    from qwen25vl.documents.replicas import open_replicas
    from qwen25vl.vlm import load

    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UsageError(f"replicas is {number!r}; expected a number of at least 1")
    if not isinstance(model, str | Path | None):
        raise UsageError("replicas load the model themselves; give its name or folder")
    return open_replicas(number, partial(load, model), {"prompt_lookup": lookup})


def run_job(
    inputs: Inputs,
    plan: Plan,
    backend: Backend,
    target: Target,
    limits: JobLimits,
    *,
    column: str | None = None,
    password: str | None = None,
    report: Report | None = None,
) -> Generator[Result, None, Report]:
    """The results as they come; the generator's value is the report. Closing it ends the job, and
    what was answered is written down. Raises UsageError before anything is asked."""
    check_limits(limits)
    needs_question = any(source.kind in ("file", "memory", "parquet") for source in inputs.sources)
    if needs_question and not plan.questions:
        raise UsageError("it is not said what to ask; give a question, prompts or a task")
    check_requests(inputs.sources, column)
    are_alike = all(source.kind in ("file", "memory", "parquet") for source in inputs.sources)
    backend.keeps_pages = not are_alike or len(plan.questions) > 1
    report = Report(len(inputs.sources)) if report is None else report
    journal = open_journal(inputs, plan, target)
    tell = MarkdownFolder(target.markdown, journal).write if target.markdown and journal else None
    pipe = Pipe()
    reader = ItemReader(plan, backend, column, password)
    job = Job(inputs, reader, backend, journal, limits, report, pipe.put, Shelf(tell))
    return follow(job, pipe, target)


def follow(job: Job, pipe: Pipe, target: Target) -> Generator[Result, None, Report]:
    journal = job.journal
    thread = threading.Thread(target=pipe.run, args=(job,), name="batch", daemon=True)
    try:
        thread.start()
        yield from pipe.results()
        if journal is not None:
            in_order = target.order == "key"
            if target.is_grouped and target.output is not None:
                write_groups(target.output, journal, is_settled=in_order)
            journal.finish(in_order=in_order)
    finally:
        pipe.cancel()
        thread.join()
        if journal is not None:
            journal.close()
    return job.report


def check_limits(limits: JobLimits) -> None:
    for name in ("max_attempts", "deadline", "max_in_flight"):
        value = getattr(limits, name)
        if value is not None and not value > 0:
            raise UsageError(f"{name} is {value}; expected a number above 0")


def open_journal(inputs: Inputs, plan: Plan, target: Target) -> Journal | None:
    if target.output is None:
        return None
    lines: Lines = PageLines()
    path = target.output
    if inputs.is_openai:
        if target.markdown or target.is_grouped:
            raise UsageError("OpenAI's batch files have an output format of their own")
        first = inputs.sources[0].path
        lines = OpenAILines(int(first.stat().st_mtime) if first is not None else 0)
    elif target.is_grouped:
        if path.exists() and not target.resume:
            raise UsageError(f"{path} is there already; resume continues it")
        path = path.with_name(f"{path.stem}.pages{path.suffix}")
    journal = Journal(path, lines, plan.settings)
    journal.open(resume=target.resume)
    return journal


class Pipe:
    """From the job's event loop to whoever iterates."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None
        self.room = asyncio.Semaphore(MAX_UNREAD)
        self.is_cancelled = False

    def run(self, job: Job) -> None:
        """Of the job's thread."""
        try:
            asyncio.run(self.work(job))
        except (asyncio.CancelledError, FutureCancelledError):
            self.queue.put(None)
        except BaseException as error:
            self.queue.put(error)
        else:
            self.queue.put(None)

    async def work(self, job: Job) -> None:
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.ensure_future(job.run())
        if self.is_cancelled:
            self.task.cancel()
        await self.task

    async def put(self, result: Result) -> None:
        await self.room.acquire()
        self.queue.put(result)

    def results(self) -> Iterator[Result]:
        """Of whoever iterates. Raises what ended the job."""
        while (result := self.take()) is not None:
            if isinstance(result, BaseException):
                raise result
            if self.loop is not None and not self.loop.is_closed():
                self.give_room()
            yield result

    def take(self) -> Result | BaseException | None:
        """Waits in small pieces, so that Ctrl-C is noticed everywhere."""
        while True:
            try:
                return self.queue.get(timeout=0.5)
            except queue.Empty:
                continue

    def give_room(self) -> None:
        try:
            if self.loop is not None:
                self.loop.call_soon_threadsafe(self.room.release)
        except RuntimeError:  # the job is over meanwhile
            return

    def cancel(self) -> None:
        self.is_cancelled = True
        try:
            if self.loop is not None and self.task is not None:
                self.loop.call_soon_threadsafe(self.task.cancel)
        except RuntimeError:  # the job is over
            return

"""Compiling on trial: in a process that may be killed, before it is done in this one.

The compiler bounds most of its work by itself, but not all: the intersection of a few patterns can
take any time and memory, and a fault in compiled code would end the server. What has been compiled
once within the limits takes as little the second time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import resources
from threading import Lock, Timer
from typing import Any

from qwen25vl.errors import Qwen25VLError, SchemaError
from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.structured.constraints import Kind
from qwen25vl.structured.whitespace import json_options

MAX_SECONDS = 1  # of computing; the system counts whole seconds, so it may be one more
MAX_WAIT_SECONDS = 10.0  # on a machine that does other things
MAX_BYTES = 128 * 2**20
MAX_JOBS = 256  # of one process: what it has not given back goes with it
MAX_SHOWN = 300  # letters of a message
READY = b'"ready"\n'
TOO_MUCH = (
    f"it takes more than {MAX_SECONDS} s or {MAX_BYTES >> 20} MiB to compile; make it smaller"
)
NAMES = {"schema": "schema", "regex": "regular expression", "choice": "list of choices"}


class Trial:
    """A process that compiles one grammar after another, for all who ask. It is started by the
    first of them, started again after one that it does not survive, and ends with this process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.setup: dict[str, Any] = {"controls": tokenizer.control_ids, "max_bytes": MAX_BYTES}
        self.setup |= {"end_token_id": tokenizer.eos_token_id, "max_seconds": MAX_SECONDS}
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = self.num_jobs = 0
        self.lock = Lock()

    def compile(self, kind: Kind, text: str) -> str:
        """The grammar in the compiler's own form. Raises SchemaError for one that does not compile
        within the limits."""
        job = {
            "kind": kind,
            "text": text,
            "options": json_options(text) if kind == "schema" else {},
        }
        with self.lock:
            written = self.ask(job)
        if not written:
            raise refusal(kind, TOO_MUCH)
        result: dict[str, str] = json.loads(written)
        if "error" in result:
            raise refusal(kind, result["error"])
        return result["grammar"]

    def ask(self, job: dict[str, Any]) -> bytes:
        """The answer of the process; nothing where the job has ended it."""
        process = self.process
        is_old = self.owner != os.getpid() or self.num_jobs >= MAX_JOBS
        if process is None or is_old or process.poll() is not None:
            self.close()
            process = self.process = self.open()
        self.num_jobs += 1
        timer = Timer(MAX_WAIT_SECONDS, process.kill)
        timer.start()
        try:
            written = self.send(process, job)
        except BaseException:
            self.close()  # an answer that nobody reads would be taken for the next one
            raise
        finally:
            timer.cancel()
        if not written.endswith(b"\n"):
            self.close()
            return b""
        return written

    def send(self, process: subprocess.Popen[bytes], job: dict[str, Any]) -> bytes:
        if process.stdin is None or process.stdout is None:
            return b""
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        return process.stdout.readline()

    def open(self) -> subprocess.Popen[bytes]:
        program = resources.files("qwen25vl.structured").joinpath("rehearsal.py")
        source = program.read_text(encoding="utf-8")
        # -S: nothing is searched for packages, the path comes with the setup
        command = [sys.executable, "-S", "-P", "-c", source]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(  # in a session of its own, out of reach of Ctrl-C
            command, stdin=pipe, stdout=pipe, stderr=nowhere, start_new_session=True
        )
        self.owner, self.num_jobs = os.getpid(), 0
        timer = Timer(MAX_WAIT_SECONDS, process.kill)
        timer.start()
        try:
            path = [entry for entry in sys.path if entry]
            answer = self.send(process, {**self.setup, "path": path})
        finally:
            timer.cancel()
        if answer != READY:
            process.kill()
            process.wait()
            raise Qwen25VLError(f"the process that compiles grammars does not start: {command[0]}")
        return process

    def close(self) -> None:
        """End the process; the next one who asks starts another."""
        process, self.process = self.process, None
        if process is None:
            return
        if self.owner == os.getpid():  # not that of the process this one was forked from
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def __del__(self) -> None:
        self.close()


def refusal(kind: Kind, why: str) -> SchemaError:
    lines = " ".join(why.replace("<non-verbose/>", "").split())
    what = NAMES.get(kind, "grammar")
    return SchemaError(f"no answer can be made to follow this {what}: {lines[:MAX_SHOWN]}")

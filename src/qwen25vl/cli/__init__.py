"""The command line: answers go to standard output, everything else to standard error.

`main` turns what went wrong into one line and an exit code: 2 for a wrong call, 1 for a failure,
130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from qwen25vl.cli.opening import describe_error, say
from qwen25vl.cli.parser import build_parser
from qwen25vl.errors import Qwen25VLError, named_out_of_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `--help` and `--version` leave by SystemExit."""
    argv = sys.argv[1:] if argv is None else argv
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 (the shell may have closed it)
    if sys.stdout is None:
        say("standard output is closed")
        return 1
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a letter that a terminal lacks or gets wrong must not end it all
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(str(message))
            return obey(argv)
    except OSError as error:
        # most often standard output that is full, or a pipe that nobody reads any more
        # else Python complains on its way out, when it flushes again
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"reading or writing failed: {error}")
        return 1


def obey(argv: Sequence[str]) -> int:
    """Run a command. What goes wrong is said, and with --json told on standard output too."""
    wants_json = "--json" in argv[: argv.index("--") if "--" in argv else None]
    try:
        with named_out_of_memory():
            arguments = build_parser().parse_args(argv)
            code: int = arguments.command(arguments)
            sys.stdout.flush()
            return code
    except Exception as error:
        if wants_json and not isinstance(error, BrokenPipeError):
            print(json.dumps(describe_error(error), ensure_ascii=False, indent=2))
        if not isinstance(error, Qwen25VLError):
            raise
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        if wants_json:
            print(json.dumps(describe_error(error), indent=2))
        return 130
    finally:
        sys.stdout.flush()

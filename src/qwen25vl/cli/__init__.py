"""The command line: answers go to standard output, everything else to standard error.

`main` turns what went wrong into one line and an exit code: 2 for a wrong call, 1 for a failure, 130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence

from qwen25vl.cli.opening import say
from qwen25vl.cli.parser import build_parser
from qwen25vl.errors import OutOfMemoryError, Qwen25VLError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `--help` and `--version` leave by SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter must not end the answer
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(str(message))
            arguments = build_parser().parse_args(argv)
            code: int = arguments.command(arguments)
        sys.stdout.flush()
    except Qwen25VLError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # else Python complains on its way out, when it flushes again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say(str(name_memory_need(error)))
        return OutOfMemoryError.exit_code
    return code


def is_out_of_memory(error: BaseException) -> bool:
    """torch raises a plain RuntimeError when the CPU's memory is used up."""
    words = "out of memory|can't allocate memory|not enough memory"
    return isinstance(error, MemoryError) or re.search(words, str(error)) is not None


def name_memory_need(error: BaseException) -> OutOfMemoryError:
    wanted = re.search(r"allocate (\d+) bytes", str(error))
    need = f": the last step wanted another {int(wanted[1]) / 1e9:.2f} GB" if wanted else ""
    return OutOfMemoryError(
        f"out of memory{need}; try --quantize int4, a smaller --max-pixels or a lower --fps "
        "(`qwen25vl info` estimates the need)"
    )

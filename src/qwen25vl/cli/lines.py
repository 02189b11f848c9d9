"""What a person types in `chat`: lines, pasted text in one piece, blocks,
and words as a shell reads them."""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import sys
from collections.abc import Iterator

from qwen25vl.cli.checks import is_there
from qwen25vl.cli.opening import obeys_escape_codes
from qwen25vl.errors import UsageError

BLOCK = '"""'


class LineReader:
    """Reads one entry after the other from standard input:
    a line, pasted text, or a block between two \"\"\"."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty()
        self.edits = self.is_terminal and sys.stdout.isatty()
        if self.edits:
            enable_editing()

    def read(self) -> str:
        """The next entry, one or several lines, without blanks around it. Raises EOFError at the
        end of input."""
        text = self.read_line("> ").strip()
        if not text.startswith(BLOCK):
            return text
        lines = [text.removeprefix(BLOCK)]
        try:
            while not lines[-1].rstrip().endswith(BLOCK):
                lines.append(self.read_line(". "))
        except EOFError:
            raise UsageError(
                f"the text that began with {BLOCK} has no end; close it with {BLOCK}"
            ) from None
        return "\n".join(lines).rstrip().removesuffix(BLOCK).strip()

    def read_line(self, prompt: str) -> str:
        if self.edits:
            return input(prompt)
        if self.is_terminal:  # standard output is a file, which a prompt has no place in
            print(prompt, end="", file=sys.stderr, flush=True)
        return input()


def enable_editing() -> None:
    """Line editing and history for input().
    Pasted text arrives in one piece, where the terminal marks it."""
    with contextlib.suppress(ImportError):
        import readline

        is_gnu = "libedit" not in (readline.__doc__ or "")
        if is_gnu and obeys_escape_codes(sys.stdout, but_colours=True):
            readline.parse_and_bind("set enable-bracketed-paste on")


def split_sources(text: str) -> list[str]:
    """The files and addresses that a command names: words as a shell reads them, with quotes,
    backslashes, ~ and *.

    A text that as a whole is the path of a file is that file, blanks and all.
    """
    if is_address(text) or is_there(expand_home(text)):
        return [expand_home(text)]
    reader = shlex.shlex(text, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters = True, ""
    if os.name == "nt":
        reader.escape = ""  # there a backslash separates folders
    try:
        words = list(reader)
    except ValueError:  # a lone quote, as in it's.png
        words = text.split()
    return [source for word in words for source in expand(word)]


def expand(word: str) -> Iterator[str]:
    """A word of a command as a shell expands it: ~, and * where it matches something."""
    path = expand_home(word)
    if is_address(word) or is_there(path):
        yield path
    else:
        yield from sorted(glob.glob(path)) or [path]  # noqa: PTH207 (an absolute pattern)


def expand_home(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib's fails for unknown users)


def is_address(text: str) -> bool:
    """Whether a text is one web address, or a picture in the text itself (data:)."""
    lower = text.lower()
    return lower.startswith("data:") or (
        lower.startswith(("http://", "https://")) and not text.split()[1:]
    )

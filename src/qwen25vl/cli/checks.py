"""Checks that need no model: they run before one is downloaded or loaded."""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from pathlib import Path

from qwen25vl.cli.opening import generation_options
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError
from qwen25vl.processing.image import check_number
from qwen25vl.processing.pdf_sources import find_document, split_pages
from qwen25vl.processing.sources import open_source
from qwen25vl.processing.video import VideoOptions


def find_question(arguments: argparse.Namespace, *, is_needed: bool = True) -> None:
    """Find the question where -i or -v took it with their files, as in `-i a.png "What is this?"`.

    Raises UsageError where there is none, or where the last word may be a file that is misspelt.
    """
    if arguments.question:
        return
    for name, index, num_words in arguments.taken:
        sources = getattr(arguments, name)
        if num_words > 1 and is_question(sources[index]):
            arguments.question = sources.pop(index)
            return
    if is_needed and arguments.question is None:
        words = [*arguments.image, *arguments.video]
        took = f" (the files are {', '.join(words)})" if words else ""
        hint = 'put it first: qwen25vl run "QUESTION" -i PICTURE'
        raise UsageError(f"the question is missing{took}; {hint}")


def is_question(word: str) -> bool:
    """Whether a word among files is no file: neither there nor spelled like one."""
    word = split_pages(word)[0]
    is_path = re.search(r"\.\w{1,5}$", word) or ("/" in word and not re.search(r"\s", word))
    return word != "-" and not is_path and not is_there(word)


def check(arguments: argparse.Namespace) -> None:
    """Check that inputs exist and that values are valid."""
    sources = [*arguments.image, *arguments.video]
    # a conversation's is always "-"
    from_stdin = [vars(arguments).get("question"), *sources].count("-")
    if from_stdin > 1:
        raise UsageError("standard input (-) can be read only once")
    if from_stdin and sys.stdin is None:
        raise UsageError("standard input is closed")
    if "" in (arguments.model, *sources):
        raise UsageError("a model, picture or video has an empty name")
    if arguments.max_decoded_pixels is not None:
        check_number("max_decoded_pixels", arguments.max_decoded_pixels)
    VideoOptions(
        fps=arguments.fps, min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels
    )
    GenerationConfig(max_new_tokens=sys.maxsize).merge(**generation_options(arguments)).validate()
    for source in sources:
        if source != "-":
            check_local(source)


def is_there(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (pathlib's fails for texts too long for a name)


def check_local(source: str) -> None:
    """Refuse a path that leads to nothing;
    addresses are tried, and named pipes opened, when they are needed."""
    if not source.lower().startswith(("http://", "https://", "data:")) and not is_pipe(source):
        document = None if is_there(source) else find_document(source)
        open_source(document.source if document else source).close()


def is_pipe(source: str) -> bool:
    return is_there(source) and stat.S_ISFIFO(Path(source).stat().st_mode)

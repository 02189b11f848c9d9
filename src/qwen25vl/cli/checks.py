"""What can be refused before a model is downloaded or loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qwen25vl.cli.opening import generation_options
from qwen25vl.errors import UsageError
from qwen25vl.generation.config import GenerationConfig
from qwen25vl.processing.image import check_number
from qwen25vl.processing.sources import open_source
from qwen25vl.processing.video import VideoOptions


def check(arguments: argparse.Namespace) -> None:
    """Refuse inputs that are not there and values that can not be."""
    sources = [*arguments.image, *arguments.video]
    from_stdin = [vars(arguments).get("question"), *sources].count("-")  # a conversation's is always "-"
    if from_stdin > 1:
        raise UsageError("standard input (-) can be read only once")
    if from_stdin and sys.stdin is None:
        raise UsageError("standard input is closed")
    if "" in (arguments.model, *sources):
        raise UsageError("a model, picture or video has an empty name")
    if arguments.max_decoded_pixels is not None:
        check_number("max_decoded_pixels", arguments.max_decoded_pixels)
    VideoOptions(fps=arguments.fps, min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels)
    GenerationConfig(max_new_tokens=sys.maxsize).merge(**generation_options(arguments))
    for source in sources:
        if source != "-":
            check_local(source)


def check_local(source: str) -> None:
    """Refuse a path that leads to nothing; addresses are tried, and named pipes opened, when they are needed."""
    if not source.lower().startswith(("http://", "https://", "data:")) and not Path(source).is_fifo():
        open_source(source).close()

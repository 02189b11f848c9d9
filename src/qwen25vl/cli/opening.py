"""From typed options to a model that is ready, and to the options of an answer."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any, TextIO, cast

from qwen25vl.errors import UsageError
from qwen25vl.question import GenerationOptions
from qwen25vl.vlm import VISUAL_CACHE_BYTES, VisionLanguageModel, load

DEFAULT_NAME = "default"  # of an adapter without a name
CLEAR_LINE = "\r\x1b[K"
DEMO_NOTE = (
    "the small built-in demo model answers; it was made for drawn scenes, words and clips, not for "
    "photographs. For a real one: -m Qwen/Qwen2.5-VL-3B-Instruct, or a checkpoint folder"
)


def say(text: str) -> None:
    """One line on standard error, over what is left of a progress line. If nobody reads it any
    more, the work goes on: a server must not end because of a line about its end."""
    try:
        PROGRESS.clear()
        print(f"qwen25vl: {' '.join(text.split())}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def obeys_escape_codes(stream: TextIO, *, but_colours: bool = False) -> bool:
    """Whether a stream is a terminal that obeys escape codes. NO_COLOR forbids them, except those
    that are wanted for something other than looks (but_colours)."""
    term = os.environ.get("TERM", "dumb" if os.name == "posix" else "")
    return stream.isatty() and term != "dumb" and (but_colours or not os.environ.get("NO_COLOR"))


def describe_error(error: BaseException) -> dict[str, dict[str, str]]:
    """An error as `--json` tells it."""
    message = (
        "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
    )
    return {"error": {"type": type(error).__name__, "message": message}}


def open_model(
    arguments: argparse.Namespace,
    *,
    visual_cache_bytes: int | None = None,
    prefix_cache_bytes: int | None = None,
) -> VisionLanguageModel:
    """Load what -m and its neighbours name, with a progress line on a terminal."""
    if arguments.model is None:
        say(DEMO_NOTE)
    return load(
        arguments.model,
        **load_options(arguments),
        progress=PROGRESS if obeys_escape_codes(sys.stderr) else show_nothing,
        visual_cache_bytes=(
            VISUAL_CACHE_BYTES if visual_cache_bytes is None else visual_cache_bytes
        ),
        prefix_cache_bytes=prefix_cache_bytes,
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What -m's neighbours say about the model."""
    return {
        "dtype": arguments.dtype,
        "quantize": arguments.quantize,
        "device": arguments.device,
        "adapter": read_adapters(arguments.adapter),
        "processor": arguments.processor,
        "min_pixels": arguments.min_pixels,
        "max_pixels": arguments.max_pixels,
        "max_decoded_pixels": arguments.max_decoded_pixels,
        "revision": arguments.revision,
        "local_files_only": arguments.offline,
    }


def read_adapters(typed: list[str]) -> dict[str, str] | None:
    """The values of --adapter: NAME=FOLDER, or a folder alone, whose name is "default"."""
    adapters: dict[str, str] = {}
    for text in typed:
        name, separator, folder = text.partition("=")
        if not separator or "/" in name:
            name, folder = DEFAULT_NAME, text
        if not name or not folder:
            raise UsageError(f"--adapter {text} has an empty part; expected NAME=FOLDER")
        if name in adapters:
            raise UsageError(f"two adapters have the name {name}; give each a name: NAME=FOLDER")
        adapters[name] = folder
    return adapters or None


def generation_options(arguments: argparse.Namespace) -> GenerationOptions:
    """The options of an answer that were typed; the others keep the checkpoint's value."""
    typed = {
        name: value
        for name, value in vars(arguments).items()
        if name in GenerationOptions.__annotations__
    }
    return cast(GenerationOptions, typed)


STAGES = {
    "load": "loading the model",
    "images": "looking at the pictures",
    "videos": "looking at the videos",
    "prefill": "reading the prompt",
}


class ProgressLine:
    """One line on standard error that is written over, and gone before the answer begins."""

    def __init__(self) -> None:
        self.shown_at = 0.0
        self.is_shown = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "decode" or done >= total:
            self.clear()
        elif time.monotonic() - self.shown_at > 0.1:
            self.shown_at = time.monotonic()
            self.is_shown = True
            print(
                f"{CLEAR_LINE}{STAGES.get(stage, stage)} {100 * done // total} %",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def clear(self) -> None:
        if self.is_shown:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
            self.is_shown = False


PROGRESS = ProgressLine()


def show_nothing(stage: str, done: int, total: int) -> None:
    """The progress of a command whose terminal cannot write over a line."""

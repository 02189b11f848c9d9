"""From typed options to a model that is ready, and to the options of an answer."""

from __future__ import annotations

import argparse
import sys
import time

from qwen25vl.vlm import GenerationOptions, VisionLanguageModel, load

DEMO_NOTE = (
    "the small built-in demo model answers; it knows simple drawn scenes only. "
    "For a real one: -m Qwen/Qwen2.5-VL-3B-Instruct, or a checkpoint folder"
)


def say(text: str) -> None:
    """A line for the person at the terminal, beside the answer."""
    print(f"qwen25vl: {text}", file=sys.stderr, flush=True)


def open_model(arguments: argparse.Namespace) -> VisionLanguageModel:
    """Load what -m and its neighbours name, with a progress line on a terminal."""
    if arguments.model is None:
        say(DEMO_NOTE)
    return load(
        arguments.model,
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        device=arguments.device,
        min_pixels=arguments.min_pixels,
        max_pixels=arguments.max_pixels,
        revision=arguments.revision,
        local_files_only=arguments.offline,
        progress=ProgressLine() if sys.stderr.isatty() else None,
    )


def generation_options(arguments: argparse.Namespace) -> GenerationOptions:
    return GenerationOptions(
        max_new_tokens=arguments.max_new_tokens,
        min_new_tokens=arguments.min_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        stop_strings=arguments.stop_strings,
        seed=arguments.seed,
    )


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
            print(f"\r\x1b[K{STAGES.get(stage, stage)} {100 * done // total} %", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.is_shown = False

"""`qwen25vl run`: one question, its answer on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from qwen25vl.answer import Answer
from qwen25vl.cli.checks import check
from qwen25vl.cli.opening import generation_options, open_model, say
from qwen25vl.errors import Qwen25VLError, UsageError
from qwen25vl.grounding import Box, Point
from qwen25vl.processing.media import load_picture, source_name

NOTES = {
    "length": "the answer was cut off at its longest; --max-new-tokens allows more",
    "repetition": "the answer was stopped because it went round in circles; --repetition-penalty may help",
}

DRAWING_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def run(arguments: argparse.Namespace) -> int:
    check_drawing(arguments)
    check(arguments)
    question = sys.stdin.read() if arguments.question == "-" else arguments.question
    if not question.strip():
        raise UsageError("the question is empty")
    images: list[Any] = arguments.image
    if arguments.draw:  # they are needed twice, and what comes through a pipe or the network should be read once
        images = [keep(source, arguments.max_decoded_pixels) for source in images]
    vlm = open_model(arguments)
    options = generation_options(arguments)
    stream = vlm.stream(question, images, arguments.video, system=arguments.system, fps=arguments.fps, **options)
    for chunk in stream:
        if not arguments.json:
            print(chunk.text, end="", flush=True)
    answer = stream.answer
    print(to_json(answer) if arguments.json else "", flush=True)
    if answer.finish_reason in NOTES:
        say(NOTES[answer.finish_reason])
    if arguments.draw:
        save_drawing(answer, Path(arguments.draw))
    return 0


def keep(source: str, max_decoded_pixels: int | None) -> Image.Image:
    """A picture in memory that goes by the name of its source."""
    picture = load_picture(source, max_decoded_pixels=max_decoded_pixels)
    picture.filename = source_name(source)  # type: ignore[attr-defined]
    return picture


def check_drawing(arguments: argparse.Namespace) -> None:
    """Refuse what would fail after the answer was paid for."""
    if arguments.draw is None:
        return
    path = Path(arguments.draw)
    if not arguments.image:
        raise UsageError("--draw needs a picture to draw on (-i)")
    if path.suffix.lower() not in DRAWING_SUFFIXES:
        raise UsageError(f"--draw {path} must end in {', '.join(DRAWING_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--draw {path}: the folder {path.parent} does not exist")


def save_drawing(answer: Answer, path: Path) -> None:
    if not answer.boxes and not answer.points:
        say(f"the answer holds no boxes or points; {path} is the picture as it was")
    try:
        answer.draw().save(path)
    except (OSError, ValueError) as error:
        if isinstance(error, Qwen25VLError):
            raise
        raise Qwen25VLError(f"{path} can not be written: {error}") from None


def to_json(answer: Answer) -> str:
    seconds = {name: round(value, 4) for name, value in asdict(answer.timings).items()}
    tokens_per_second = seconds.pop("tokens_per_second")
    return json.dumps(
        {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": asdict(answer.usage),
            "media": [
                {
                    "kind": item.kind,
                    "name": item.name,
                    "original_size": size(item.original_size),
                    "model_size": size(item.model_size),
                    "visual_tokens": item.num_tokens,
                    "frames": item.num_frames,
                    "seconds_per_grid": item.seconds_per_grid,
                }
                for item in answer.media
            ],
            "boxes": places(answer.boxes),
            "points": places(answer.points),
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
        },
        ensure_ascii=False,
        indent=2,
    )


def size(height_width: tuple[int, int]) -> dict[str, int]:
    return {"width": height_width[1], "height": height_width[0]}


def places(items: Sequence[Box | Point]) -> list[dict[str, Any]]:
    """Boxes or points with coordinates rounded to a hundredth of a pixel."""
    return [
        {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(item).items()}
        for item in items
    ]

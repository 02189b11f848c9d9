"""`qwen25vl run`: one question, its answer on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen25vl.answer import Answer
from qwen25vl.cli.chat import keep
from qwen25vl.cli.checks import check, find_question
from qwen25vl.cli.draw_option import check_drawing, save_drawing
from qwen25vl.cli.opening import describe_error, generation_options, open_model, say
from qwen25vl.errors import Qwen25VLError, UsageError
from qwen25vl.grounding import Box, Point
from qwen25vl.inputs import MediaItem

if TYPE_CHECKING:
    from qwen25vl.structured.constraints import Constraint

NOTES = {
    "length": "the answer was cut off at its longest; --max-new-tokens allows more",
    "repetition": (
        "the answer was stopped because it went round in circles; --repetition-penalty may help"
    ),
}


def run(arguments: argparse.Namespace) -> int:
    find_question(arguments)
    check_drawing(arguments)
    check(arguments)
    question = sys.stdin.read() if arguments.question == "-" else arguments.question
    if not question.strip():
        raise UsageError("the question is empty")
    images: list[Any] = arguments.image
    # they are needed twice, and what comes through a pipe or the network should be read once
    if arguments.draw:
        images = [keep(source, arguments.max_decoded_pixels) for source in images]
    schema = read_schema(arguments.schema)
    vlm = open_model(arguments)
    own: dict[str, Any] = {"system": arguments.system, "fps": arguments.fps, "schema": schema}
    options = generation_options(arguments)
    stream = vlm.stream(question, images, arguments.video, **own, **options)
    for chunk in stream:
        if not arguments.json:
            print(chunk.text, end="", flush=True)
    return finish(stream.answer, arguments)


def read_schema(path: str | None) -> Constraint | None:
    """The schema in a file, checked before a model is loaded."""
    from qwen25vl.structured.constraints import Constraint

    if path is None:
        return None
    try:
        return Constraint.of_schema(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--schema {path} cannot be read: {error}") from None


def finish(answer: Answer, arguments: argparse.Namespace) -> int:
    """Write what belongs to an answer. A drawing that fails is told beside it."""
    if not arguments.json:
        print(flush=True)
    if answer.finish_reason in NOTES:
        say(NOTES[answer.finish_reason])
    failure = None
    if arguments.draw:
        try:
            save_drawing(answer, Path(arguments.draw))
        except Qwen25VLError as error:
            failure = error
            say(str(error))
    if arguments.json:
        print(to_json(answer, failure), flush=True)
    return failure.exit_code if failure else 0


def to_json(answer: Answer, failure: Qwen25VLError | None) -> str:
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
                    **({} if item.page is None else page(item)),
                    "frames": item.num_frames,
                    "seconds_per_grid": item.seconds_per_grid,
                }
                for item in answer.media
            ],
            "boxes": places(answer.boxes),
            "points": places(answer.points),
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            **(describe_error(failure) if failure else {}),
        },
        ensure_ascii=False,
        indent=2,
    )


def page(item: MediaItem) -> dict[str, Any]:
    """Of a document: the page's number, and its size in points."""
    height, width = item.page_size or (0.0, 0.0)
    return {"page": item.page, "page_size": {"width": width, "height": height}}


def size(height_width: tuple[int, int]) -> dict[str, int]:
    return {"width": height_width[1], "height": height_width[0]}


def places(items: Sequence[Box | Point]) -> list[dict[str, Any]]:
    """Boxes or points with coordinates rounded to a hundredth of a pixel."""
    return [
        {
            name: round(value, 2) if isinstance(value, float) else value
            for name, value in asdict(item).items()
        }
        for item in items
    ]

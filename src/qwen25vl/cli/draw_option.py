"""`run --draw`: the picture with the answer's boxes and points on it, in a file of its own."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from PIL import Image

from qwen25vl.answer import Answer
from qwen25vl.cli.checks import is_pipe
from qwen25vl.cli.opening import say
from qwen25vl.errors import MediaError, Qwen25VLError, UsageError
from qwen25vl.processing.sources import open_source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
REMOTE = ("http://", "https://", "data:")


def check_drawing(arguments: argparse.Namespace) -> None:
    """Refuse what would fail after the answer was paid for,
    and what would overwrite a picture of the question."""
    if arguments.draw is None:
        return
    path = Path(arguments.draw)
    if not arguments.image:
        raise UsageError("--draw needs a picture to draw on (-i)")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--draw {path} must end in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--draw {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UsageError(f"--draw {path} is a folder; give a file")
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise UsageError(f"--draw {path} cannot be written: permission denied")
    for source in (*arguments.image, *arguments.video):
        if is_same_file(source, path):
            raise UsageError(
                f"--draw {path} would overwrite {source}, which the question is about; give "
                "another file"
            )


def is_same_file(source: str, path: Path) -> bool:
    """Whether a source is read from the file at `path`, under whatever name,
    through links or standard input."""
    if not path.exists() or source.lower().startswith(REMOTE) or is_pipe(source):
        return False
    try:
        if source == "-":
            return os.path.samestat(os.fstat(sys.stdin.fileno()), path.stat())
        with open_source(source) as file:
            return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (MediaError, OSError, AttributeError):
        # not there, or without a descriptor: no file at all
        return False


def save_drawing(answer: Answer, path: Path) -> None:
    """Write the drawing beside its place and rename it: a failure leaves what was there.
    Raises Qwen25VLError."""
    if not answer.boxes and not answer.points:
        say(f"the answer holds no boxes or points; {path} is the picture as it was")
    drawing = answer.draw()
    target = path.resolve()  # a link stays a link
    partial = target.with_name(f".drawing-{os.getpid()}")
    try:
        with partial.open("w+b") as file:
            drawing.save(file, Image.registered_extensions()[path.suffix.lower()])
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    except (OSError, ValueError) as error:
        raise Qwen25VLError(f"{path} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)

"""The built-in checkpoint: a small Qwen2.5-VL for drawn scenes, words and clips;
train_demo/ made it."""

import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

from qwen25vl.errors import CheckpointError

FOLDER = Path(__file__).parent


def folder_on_disk(folder: Path = FOLDER) -> Path:
    """The checkpoint as files that can be mapped.
    Raises CheckpointError for an installation without it.

    A package that runs from an archive (zipapp) has no files: its checkpoint is unpacked once, for
    as long as the process lives.
    """
    if (folder / "config.json").is_file():
        return folder
    if folder == FOLDER and files(__name__).joinpath("config.json").is_file():
        return Path(unpack().name)
    raise CheckpointError("the demo model is missing from this installation; name a model to load")


@cache  # the folder is removed when the object goes, at the end of the process
def unpack() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="qwen25vl-demo-")
    for file in files(__name__).iterdir():
        if file.is_file() and not file.name.endswith((".py", ".pyc")):
            Path(folder.name, file.name).write_bytes(file.read_bytes())
    return folder

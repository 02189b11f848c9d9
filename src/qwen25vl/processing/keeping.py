"""Sources that may not be there a second time, as their bytes.

An open file is closed, a stream is read to its end:
whoever asks again later gets what was read the first time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from qwen25vl.processing.sources import (
    load_bytes,
    source_name,
)


def keep_open_files(value: Any) -> Any:
    """A source, a list of them or messages, in which bytes stand for open files and standard input.

    The bytes keep the name of their file, as {"bytes": …, "path": name}. Everything else stays as
    it is. Raises what reading a source does.
    """
    if callable(getattr(value, "read", None)) and not isinstance(value, os.PathLike):
        return read_named(value)
    if type(value) in (list, tuple):
        return type(value)(map(keep_open_files, value))
    if isinstance(value, Mapping):
        return {key: keep_open_files(each) for key, each in value.items()}
    return value


def keep_source(source: Any) -> Any:
    """As `keep_open_files`, of one source of a question, where "-" is standard input."""
    is_standard_input = isinstance(source, str) and source == "-"
    return read_named(source) if is_standard_input else keep_open_files(source)


def read_named(source: Any) -> dict[str, Any]:
    return {"bytes": load_bytes(source), "path": source_name(source)}

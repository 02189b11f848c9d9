"""Generation configurations as dictionaries, as files (generation_config.json) and as a line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.config_values import from_text, read_json
from qwen25vl.engine.option_checks import LOWEST_WHOLE, REAL_RANGE, SWITCHES
from qwen25vl.engine.option_values import NEUTRAL_SHAPE, asks_for_nothing
from qwen25vl.errors import CheckpointError, UsageError

FILE_NAME = "generation_config.json"


def read_values(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The known options of a generation_config.json; null is not given. A key without effect here
    is named in a warning, so that a checkpoint that has one still loads."""
    unused = [
        key
        for key, value in values.items()
        if key not in known and not asks_for_nothing(key, value)
    ]
    if unused:
        warnings.warn(
            f"generation_config has keys that have no effect here: {', '.join(sorted(unused))}",
            stacklevel=3,
        )
    numbers = dict.fromkeys((*LOWEST_WHOLE, *REAL_RANGE), "float")
    kinds = {**numbers, **dict.fromkeys(SWITCHES, "bool")}
    given = {
        key: from_text(value, kinds.get(key, ""))
        for key, value in values.items()
        if key in known and value is not None
    }
    if given.get("top_k") == -1:  # as some engines write "all"
        given["top_k"] = 0
    return given


def read_folder(folder: str | Path, file_name: str) -> dict[str, Any]:
    """The content of a folder's file; without it, the end token of config.json."""
    path = Path(folder) / file_name
    if path.exists():
        return read_json(path)
    text_config = Qwen2_5_VLConfig.from_pretrained(folder).text_config
    return {"eos_token_id": text_config.eos_token_id, "pad_token_id": text_config.pad_token_id}


@contextmanager
def named_file(path: Path) -> Iterator[None]:
    """Errors about values name the file that has them."""
    try:
        yield
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from None


def as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=False) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples as lists."""
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def write_file(folder: str | Path, file_name: str, text: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / file_name).write_text(text, encoding="utf-8")


def describe_options(values: Mapping[str, Any], neutral: Mapping[str, Any], is_greedy: bool) -> str:
    """The values that have an effect, on one line."""
    names = [
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "min_new_tokens",
        "stop_strings",
    ]
    if not is_greedy:
        names = [*NEUTRAL_SHAPE, "seed", *names]
    shown = [f"{name} {values[name]}" for name in names if values[name] != neutral[name]]
    how = "greedy" if is_greedy else "sampling"
    return ", ".join([how, *shown, f"max_new_tokens {values['max_new_tokens']}"])

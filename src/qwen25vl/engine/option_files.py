"""Generation configurations as dictionaries and as files, generation_config.json."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.config_values import read_json
from qwen25vl.engine.option_values import WAYS_OUT, asks_for_nothing
from qwen25vl.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from qwen25vl.engine.options import GenerationConfig

Config = TypeVar("Config", bound="GenerationConfig")
FILE_NAME = "generation_config.json"
FOREIGN = {*WAYS_OUT, "cache_implementation"}


def read_values(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """The content of a generation_config.json as a configuration; null takes the default. A key
    without effect here is named in a warning, so that a checkpoint that has one still loads."""
    names = config_class().values()
    unused = [
        key
        for key, value in values.items()
        if key not in names and not asks_for_nothing(key, value)
    ]
    if unused:
        warnings.warn(
            f"generation_config has keys that have no effect here: {', '.join(sorted(unused))}",
            stacklevel=3,
        )
    return config_class(
        **{key: value for key, value in values.items() if key in names and value is not None}
    )


def read_folder(config_class: type[Config], folder: str | Path, file_name: str) -> Config:
    """Read a file of a folder; without it, greedy with the end token of config.json."""
    path = Path(folder) / file_name
    if not path.exists():
        text_config = Qwen2_5_VLConfig.from_pretrained(folder).text_config
        ends = {"eos_token_id": text_config.eos_token_id, "pad_token_id": text_config.pad_token_id}
        return read_values(config_class, ends)
    values = read_json(path)
    try:
        return read_values(config_class, values)
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

"""Generation configurations of other packages: transformers' GenerationConfig, any object that has
the options as attributes, a mapping of them.

Such an object may carry options that this package does not have. Those that ask for nothing are
passed over: None, False, an empty list, the neutral value of transformers. All others raise
OptionError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qwen25vl.engine.option_values import NEUTRAL_OPTIONS, asks_for_nothing
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError

MAX_LENGTH = 20  # what transformers 4 writes as max_length where nothing was asked for
OPTIONS = {field.name for field in fields(GenerationConfig)}


def read_options(config: Any) -> dict[str, Any]:
    """The options that a foreign configuration asks for,
    to be merged as if the call had given them.

    Raises UsageError for an object that has none of the attributes; `GenerationConfig.merge`
    refuses what is unknown.
    """
    if config is None:
        return {}
    given = read_attributes(config)
    if given.get("max_length") == MAX_LENGTH and not isinstance(config, Mapping):
        given.pop("max_length")
    return {
        name: value
        for name, value in given.items()
        if name in OPTIONS or not (asks_for_nothing(name, value) or value in ([], (), {}, ""))
    }


def read_attributes(config: Any) -> dict[str, Any]:
    """All public attributes of the object itself, and those of its class that are options."""
    if isinstance(config, Mapping):
        return dict(config)
    known = {
        name: getattr(config, name)
        for name in (*OPTIONS, *NEUTRAL_OPTIONS)
        if hasattr(config, name)
    }
    if not known:
        raise UsageError(
            f"generation_config is {type(config).__name__} without any option; expected a "
            "GenerationConfig, an object with its attributes or a mapping"
        )
    own = getattr(config, "__dict__", {})
    return known | {name: value for name, value in own.items() if not name.startswith("_")}

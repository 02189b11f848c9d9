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

from qwen25vl.engine.option_values import FIXED, WITHOUT_EFFECT
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError

NEUTRAL = {
    "max_length": 20,  # what transformers 4 writes where nothing was asked for
    "min_length": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
}
BEAM_SEARCH = {"early_stopping", "length_penalty", "diversity_penalty"}  # no effect for 1 beam
# of no effect without an assistant model
ASSISTANT = {
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "assistant_early_exit",
    "assistant_ensemble_weight",
}
SPEED = {
    "disable_compile",
    "compile_config",
    "low_memory",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
}
NO_EFFECT = {*WITHOUT_EFFECT, *BEAM_SEARCH, *ASSISTANT, *SPEED}
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
    if given.get("max_new_tokens") is not None:
        given.pop("max_length", None)  # as in transformers, where max_new_tokens takes precedence
    if given.get("min_new_tokens") is not None:
        given.pop("min_length", None)
    return {
        name: value
        for name, value in given.items()
        if name in OPTIONS or asks_for_something(name, value)
    }


def read_attributes(config: Any) -> dict[str, Any]:
    """All public attributes of the object itself, and those of its class that are options."""
    if isinstance(config, Mapping):
        return dict(config)
    known = {
        name: getattr(config, name)
        for name in (*OPTIONS, *FIXED, *NEUTRAL)
        if hasattr(config, name)
    }
    if not known:
        raise UsageError(
            f"generation_config is {type(config).__name__} without any option; expected a "
            "GenerationConfig, an object with its attributes or a mapping"
        )
    own = getattr(config, "__dict__", {})
    return known | {name: value for name, value in own.items() if not name.startswith("_")}


def asks_for_something(name: str, value: Any) -> bool:
    """Whether an option that is none of ours must be refused, or its only value checked."""
    if name in FIXED:
        return True
    if name in NO_EFFECT or value is None or value is False:
        return False
    return bool(value != NEUTRAL[name]) if name in NEUTRAL else value not in ([], (), {}, "")

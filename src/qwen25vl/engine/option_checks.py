"""Which values the options of an answer may have, alone and together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qwen25vl.arguments import check_switch, plain_bool, plain_number, whole_number
from qwen25vl.config_values import shown
from qwen25vl.engine.option_values import NEUTRAL_SHAPE
from qwen25vl.errors import UsageError

LOWEST_WHOLE = {"max_new_tokens": 1, "min_new_tokens": 0, "max_length": 1, "min_length": 0,
                "top_k": 0, "num_return_sequences": 1, "num_beams": 1, "no_repeat_ngram_size": 0,
                "max_repeated_tokens": 0, "prompt_lookup_num_tokens": 0,
                "max_matching_ngram_size": 1, "forced_bos_token_id": 0,
                "pad_token_id": 0, "seed": 0}  # fmt: skip
MAY_BE_NONE = {"max_length", "pad_token_id", "seed", "forced_bos_token_id"}
REAL_RANGE = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (math.ulp(0.0), math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
    "length_penalty": (-math.inf, math.inf),
}
SWITCHES = ("do_sample", "use_cache", "renormalize_logits", "output_logits", "output_scores",
            "return_dict_in_generate")  # fmt: skip
TOKEN_LISTS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id")


def checked_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their own types. Raises UsageError for one that is impossible, by its name."""
    checked = dict(values)
    for name, lowest in LOWEST_WHOLE.items():
        checked[name] = check_whole(name, values[name], lowest, name in MAY_BE_NONE)
    for name, (low, high) in REAL_RANGE.items():
        checked[name] = check_real(name, values[name], low, high)
    if values["max_time"] is not None:
        checked["max_time"] = check_real("max_time", values["max_time"], math.ulp(0.0), math.inf)
    if values["do_sample"] is None:
        shape = (checked[name] != neutral for name, neutral in NEUTRAL_SHAPE.items())
        checked["do_sample"] = any(shape)
    for name in SWITCHES:
        checked[name] = check_switch(name, checked[name])
    checked["early_stopping"] = check_early_stopping(values["early_stopping"])
    for name in TOKEN_LISTS:
        checked[name] = read_token_ids(name, values[name])
    checked["bad_words_ids"] = read_bad_words(values["bad_words_ids"])
    checked["stop_strings"] = read_stop_strings(values["stop_strings"])
    return checked


def check_together(values: Mapping[str, Any]) -> None:
    """Refuse options that exclude each other."""
    shortest, longest = values["min_new_tokens"], values["max_new_tokens"]
    if values["max_length"] is None and shortest > longest:
        raise UsageError(f"min_new_tokens {shortest} is above max_new_tokens {longest}")
    num_beams, num_answers = values["num_beams"], values["num_return_sequences"]
    if 1 < num_beams < num_answers:
        raise UsageError(
            f"num_return_sequences is {num_answers}; a search with {num_beams} beams has no more "
            "answers than beams"
        )
    if num_beams > 1 and values["prompt_lookup_num_tokens"]:
        raise UsageError("prompt_lookup_num_tokens drafts for one answer; it needs num_beams=1")


def check_outputs(values: Mapping[str, Any]) -> None:
    """Refuse outputs that a tensor of ids has no place for."""
    for name in ("output_logits", "output_scores"):
        if values[name] and not values["return_dict_in_generate"]:
            raise UsageError(
                f"{name} needs return_dict_in_generate=True: a tensor of ids cannot carry logits"
            )


def check_whole(name: str, value: Any, lowest: int, optional: bool) -> int | None:
    if optional and value is None:
        return None
    number = whole_number(value)
    if number is None or number < lowest:
        raise UsageError(
            f"{name} is {shown(value)}; it must be a whole number of at least {lowest}"
        )
    return number


def check_real(name: str, value: Any, low: float, high: float) -> int | float:
    number = plain_number(value)
    if number is None or not low <= number <= high:
        wanted = "a number" if low == -math.inf else f"a number of at least {low:g}"
        if low == math.ulp(0.0):
            wanted = "a number above 0"
        elif high < math.inf:
            wanted = f"a number from {low:g} to {high:g}"
        raise UsageError(f"{name} is {shown(value)}; it must be {wanted}")
    return number


def check_early_stopping(value: Any) -> bool | str:
    chosen = "never" if isinstance(value, str) and value == "never" else plain_bool(value)
    if chosen is None:
        raise UsageError(f"early_stopping is {shown(value)}; it must be True, False or 'never'")
    return chosen


def read_token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One token id or several, also in a list of lists, as trainers write them; of −1 as an end
    token, which no token is, none."""
    if value is None or (name == "eos_token_id" and whole_number(value) == -1):
        return ()
    values = list(value) if isinstance(value, list | tuple) or has_rows(value) else [value]
    if len(values) == 1 and isinstance(values[0], list | tuple):
        values = list(values[0])
    numbers = [whole_number(each) for each in values]
    ids = tuple(number for number in numbers if number is not None and number >= 0)
    if len(ids) != len(numbers):
        raise UsageError(f"{name} is {shown(value)}; it must be a token id or a list of them")
    return ids


def has_rows(value: Any) -> bool:
    """Whether a value is an array or tensor of several numbers."""
    return getattr(value, "ndim", 0) == 1


def read_bad_words(value: Any) -> tuple[tuple[int, ...], ...]:
    words = value if isinstance(value, list | tuple) else [None]
    if not all(isinstance(word, list | tuple) and word for word in words):
        raise UsageError(
            f"bad_words_ids is {shown(value)}; it must be a list of lists of token ids"
        )
    return tuple(read_token_ids("bad_words_ids", word) for word in words)


def read_stop_strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) and s for s in strings):
        raise UsageError(
            f"stop_strings is {shown(value)}; it must be a string or a list of strings, none of "
            "them empty"
        )
    return tuple(strings)

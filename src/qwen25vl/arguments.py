"""What callers give: numbers of any type, and option names that are nearly right."""

from __future__ import annotations

import inspect
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from qwen25vl.errors import OptionError, UsageError

P = ParamSpec("P")
R = TypeVar("R")
MAX_DIGITS = 400  # a text of more is no number that anybody means
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
OTHER_NAMES = {
    "max_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens",
    "stop": "stop_strings",
    "n": "num_return_sequences",
    "system_prompt": "system",
    "instructions": "system",
    "video_fps": "fps",
    "prefill": "continue_final_message",
}
"""What other libraries call an option, and what it is called here."""


def plain_number(value: Any, *, from_text: bool = False) -> int | float | None:
    """A finite number as int or float; None for what is no finite number.

    value: a Python number, a scalar of numpy or torch (also an array of no dimensions) or, with
    `from_text`, a text that spells a number. A bool is no number. A whole number stays an int,
    whatever its size.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    text = value.strip() if from_text and isinstance(value, str) else ""
    if len(text) <= MAX_DIGITS and NUMBER.fullmatch(text):
        value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def plain_bool(value: Any) -> bool | None:
    """True or False as Python's own, also of a scalar of numpy or torch;
    None for what is neither."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, bool) else None


def check_switch(name: str, value: Any) -> bool:
    """True or False. Raises UsageError, by name, for anything else."""
    chosen = plain_bool(value)
    if chosen is None:
        raise UsageError(f"{name} is {value!r}; it must be True or False")
    return chosen


def whole_number(value: Any) -> int | None:
    """As `plain_number`, but None for what is no integer by its type: 4.0 may be a mistake."""
    number = plain_number(value)
    return number if isinstance(number, int) else None


def is_among(value: Any, allowed: Iterable[Any]) -> bool:
    """Whether a value is None, a text or a number among those allowed; an array is none of them."""
    return isinstance(value, str | int | float | None) and value in allowed


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known option that was probably meant by this name."""
    known = list(known)
    if (other := OTHER_NAMES.get(name)) in known:
        return other
    return next(iter(get_close_matches(name, known, n=1)), None)


def name_hint(name: str, known: Iterable[str]) -> str:
    """How an error about an unknown name ends: what was probably meant, else all known names."""
    known = list(known)
    nearest = nearest_name(name, known)
    return f"did you mean {nearest}?" if nearest else f"known are {', '.join(known)}"


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise OptionError for a name that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise OptionError(f"there is no option {name!r}; {name_hint(name, known)}")


def names_unknown_options(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: an unknown keyword raises OptionError, which names the nearest known one."""
    parameters = inspect.signature(function).parameters.values()
    keyword_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [p.name for p in parameters if p.kind in keyword_kinds]
    known = [name for name in known if name not in ("self", "cls")]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_unknown(kwargs, known)
        return function(*args, **kwargs)

    return call


def byte_limit(name: str, value: Any) -> int:
    """How much a cache may keep. Raises UsageError for anything but a whole number from 0 on."""
    size = whole_number(value)
    if size is None or size < 0:
        wanted = "a whole number of at least 0, which keeps nothing"
        raise UsageError(f"{name} is {value!r}; it must be {wanted}")
    return size


def outline(value: Any) -> str:
    """What a value is, without its content: errors are shown and kept where requests are not."""
    if isinstance(value, Mapping):
        keys = ", ".join(str(key)[:20] for key in [*value][:8])
        return f"an object with {keys}" if keys else "an empty object"
    return "null" if value is None else f"a {type(value).__name__}"

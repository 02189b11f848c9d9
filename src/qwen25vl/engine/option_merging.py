"""How options that somebody gives change the values that were there before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen25vl.engine.option_checks import checked_values
from qwen25vl.engine.option_values import LENGTHS, NEUTRAL_SHAPE, check_option_names
from qwen25vl.errors import UsageError


@dataclass(frozen=True)
class Given:
    """What a configuration was given. start: all its values when it was made; named: the names that
    were given then; assigned: what was set since."""

    start: Mapping[str, Any]
    named: frozenset[str]
    assigned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        return self.named | self.assigned.keys()

    def values(self) -> dict[str, Any]:
        """The values that follow. Raises UsageError for an impossible one."""
        return checked_values(merged_values(self.start, self.later()))

    def later(self) -> dict[str, Any]:
        """What was set since, with do_sample=False where the start has it by name: a temperature
        that is set does not undo it."""
        refuses = "do_sample" in self.named and not self.start["do_sample"]
        return {**({"do_sample": False} if refuses else {}), **self.assigned}

    def assign(self, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Given:
        """The same with these options set, or reset to their defaults by None."""
        reset = {name for name, value in options.items() if value is None}
        assigned = {**self.assigned, **options}
        return Given(
            checked_values({**self.start, **{name: defaults[name] for name in reset}}),
            self.named - reset,
            {name: value for name, value in assigned.items() if value is not None},
        )

    def in_turn(self, do_sample: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """What was given at the start and what was set since, to be merged over a configuration
        with this do_sample. That decides where do_sample was not given and does not follow."""
        first = {name: self.start[name] for name in self.named}
        if first.keys() & NEUTRAL_SHAPE.keys() and not self.start["do_sample"]:
            first.setdefault("do_sample", do_sample)
        return first, self.later()


def given_options(options: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Those that have an effect and are not None. Raises OptionError for unknown ones."""
    check_option_names(options, known)
    return {name: value for name, value in options.items() if value is not None and name in known}


def with_lengths(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, with the default for the other way to give a length: of both ways the one
    for new tokens counts."""
    options = dict(given)
    for new, default_new, whole, default_whole in LENGTHS:
        if new in given:
            options[whole] = default_whole
        elif whole in given:
            options[new] = default_new
    return options


def merged_values(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options over other values, by the rules of `GenerationConfig.merge`."""
    given = with_lengths(given)
    shape = any(given.get(name, neutral) != neutral for name, neutral in NEUTRAL_SHAPE.items())
    if not given.get("do_sample", shape or "temperature" in given):
        return {**values, **given}
    is_peaked = values["temperature"] <= 0.01 or values["top_k"] == 1 or values["top_p"] <= 0.01
    reset = NEUTRAL_SHAPE if is_peaked else {}
    return {**values, **reset, "do_sample": True, **given}


def new_lengths(values: Mapping[str, Any], num_prompt: int) -> dict[str, Any]:
    """Lengths in new tokens only, for prompts of this padded length. Raises UsageError where
    `max_length` leaves no room for an answer."""
    whole = values["max_length"]
    longest = values["max_new_tokens"] if whole is None else whole - num_prompt
    if longest < 1:
        raise UsageError(
            f"max_length is {whole} and the prompt has {num_prompt} tokens; give max_new_tokens"
        )
    shortest = values["min_new_tokens"] or max(0, values["min_length"] - num_prompt)
    return {
        "max_new_tokens": longest,
        "min_new_tokens": min(shortest, longest),
        "max_length": None,
        "min_length": 0,
    }

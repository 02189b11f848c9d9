"""GenerationConfig: how an answer is to be written. Every value is checked when the object is made.

A checkpoint's generation_config.json gives the defaults, a call's options go over them by `merge`.
The released files say do_sample with temperature 1e-6, which is greedy in effect, so merging has a
rule of its own: see `merge`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qwen25vl.arguments import plain_bool
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.config_values import read_json
from qwen25vl.engine.option_values import (
    FIXED,
    GREEDY_TEMPERATURE,
    LOWEST_WHOLE,
    NEUTRAL_SHAPE,
    REAL_RANGE,
    WITHOUT_EFFECT,
    check_real,
    check_whole,
    read_stop_strings,
    read_token_ids,
    refuse_unknown,
)
from qwen25vl.errors import CheckpointError, UsageError


@dataclass(repr=False)
class GenerationConfig:
    """Options of `generate` and `stream`, under the ecosystem's names. `merge` gives a changed
    copy.

    Setting an attribute, as in `model.generation_config.max_new_tokens = 5`, makes it an option of
    every later call: it is checked at once and follows the rules of `merge`, in whatever order
    several are set. None resets it to its default.

    Length: `max_new_tokens` ends an answer with reason "length". `min_new_tokens` excludes the end
    tokens until then (a stop string still ends the answer, as in transformers, and so does a
    control token given as one).

    Choice: greedy unless `do_sample`. If `do_sample` is None, it is true if one of `temperature`,
    `top_k`, `top_p`, `min_p` differs from its neutral value (1, 0, 1, 0), which switches it off.
    Without sampling these four have no effect. A temperature of at most 1e-5, including 0, is
    greedy too. The default of transformers keeps the 50 likeliest tokens; here all are kept.

    Penalties apply to sampling and greedy choice: `repetition_penalty` divides positive and
    multiplies negative logits of every token in prompt and answer; `presence_penalty` is subtracted
    from the logits of tokens in the answer, `frequency_penalty` once for each occurrence there.

    End: any of `eos_token_id` (none: never) and any of `stop_strings` end with reason "stop". Give
    one or a list; a tuple is stored. If the last `max_repeated_tokens` tokens repeat a cycle of at
    most 64 tokens, the answer ends with "repetition"; 0 switches this off.

    Speed: `prompt_lookup_num_tokens` above 0 switches on prompt lookup. Where the last tokens of an
    answer (`max_matching_ngram_size` of them, or fewer, at least 2) occurred before in prompt or
    answer, the tokens that followed there are drafted, and one pass checks several of them. At most
    `prompt_lookup_num_tokens` are drafted in a pass, for all answers together, and fewer if drafts
    are rejected. The answer is the same, except for ties in the last bits where a pass over several
    tokens rounds differently from passes over one.

    `max_time`: seconds after which an answer ends with reason "time"; if it has not begun by then,
    that is a DeadlineError.

    `seed` makes sampling repeatable: an answer depends on the seed, its prompt and its number among
    the answers to that prompt (and to identical prompts in the batch), not on the rest of the
    batch. None draws one from torch's global generator. `output_logits` returns the raw logits and
    needs `return_dict_in_generate`. Finished rows are filled with `pad_token_id`.
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 0
    do_sample: bool | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_return_sequences: int = 1
    stop_strings: tuple[str, ...] = ()
    max_repeated_tokens: int = 512
    prompt_lookup_num_tokens: int = 0
    max_matching_ngram_size: int = 3
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    seed: int | None = None
    max_time: float | None = None
    output_logits: bool = False
    return_dict_in_generate: bool = False

    def __post_init__(self) -> None:
        for name, lowest in LOWEST_WHOLE.items():
            is_optional = name in ("pad_token_id", "seed")
            setattr(self, name, check_whole(name, getattr(self, name), lowest, is_optional))
        for name, (low, high) in REAL_RANGE.items():
            setattr(self, name, check_real(name, getattr(self, name), low, high))
        if self.max_time is not None:
            self.max_time = check_real("max_time", self.max_time, math.ulp(0.0), math.inf)
        for name in ("do_sample", "output_logits", "return_dict_in_generate"):
            if (value := getattr(self, name)) is None:
                continue
            if (chosen := plain_bool(value)) is None:
                raise UsageError(f"{name} is {value!r}; it must be True or False")
            setattr(self, name, chosen)
        self.eos_token_id = read_token_ids(self.eos_token_id)
        self.stop_strings = read_stop_strings(self.stop_strings)
        if self.do_sample is None:
            self.do_sample = any(
                getattr(self, name) != value for name, value in NEUTRAL_SHAPE.items()
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens {self.min_new_tokens} is above max_new_tokens "
                f"{self.max_new_tokens}"
            )
        if self.output_logits and not self.return_dict_in_generate:
            raise UsageError(
                "output_logits needs return_dict_in_generate=True: a tensor of ids cannot carry "
                "logits"
            )
        # What the object was made with, and what was assigned since, to be merged over it.
        vars(self).update(start=self.values(), assigned={})

    def __setattr__(self, name: str, value: Any) -> None:
        if "start" not in vars(self):  # __init__ is still running
            object.__setattr__(self, name, value)
            return
        refuse_unknown({name: value}, option_names())
        if name in FIXED:
            return
        start, assigned = dict(vars(self)["start"]), dict(vars(self)["assigned"])
        if value is None:
            start[name] = getattr(GenerationConfig, name)  # the class holds the defaults
            assigned.pop(name, None)
        else:
            assigned[name] = value
        merged = GenerationConfig(**start).merge(**assigned)
        vars(self).update(merged.values(), start=start, assigned=assigned)

    def __repr__(self) -> str:
        neutral = GenerationConfig().values()
        changed = [
            f"{name}={value!r}" for name, value in self.values().items() if value != neutral[name]
        ]
        return f"GenerationConfig({', '.join(changed)})"

    def values(self) -> dict[str, Any]:
        """The options by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return not self.do_sample or self.temperature <= GREEDY_TEMPERATURE

    @property
    def fill_token_id(self) -> int:
        """What follows a finished answer in a batch: the padding token, else the first end token,
        else 0."""
        return self.pad_token_id if self.pad_token_id is not None else (*self.eos_token_id, 0)[0]

    def merge(self, **options: Any) -> GenerationConfig:
        """These values, overridden by the caller's options; an option that is None counts as not
        given.

        A temperature, top_k, top_p or min_p that is not neutral, or do_sample=True, asks for
        sampling, unless do_sample=False is given too. If the values here make sampling greedy in
        effect (temperature or top_p at most
        0.01, or top_k 1, as in the released files), all four are first reset to neutral, so those
        that the caller did not give neither keep the output greedy nor exclude tokens. Otherwise
        they are kept. All other values, such as the repetition penalty, are always kept. Raises
        OptionError for an unknown option. Options of transformers with only one supported value
        here (use_cache, num_beams=1, …) may be given with that value, and every other one as None.
        """
        refuse_unknown(options, option_names())
        given = {
            name: value
            for name, value in options.items()
            if value is not None and name not in FIXED
        }
        shape = any(given.get(name, neutral) != neutral for name, neutral in NEUTRAL_SHAPE.items())
        asks = given.get("do_sample", shape or "temperature" in given)
        if not asks:
            return replace(self, **given)
        is_peaked = self.temperature <= 0.01 or self.top_k == 1 or self.top_p <= 0.01
        return replace(self, **{**(NEUTRAL_SHAPE if is_peaked else {}), "do_sample": True, **given})

    def over(self, base: GenerationConfig) -> GenerationConfig:
        """What differs here from the defaults, over another configuration: a call's over the
        checkpoint's."""
        neutral = GenerationConfig().values()
        changed = {name: value for name, value in self.values().items() if value != neutral[name]}
        changed |= vars(self)["assigned"]
        return base.merge(
            **({"do_sample": False} if changed.keys() & NEUTRAL_SHAPE.keys() else {}) | changed
        )

    def describe(self) -> str:
        """The values that have an effect, on one line."""
        neutral = GenerationConfig()
        names = [
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "min_new_tokens",
            "stop_strings",
        ]
        if not self.is_greedy:
            names = [*NEUTRAL_SHAPE, "seed", *names]
        shown = [
            f"{name} {value}"
            for name in names
            if (value := getattr(self, name)) != getattr(neutral, name)
        ]
        how = "greedy" if self.is_greedy else "sampling"
        return ", ".join([how, *shown, f"max_new_tokens {self.max_new_tokens}"])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """Read the content of a generation_config.json; null takes the default.

        Keys that transformers writes and that change nothing are ignored. Any other key without
        effect here is named in a warning, so a checkpoint with such a key still loads.
        """
        names = {field.name for field in fields(cls)}
        tolerated = (
            names
            | WITHOUT_EFFECT
            | {key for key, value in FIXED.items() if values.get(key) == value}
        )
        unused = [
            key for key, value in values.items() if key not in tolerated and value is not None
        ]
        if unused:
            warnings.warn(
                f"generation_config has keys that have no effect here: {', '.join(sorted(unused))}",
                stacklevel=2,
            )
        return cls(
            **{key: value for key, value in values.items() if key in names and value is not None}
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GenerationConfig:
        """Read `folder`/generation_config.json; without the file, greedy with the end token of
        config.json."""
        path = Path(folder) / "generation_config.json"
        if not path.exists():
            text_config = Qwen2_5_VLConfig.from_pretrained(folder).text_config
            return cls.from_dict(
                {"eos_token_id": text_config.eos_token_id, "pad_token_id": text_config.pad_token_id}
            )
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except UsageError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """All values as JSON has them; `from_dict` of it gives an equal object."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.values().items()
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/generation_config.json with what differs from the defaults."""
        neutral = GenerationConfig().to_dict()
        values = {name: value for name, value in self.to_dict().items() if value != neutral[name]}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "generation_config.json").write_text(
            json.dumps(values, indent=2) + "\n", encoding="utf-8"
        )


def option_names() -> list[str]:
    return [field.name for field in fields(GenerationConfig)]

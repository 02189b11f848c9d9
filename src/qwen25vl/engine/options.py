"""GenerationConfig: how an answer is to be written. Every value is checked when the object is made.

A checkpoint's generation_config.json gives the defaults, a call's options go over them by `merge`.
The released files say do_sample with temperature 1e-6, which is greedy in effect, so merging has a
rule of its own: see `merge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qwen25vl.engine.option_checks import checked_values
from qwen25vl.engine.option_files import (
    FILE_NAME,
    as_json,
    plain,
    read_folder,
    read_values,
    write_file,
)
from qwen25vl.engine.option_values import (
    GREEDY_TEMPERATURE,
    LENGTHS,
    MAX_NEW_TOKENS,
    NEUTRAL_SHAPE,
    refuse_unknown,
)
from qwen25vl.errors import UsageError


@dataclass(repr=False)
class GenerationConfig:
    """Options of `generate` and `stream`, under the ecosystem's names. `merge` gives a changed
    copy.

    Setting an attribute, as in `model.generation_config.max_new_tokens = 5`, makes it an option of
    every later call: it is checked at once and follows the rules of `merge`, in whatever order
    several are set. None resets it to its default.

    Length: `max_new_tokens` ends an answer with reason "length". `min_new_tokens` excludes the end
    tokens until then (a stop string still ends the answer, as in transformers, and so does a
    control token given as one). `max_length` and `min_length` count the prompt too, padding
    included; of both ways to give a length the one for new tokens counts.

    Choice: greedy unless `do_sample`. If `do_sample` is None, it is true if one of `temperature`,
    `top_k`, `top_p`, `min_p` differs from its neutral value (1, 0, 1, 0), which switches it off.
    Without sampling these four have no effect. A temperature of at most 1e-5, including 0, is
    greedy too. The default of transformers keeps the 50 likeliest tokens; here all are kept.

    Penalties apply to sampling and greedy choice: `repetition_penalty` divides positive and
    multiplies negative logits of every token in prompt and answer; `presence_penalty` is subtracted
    from the logits of tokens in the answer, `frequency_penalty` once for each occurrence there.

    Excluded tokens: `no_repeat_ngram_size` forbids what would repeat so many tokens of prompt and
    answer, `bad_words_ids` what would complete one of these rows of tokens, `suppress_tokens`
    these always, `begin_suppress_tokens` these as an answer's first. `forced_eos_token_id` is what
    an answer of full length ends with, `forced_bos_token_id` what follows a prompt of one token.

    Beam search: `num_beams` above 1 keeps so many answers and returns the `num_return_sequences`
    best, by the sum of their log-probabilities divided by length to the power of
    `length_penalty`. `early_stopping`: True ends when there are `num_beams` whole answers, False
    also when a better one is unlikely, "never" only when none can be better.

    End: any of `eos_token_id` (none, or −1: never) and any of `stop_strings` end with reason
    "stop". Give one or a list; a tuple is stored. If the last `max_repeated_tokens` tokens repeat a
    cycle of at most 64 tokens, the answer ends with "repetition"; 0 switches this off.

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
    batch. None draws one from torch's global generator.

    `return_dict_in_generate` returns a GenerateOutput, which `output_logits` (raw) and
    `output_scores` (those that tokens were chosen from; `renormalize_logits` makes them
    log-probabilities) need. `use_cache=False` leaves its caches out. Finished rows are filled with
    `pad_token_id`.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int = 0
    max_length: int | None = None
    min_length: int = 0
    do_sample: bool | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop_strings: tuple[str, ...] = ()
    max_repeated_tokens: int = 512
    prompt_lookup_num_tokens: int = 0
    max_matching_ngram_size: int = 3
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    seed: int | None = None
    max_time: float | None = None
    use_cache: bool = True
    renormalize_logits: bool = False
    output_logits: bool = False
    output_scores: bool = False
    return_dict_in_generate: bool = False

    def __post_init__(self) -> None:
        chosen = {} if self.do_sample is None else {"do_sample": self.do_sample}
        for name, value in checked_values(self.values()).items():
            setattr(self, name, value)
        # What the object was made with, and what was assigned since, to be merged over it.
        vars(self).update(start=self.values(), assigned=chosen)

    def __setattr__(self, name: str, value: Any) -> None:
        if "start" not in vars(self):  # __init__ is still running
            object.__setattr__(self, name, value)
            return
        refuse_unknown({name: value}, option_names())
        if name not in option_names():  # of no effect here
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
        OptionError for an unknown option, and for one of transformers that is not here and asks
        for something.
        """
        known = option_names()
        refuse_unknown(options, known)
        given = {
            name: value for name, value in options.items() if value is not None and name in known
        }
        for new, default_new, whole, default_whole in LENGTHS:
            if new in given:
                given[whole] = default_whole
            elif whole in given:
                given[new] = default_new
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

    def within(self, num_prompt: int) -> GenerationConfig:
        """The same with lengths in new tokens only, for prompts of this padded length. Raises
        UsageError where `max_length` leaves no room for an answer."""
        if self.max_length is None and not self.min_length:
            return self
        longest = self.max_new_tokens if self.max_length is None else self.max_length - num_prompt
        if longest < 1:
            raise UsageError(
                f"max_length is {self.max_length} and the prompt has {num_prompt} tokens; give "
                "max_new_tokens"
            )
        shortest = self.min_new_tokens or max(0, self.min_length - num_prompt)
        return replace(
            self,
            max_new_tokens=longest,
            min_new_tokens=min(shortest, longest),
            max_length=None,
            min_length=0,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> GenerationConfig:
        """Read the content of a generation_config.json, changed by options; null takes the default.

        Keys that transformers writes and that change nothing are ignored. Any other key without
        effect here is named in a warning, so a checkpoint with such a key still loads.
        """
        return read_values(cls, {**values, **changes})

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config_file_name: str = FILE_NAME, **changes: Any
    ) -> GenerationConfig:
        """Read a file of a folder, changed by options; without the file, greedy with the end token
        of config.json."""
        config = read_folder(cls, folder, config_file_name)
        return config.merge(**changes) if changes else config

    def update(self, **options: Any) -> dict[str, Any]:
        """Set options as attributes; returns those that are none of this class."""
        known = option_names()
        for name, value in options.items():
            if name in known:
                setattr(self, name, value)
        return {name: value for name, value in options.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """All values as JSON has them; `from_dict` of it gives an equal object."""
        return {name: plain(value) for name, value in self.values().items()}

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON has it."""
        neutral, values = GenerationConfig().to_dict(), self.to_dict()
        changed = {name: value for name, value in values.items() if value != neutral[name]}
        if changed.keys() & NEUTRAL_SHAPE.keys():  # these alone would ask for sampling
            changed["do_sample"] = values["do_sample"]
        return changed

    def to_json_string(self, use_diff: bool = True) -> str:
        """What differs from the defaults, or everything, as the text of a file."""
        return as_json(self.to_diff_dict() if use_diff else self.to_dict())

    def save_pretrained(self, folder: str | Path, config_file_name: str = FILE_NAME) -> None:
        """Write a file into a folder with what differs from the defaults."""
        write_file(folder, config_file_name, self.to_json_string())


def option_names() -> list[str]:
    return [field.name for field in fields(GenerationConfig)]

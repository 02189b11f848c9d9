"""GenerationConfig: how an answer is to be written. Every value is checked when it is given.

A checkpoint's generation_config.json gives the defaults, a call's options go over them by `merge`.
The released files say do_sample with temperature 1e-6, which is greedy in effect, so merging has a
rule of its own: see `merge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from qwen25vl.engine.option_checks import check_outputs, check_together, checked_values
from qwen25vl.engine.option_files import (
    FILE_NAME,
    as_json,
    describe_options,
    named_file,
    plain,
    read_folder,
    read_values,
    write_file,
)
from qwen25vl.engine.option_merging import (
    Given,
    given_options,
    merged_values,
    new_lengths,
    with_lengths,
)
from qwen25vl.engine.option_values import (
    GREEDY_TEMPERATURE,
    MAX_NEW_TOKENS,
    NEUTRAL_SHAPE,
    OF_A_CALL,
    OTHERS,
    check_option_names,
)


@dataclass(init=False, repr=False)
class GenerationConfig:
    """Options of `generate` and `stream`, under the ecosystem's names. `merge` gives a changed
    copy. What is given here counts wherever it goes over a checkpoint's values, also where it
    equals the default; None counts as not given.

    Setting an attribute, as in `model.generation_config.max_new_tokens = 5`, makes it an option of
    every later call: it is checked at once and follows the rules of `merge`, in whatever order
    several are set. None resets it to its default. Whether options fit together is checked when
    they are used.

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

    def __init__(self, **options: Any) -> None:
        given = given_options(options, option_names())
        values = checked_values({**defaults(), **with_lengths(given)})
        check_together(values)
        self._take(Given(values, frozenset(given)))

    def _take(self, given: Given) -> None:
        vars(self).update(given.values(), given=given)

    def __setattr__(self, name: str, value: Any) -> None:
        check_option_names({name: value}, option_names())
        if name in option_names():  # others have no effect here
            self._take(vars(self)["given"].assign({name: value}, defaults()))

    def __repr__(self) -> str:
        changed = self._changed()
        shown = [f"{name}={value!r}" for name, value in self.values().items() if name in changed]
        return f"GenerationConfig({', '.join(shown)})"

    def _changed(self) -> set[str]:
        """The names that were given, and those whose values follow from them."""
        neutral = checked_values(defaults())
        differing = {name for name, value in self.values().items() if value != neutral[name]}
        shaped = {"do_sample"} if differing & NEUTRAL_SHAPE.keys() else set()
        return {*differing, *shaped, *vars(self)["given"].names}

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
        """These values, overridden by the caller's options; None counts as not given.

        A temperature, top_k, top_p or min_p that is not neutral, or do_sample=True, asks for
        sampling, unless do_sample=False is given too. If the values here make sampling greedy in
        effect (temperature or top_p at most 0.01, or top_k 1, as in the released files), all four
        are first reset to neutral, so those that the caller did not give neither keep the output
        greedy nor exclude tokens. Otherwise they are kept. All other values, such as the repetition
        penalty, are always kept. Raises OptionError for an unknown option, and for one of
        transformers that is not here and asks for something.
        """
        return self.merge_in_turn(options)

    def merge_in_turn(self, *several: Mapping[str, Any]) -> Self:
        """As `merge` of one mapping after the other; only the result must fit together."""
        values, named = self.values(), vars(self)["given"].names
        for options in several:
            given = given_options(options, option_names())
            values = merged_values(values, given)
            named = (named - with_lengths(given).keys()) | given.keys()
        values = checked_values(values)
        check_together(values)
        made = copy(self)
        made._take(Given(values, named))
        return made

    def over(self, base: GenerationConfig) -> GenerationConfig:
        """What was given here, over another configuration: a call's over the checkpoint's."""
        return base.merge_in_turn(*self.in_turn(base))

    def in_turn(self, base: GenerationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """What was given here, first and by assignment, to be merged over another configuration."""
        given: Given = vars(self)["given"]
        return given.in_turn(bool(base.do_sample))

    def validate(self) -> None:
        """Raise UsageError for options that exclude each other. `generate` and `stream` call it."""
        values = self.values()
        check_together(values)
        check_outputs(values)

    def describe(self) -> str:
        """The values that have an effect, on one line."""
        return describe_options(self.values(), defaults(), self.is_greedy)

    def within(self, num_prompt: int) -> GenerationConfig:
        """The same with lengths in new tokens only, for prompts of this padded length. Raises
        UsageError where `max_length` leaves no room for an answer."""
        if self.max_length is None and not self.min_length:
            return self
        made = copy(self)
        vars(made).update(new_lengths(self.values(), num_prompt))
        return made

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> GenerationConfig:
        """Read the content of a generation_config.json, changed by options; null takes the default.
        Without do_sample it is greedy, whatever the temperature.

        Keys that transformers writes and that change nothing are ignored. Any other key without
        effect here is named in a warning, so a checkpoint with such a key still loads.
        """
        given = read_values(values, option_names())
        config = cls(**given)
        if "do_sample" not in given:
            config._take(Given({**config.values(), "do_sample": False}, frozenset(given)))
        return config.merge(**changes) if changes else config

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config_file_name: str = FILE_NAME, **changes: Any
    ) -> GenerationConfig:
        """Read a file of a folder, changed by options; without the file, greedy with the end token
        of config.json."""
        with named_file(Path(folder) / config_file_name):
            config = cls.from_dict(read_folder(folder, config_file_name))
        return config.merge(**changes) if changes else config

    def update(self, *, defaults_only: bool = False, **options: Any) -> dict[str, Any]:
        """Set options as attributes, all at once, or those not given yet; returns what is not used.
        Raises UsageError, and changes nothing, if they are impossible or exclude each other."""
        names = {*option_names(), *OTHERS} - OF_A_CALL
        if defaults_only:
            names -= vars(self)["given"].names
        used = {name: value for name, value in options.items() if name in names}
        check_option_names(used, option_names())
        known = {name: value for name, value in used.items() if name in option_names()}
        given = vars(self)["given"].assign(known, defaults())
        check_together(given.values())
        self._take(given)
        return {name: value for name, value in options.items() if name not in names}

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON has them, None where nothing was given; `from_dict` of it gives an
        equal object."""
        changed = self._changed()
        return {
            name: plain(value) if name in changed else None for name, value in self.values().items()
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """What was given, as JSON has it."""
        return {name: value for name, value in self.to_dict().items() if value is not None}

    def to_json_string(self, use_diff: bool = True) -> str:
        """What was given, or everything, as the text of a file."""
        return as_json(self.to_diff_dict() if use_diff else self.to_dict())

    def save_pretrained(self, folder: str | Path, config_file_name: str = FILE_NAME) -> None:
        """Write a file with what was given into a folder."""
        write_file(folder, config_file_name, self.to_json_string())


def option_names() -> list[str]:
    return [field.name for field in fields(GenerationConfig)]


def defaults() -> dict[str, Any]:
    return {name: getattr(GenerationConfig, name) for name in option_names()}

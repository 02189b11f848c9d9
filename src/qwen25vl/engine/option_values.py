"""Which options of an answer exist, and which values they may have."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from qwen25vl.arguments import name_hint, plain_number, whole_number
from qwen25vl.errors import OptionError, UsageError

GREEDY_TEMPERATURE = 1e-5
NEUTRAL_SHAPE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
LOWEST_WHOLE = {"max_new_tokens": 1, "min_new_tokens": 0, "top_k": 0, "num_return_sequences": 1,
                "max_repeated_tokens": 0, "prompt_lookup_num_tokens": 0,
                "max_matching_ngram_size": 1,
                "pad_token_id": 0, "seed": 0}  # fmt: skip
REAL_RANGE = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (math.ulp(0.0), math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
}
FIXED = {"use_cache": True, "num_beams": 1, "output_scores": False, "output_attentions": False,
         "output_hidden_states": False}  # fmt: skip
OTHER_ARGUMENTS = set(
    """logits_processor stopping_criteria prefix_allowed_tokens_fn synced_gpus assistant_model
    assistant_tokenizer negative_prompt_ids negative_prompt_attention_mask custom_generate
    use_model_defaults trust_remote_code past_key_values position_ids cache_position inputs
    inputs_embeds decoder_input_ids rope_deltas token_type_ids mm_token_type_ids labels
    min_length early_stopping num_beam_groups diversity_penalty length_penalty
    typical_p epsilon_cutoff eta_cutoff encoder_repetition_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids force_words_ids constraints renormalize_logits
    forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty sequence_bias guidance_scale
    watermarking_config penalty_alpha dola_layers token_healing low_memory bos_token_id
    decoder_start_token_id cache_implementation cache_config return_legacy_cache compile_config
    disable_compile is_assistant num_assistant_tokens prefill_chunk_size""".split()
)
"""Arguments of transformers' generate that are no options here: None asks for nothing."""
WITHOUT_EFFECT = {
    "transformers_version",
    "bos_token_id",
    "cache_implementation",
    "_from_model_config",
}


def refuse_unknown(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise OptionError for what is neither known here nor harmless."""
    for name, value in FIXED.items():
        if options.get(name, value) not in (value, None):
            raise OptionError(f"{name} is {options[name]!r}; the only supported value is {value}")
    unasked = {name for name in OTHER_ARGUMENTS if options.get(name) is None}
    for name in options.keys() - {*known, *FIXED, *unasked}:
        raise OptionError(f"there is no generation option {name!r}; {name_hint(name, known)}")


def check_whole(name: str, value: Any, lowest: int, optional: bool) -> int | None:
    if optional and value is None:
        return None
    number = whole_number(value)
    if number is None or number < lowest:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
    return number


def check_real(name: str, value: Any, low: float, high: float) -> int | float:
    number = plain_number(value)
    if number is None or not low <= number <= high:
        wanted = "a number" if low == -math.inf else f"a number of at least {low:g}"
        if low == math.ulp(0.0):
            wanted = "a number above 0"
        elif high < math.inf:
            wanted = f"a number from {low:g} to {high:g}"
        raise UsageError(f"{name} is {value!r}; it must be {wanted}")
    return number


def read_token_ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    numbers = [whole_number(each) for each in values]
    ids = tuple(number for number in numbers if number is not None and number >= 0)
    if len(ids) != len(numbers):
        raise UsageError(f"eos_token_id is {value!r}; it must be a token id or a list of them")
    return ids


def read_stop_strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) and s for s in strings):
        raise UsageError(
            f"stop_strings is {value!r}; it must be a string or a list of strings, none of them "
            "empty"
        )
    return tuple(strings)

"""Which options of an answer exist here, and which of transformers' are passed over or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qwen25vl.arguments import name_hint
from qwen25vl.errors import OptionError

GREEDY_TEMPERATURE = 1e-5
NEUTRAL_SHAPE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
MAX_NEW_TOKENS = 512
# a length in new tokens, with its default, and the same with the prompt, with its own
LENGTHS: tuple[tuple[str, int, str, int | None], ...] = (
    ("max_new_tokens", MAX_NEW_TOKENS, "max_length", None),
    ("min_new_tokens", 0, "min_length", 0),
)

CACHES = {"dynamic", "static", "offloaded", "offloaded_static", "sliding_window", "hybrid",
          "hybrid_chunked", "offloaded_hybrid", "dynamic_full"}  # fmt: skip
"""What `cache_implementation` may name: all hold the same numbers, as the one cache here does."""

WITHOUT_EFFECT = set(
    """transformers_version bos_token_id _from_model_config decoder_start_token_id
    mm_token_type_ids token_type_ids labels logits_to_keep rope_deltas cache_position return_dict
    disable_compile compile_config low_memory cache_config max_cache_len prefill_chunk_size
    return_legacy_cache use_model_defaults trust_remote_code is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
    target_lookbehind assistant_early_exit assistant_ensemble_weight
    continuous_batching_config""".split()
)
"""Names that transformers knows and that change nothing here: what is computed anyway, how fast
something is that is not here, and the inputs that follow from the others."""

NEUTRAL_OPTIONS: dict[str, Any] = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}
"""Values of options that are not here with which they ask for nothing."""

PROCESSOR = "write it as a logits_processor"
DRAFTS = "prompt_lookup_num_tokens drafts without a second model"
FORWARD = "call the model on the ids that generate returns"
WAYS_OUT = {
    "assistant_model": DRAFTS,
    "assistant_tokenizer": DRAFTS,
    "speculation_type": DRAFTS,
    "use_mtp": DRAFTS,
    "penalty_alpha": "give repetition_penalty or no_repeat_ngram_size against repetition",
    "dola_layers": "give repetition_penalty or no_repeat_ngram_size against repetition",
    "num_beam_groups": "give num_beams, or num_return_sequences with do_sample for variety",
    "diversity_penalty": "give num_beams, or num_return_sequences with do_sample for variety",
    "constraints": "give prefix_allowed_tokens_fn or a logits_processor",
    "force_words_ids": "give prefix_allowed_tokens_fn or a logits_processor",
    "custom_generate": "call the model with past_key_values in a loop of your own",
    "guidance_scale": "call the model on both prompts in a loop of your own",
    "negative_prompt_ids": "call the model on both prompts in a loop of your own",
    "negative_prompt_attention_mask": "call the model on both prompts in a loop of your own",
    "output_attentions": f"{FORWARD}, with output_attentions=True",
    "output_hidden_states": f"{FORWARD}, with output_hidden_states=True",
    "position_ids": "positions follow from the ids and the grids of pictures and videos",
    "decoder_input_ids": "the model has no encoder of text; put the ids into input_ids",
    "synced_gpus": "every process may generate on its own",
    "token_healing": "end the prompt before the token that is to be completed",
    "top_h": "give top_p or min_p",
    "typical_p": "give top_p or min_p",
    "epsilon_cutoff": "give top_p or min_p",
    "eta_cutoff": "give top_p or min_p",
    "sequence_bias": PROCESSOR,
    "watermarking_config": PROCESSOR,
    "exponential_decay_length_penalty": PROCESSOR,
    "encoder_repetition_penalty": PROCESSOR,
    "encoder_no_repeat_ngram_size": PROCESSOR,
    "remove_invalid_values": "numbers that are not finite are an error; use bfloat16 or float32",
}
"""Options of transformers that are not here, and what to do instead."""

OTHERS = {*WITHOUT_EFFECT, *WAYS_OUT, "cache_implementation"}
"""All that transformers knows and that is not here."""

OF_A_CALL = set(
    """assistant_model assistant_tokenizer cache_position custom_generate decoder_input_ids labels
    logits_to_keep mm_token_type_ids negative_prompt_attention_mask negative_prompt_ids position_ids
    return_dict return_legacy_cache rope_deltas synced_gpus token_type_ids trust_remote_code
    use_model_defaults""".split()
)
"""Those that belong to a call of `generate`, not to a configuration."""


def asks_for_nothing(name: str, value: Any) -> bool:
    """Whether an option of transformers that is none of ours has a value that changes nothing."""
    if name in WITHOUT_EFFECT or value is None or value is False:
        return True
    if name == "cache_implementation":
        return isinstance(value, str) and value in CACHES
    return name in NEUTRAL_OPTIONS and bool(value == NEUTRAL_OPTIONS[name])


def check_option_names(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise OptionError for what is neither known here nor harmless."""
    for name, value in options.items():
        if name in known or name in WITHOUT_EFFECT:
            continue
        if name == "cache_implementation":
            check_cache(value)
        elif name not in WAYS_OUT:
            raise OptionError(f"there is no generation option {name!r}; {name_hint(name, known)}")
        elif not asks_for_nothing(name, value):
            raise OptionError(f"{name} is not supported: {WAYS_OUT[name]}")


def check_cache(value: Any) -> None:
    if not asks_for_nothing("cache_implementation", value):
        raise OptionError(
            f"cache_implementation is {value!r}; the cache here holds the same numbers as "
            f"{', '.join(sorted(CACHES))}, leave it out"
        )

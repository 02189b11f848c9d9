"""The tensors that transformers' `generate` takes, in all the ways in which they are given there.

B batch · L padded length · D hidden_size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qwen25vl.engine.additions import Additions
from qwen25vl.engine.processors import AllowedTokens, list_functions
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.cache import KVCache, check_caches
from qwen25vl.model.causal import Qwen2_5_VLCausalModel

TENSORS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos",
           "video_grid_thw", "second_per_grid_ts")  # fmt: skip
MEDIA = (*TENSORS[2:], "rope_deltas")


@dataclass(frozen=True)
class Prompts:
    """Inputs for the engine. embeds: embeddings in place of those of the ids; has_ids: whether the
    caller gave ids, to which the answers are appended."""

    inputs: ModelInputs
    embeds: torch.Tensor | None
    has_ids: bool


def read_prompts(
    given: Mapping[str, Any],
    inputs: Any,
    embeds: torch.Tensor | None,
    first_token_id: int | None,
) -> Prompts:
    """Prompts from tensors by name.

    inputs: transformers' name for the ids; it, or `given["input_ids"]`, may also be a processor's
    inputs as a whole. embeds [B, L, D]: alone, or with the ids that they stand for.
    first_token_id: what an answer begins with where there is no prompt at all. Raises UsageError if
    the prompt is given twice, or not at all.
    """
    tensors = {name: value for name, value in given.items() if value is not None}
    if inputs is not None:
        if "input_ids" in tensors:
            raise UsageError("inputs is another name for input_ids; give one of them")
        tensors["input_ids"] = inputs
    whole = tensors.get("input_ids")
    if isinstance(whole, Mapping):
        del tensors["input_ids"]
        tensors |= {name: whole[name] for name in TENSORS if whole.get(name) is not None}
    media = whole.media if isinstance(whole, ModelInputs) else ()
    has_ids = "input_ids" in tensors
    if not has_ids and embeds is not None:
        if any(name in tensors for name in MEDIA):
            raise UsageError(
                "pictures and videos need input_ids with their slots beside inputs_embeds"
            )
        tensors["input_ids"] = torch.zeros(
            embeds.shape[:2], dtype=torch.int64, device=embeds.device
        )
    elif not has_ids:
        if first_token_id is None:
            raise UsageError("generate needs a prompt: give input_ids or inputs_embeds")
        tensors["input_ids"] = torch.tensor([[first_token_id]], dtype=torch.int64, device="cpu")
    if "attention_mask" not in tensors:
        tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    return Prompts(ModelInputs(tensors, media=media), embeds, has_ids or embeds is None)


def read_additions(
    model: Qwen2_5_VLCausalModel,
    prompts: Prompts,
    past: Any,
    processors: Any,
    criteria: Any,
    allowed: AllowedTokens | None,
) -> Additions:
    """What a call adds to its prompts: each of processors and criteria one function or a list."""
    return Additions(
        processors=list_functions(processors),
        criteria=list_functions(criteria),
        allowed=allowed,
        embeds=prompts.embeds,
        has_ids=prompts.has_ids,
        caches=read_caches(model, past, prompts.inputs),
        renewed=past if isinstance(past, list) else None,
    )


def read_caches(model: Qwen2_5_VLCausalModel, past: Any, inputs: ModelInputs) -> list[KVCache]:
    """The caches of the prompts' beginnings, from what `generate` or `forward` returned; none where
    nothing is given or nothing is stored, in a cache of another package too. Raises UsageError for
    what `check_caches` refuses, and for a cache that holds more than its prompt."""
    if past is None or holds_nothing(past):
        return []
    text = model.config.text_config
    caches = check_caches(past, len(inputs.input_ids), text, model.dtype)
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    for cache, length in zip(caches, lengths, strict=True):
        if cache.length > length:
            raise UsageError(
                f"past_key_values has {cache.length} tokens and the prompt {length}; give the "
                "whole prompt, with the tokens that are in the cache"
            )
    return caches


def holds_nothing(past: Any) -> bool:
    if isinstance(past, list | tuple):
        return not past
    return hasattr(past, "get_seq_length") and past.get_seq_length() == 0


def forward_arguments(
    input_ids: torch.Tensor,
    past: Any,
    attention_mask: torch.Tensor | None,
    embeds: torch.Tensor | None,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments of `forward` for the tokens that are not in the caches yet, as transformers'
    `prepare_inputs_for_generation` gives them: embeddings and media for the first step only."""
    num_read = max((cache.length for cache in past), default=0) if past else 0
    found: dict[str, Any] = {"input_ids": input_ids[:, num_read:]}
    if embeds is not None and not num_read:
        found = {"inputs_embeds": embeds}
    if past:
        found["past_key_values"] = past
    if attention_mask is not None:
        found["attention_mask"] = attention_mask
    kept = {name: value for name, value in others.items() if not (num_read and name in MEDIA)}
    return {**found, **{name: value for name, value in kept.items() if name != "labels"}}

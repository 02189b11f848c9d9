"""From a batch of inputs and the options of an answer to sequences for the engine.

Refusals that concern the size of a request are here too: prompts that fill the context, and which
item costs most.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.engine.draws import make_key
from qwen25vl.engine.lookup import PromptLookup
from qwen25vl.engine.medium import Medium, check_slots, split_media
from qwen25vl.engine.need import max_answer_tokens, memory_need
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.sampling import SamplerState
from qwen25vl.engine.sequence import Outbox, Sequence
from qwen25vl.engine.stopping import AnswerText, RepetitionDetector
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import ContextLengthError, UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.packing import Packing
from qwen25vl.processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class Call:
    """What all sequences of one call share."""

    options: GenerationConfig
    outbox: Outbox
    tokenizer: Tokenizer | None = None
    visual_cache: VisualCache | None = None
    prefixes: PrefixCache | None = None


def open_sequences(model: Qwen2_5_VLCausalModel, inputs: ModelInputs, call: Call) -> list[Sequence]:
    """One sequence for each prompt [B, L], with its further answers as followers.

    Greedy answers to one prompt would all be equal, so only one is written. Raises UsageError and
    MessageError where inputs or options do not fit together, ContextLengthError for a prompt that
    leaves no room for an answer.
    """
    options = call.options
    end_token_ids = find_end_tokens(options, call.tokenizer)
    if inputs.input_ids.ndim != 2 or not inputs.input_ids.numel():
        shape = list(inputs.input_ids.shape)
        raise UsageError(f"input_ids has shape {shape}; expected [batch, length]")
    batch, length = inputs.input_ids.shape
    packing = Packing.of((batch, length), inputs.attention_mask)
    prompts = [row.tolist() for row in packing.pack(inputs.input_ids).split(packing.lengths)]
    check_context(prompts, inputs, model.config)
    grids = inputs.image_grid_thw, inputs.video_grid_thw
    positions = model.model.pack_positions(
        packing, inputs.input_ids, *grids, inputs.second_per_grid_ts
    )
    check_slots(prompts, inputs, model.config)
    pixels = inputs.pixel_values, inputs.pixel_values_videos
    keeps_patches = any(isinstance(values, torch.Tensor) for values in pixels)
    media = split_media(inputs, prompts, model.config)
    num_answers = 1 if options.is_greedy else options.num_return_sequences
    seed = 0 if options.is_greedy else draw_seed(options.seed)
    numbers: Counter[tuple[int, ...]] = Counter()  # of answers to prompts of the same tokens
    sequences = []
    parts = zip(prompts, positions.split(packing.lengths, dim=1), media, strict=True)
    for row, (ids, part, items) in enumerate(parts):
        answers = []
        for place in range(num_answers):
            number = numbers[tuple(ids)]
            numbers[tuple(ids)] += 1
            sampler = SamplerState(options, make_key(seed, number), ids)
            answers.append(
                open_sequence(model, call, row * num_answers + place, ids, part, items, sampler)
            )
            answers[-1].end_token_ids = end_token_ids
        first = answers[0]
        first.followers = answers[1:]
        first.prefixes = call.prefixes
        held, first.transient_bytes = memory_need(model, first, keeps_patches)
        for one in answers:
            one.held_bytes = held // num_answers
        sequences.append(first)
        call.outbox.expected["prefill"] += len(ids)
        for medium in items:
            call.outbox.expected[f"{medium.kind}s"] += medium.num_patches
    return sequences


def open_sequence(
    model: Qwen2_5_VLCausalModel,
    call: Call,
    index: int,
    ids: list[int],
    positions: torch.Tensor,
    media: list[Medium],
    sampler: SamplerState,
) -> Sequence:
    options, config = call.options, model.config
    slots = (config.image_token_id, config.video_token_id)
    lookup = None
    if options.prompt_lookup_num_tokens:
        lookup = PromptLookup(ids, options.max_matching_ngram_size, slots)
    return Sequence(
        index=index,
        ids=ids,
        positions=positions,
        media=media,
        options=options,
        max_tokens=max_answer_tokens(len(ids), options, config),
        end_token_ids=(),
        outbox=call.outbox,
        sampler=sampler,
        next_position=int(positions.max()) + 1,
        repetition=RepetitionDetector(options.max_repeated_tokens),
        text=AnswerText(call.tokenizer, options.stop_strings) if call.tokenizer else None,
        lookup=lookup,
        visual_cache=call.visual_cache,
        deadline=None if options.max_time is None else time.monotonic() + options.max_time,
    )


def draw_seed(seed: int | None) -> int:
    """The seed given, or one from torch's global generator, so that `torch.manual_seed` has its
    effect."""
    return int(torch.randint(2**63 - 1, (), device="cpu")) if seed is None else seed


def find_end_tokens(options: GenerationConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The tokens that end an answer: those of the options, and the control tokens among the stop
    strings, which never show up in the text."""
    if options.stop_strings and tokenizer is None:
        raise UsageError("stop_strings need a tokenizer: pass tokenizer=processor.tokenizer")
    control = tokenizer.control_ids if tokenizer else {}
    stops = (control[stop] for stop in options.stop_strings if stop in control)
    return (*options.eos_token_id, *stops)


def check_context(prompts: Items[list[int]], inputs: ModelInputs, config: Qwen2_5_VLConfig) -> None:
    """Refuse a prompt that leaves no room for an answer, and name what costs most in it."""
    available = config.text_config.max_position_embeddings
    for row, ids in enumerate(prompts):
        if len(ids) < available:
            continue
        items = [(item.name, item.num_tokens) for item in inputs.media if item.conversation == row]
        items = items or count_items(ids, config)
        num_visual = sum(num_tokens for _, num_tokens in items)
        costly = sorted(items, key=lambda item: -item[1])[:3]
        which = "".join(f"; {name} takes {num_tokens}" for name, num_tokens in costly)
        raise ContextLengthError(
            f"prompt {row + 1} of {len(prompts)} has {len(ids)} tokens ({num_visual} visual, "
            f"{len(ids) - num_visual} text) and an answer needs one more, but the context holds "
            f"{available}{which}"
        )


def count_items(ids: list[int], config: Qwen2_5_VLConfig) -> list[tuple[str, int]]:
    """Pictures and videos of a prompt with their tokens, found as runs of slots."""
    names = {config.image_token_id: "picture", config.video_token_id: "video"}
    token_ids, counts = torch.tensor(ids, dtype=torch.int64, device="cpu").unique_consecutive(
        return_counts=True
    )
    found: Counter[str] = Counter()
    items = []
    for token_id, count in zip(token_ids.tolist(), counts.tolist(), strict=True):
        if kind := names.get(token_id):
            found[kind] += 1
            items.append((f"{kind} {found[kind]}", count))
    return items

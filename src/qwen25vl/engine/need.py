"""What a sequence or a batch needs, in the terms of the footprint."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.engine.footprint import (
    MAX_TOKENS_PER_STEP,
    OTHER_BYTES,
    Request,
    logits_bytes,
    max_patches_together,
    measure,
    pass_bytes,
    scoring_bytes,
    step_bytes,
)
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.scratch import Execution, text_scratch, vision_scratch
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.inputs import DeferredPatches, Grid, ModelInputs
from qwen25vl.model.cache import cache_bytes
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.layers import has_compiled_layers


def max_answer_tokens(num_prompt: int, options: GenerationConfig, config: Qwen2_5_VLConfig) -> int:
    """The most tokens that an answer may have: what is asked for, as far as the context has
    room."""
    context = config.text_config.max_position_embeddings
    return max(0, min(options.max_new_tokens, context - num_prompt))


def memory_need(model: Qwen2_5_VLCausalModel, sequence: Sequence) -> tuple[int, int, int]:
    """(bytes that a prompt and its answers hold, bytes that they need for a while beside these,
    bytes that encoding its media or reading it needs, caches and what stays apart)"""
    patches = [part for medium in sequence.media for part in medium.patches]
    request = Request(
        prompts=(sequence.num_prompt,),
        reserved=(sequence.max_tokens,),
        images=tuple(m.grid for m in sequence.media if m.kind == "image"),
        videos=tuple(m.grid for m in sequence.media if m.kind == "video"),
        answers=caches_of(sequence),
        drafted=sequence.options.prompt_lookup_num_tokens,
        is_greedy=sequence.options.is_greedy,
        beams=sequence.options.num_beams,
        patch_bytes=patches[0].itemsize if patches else 0,
        keeps_patches=sequence.keeps_patches,
        has_visual_cache=bool(sequence.visual_cache and sequence.visual_cache.max_bytes),
        score_bytes=scores_bytes(sequence),
    )
    found = measure(model.config, request, describe_execution(model.dtype, model.device))
    text, item = model.config.text_config, model.dtype.itemsize
    held = cache_bytes(text, request.answers * (sequence.num_prompt + sequence.max_tokens), item)
    reading = found.prompt - cache_bytes(text, sequence.num_prompt, item)
    deferred = sum(
        len(part) * part.shape[1] * part.itemsize
        for part in patches
        if isinstance(part, DeferredPatches)
    )
    transient = max(0, found.peak - found.patches + deferred - held)
    return held, transient, max(found.images, found.videos, reading)


def returns_caches(options: GenerationConfig) -> bool:
    """Whether the caches of the answers are part of the result."""
    return options.return_dict_in_generate and options.use_cache


def num_caches(options: GenerationConfig, num_written: int, keeps_caches: bool) -> int:
    """For a prompt with so many answers that are written: of its beams, of each answer, or of
    greedy answers that are equal but go on apart, where the caller gets them."""
    copies = options.num_return_sequences if options.is_greedy and keeps_caches else 1
    return max(options.num_beams, num_written, copies)


def caches_of(sequence: Sequence) -> int:
    """`num_caches` of a sequence and its followers."""
    return num_caches(sequence.options, 1 + len(sequence.followers), sequence.keeps_caches)


def common_need(model: Qwen2_5_VLCausalModel, sequences: Items[Sequence]) -> int:
    """Bytes beside all caches that a step needs for a while in which all these sequences take part:
    their media are encoded together, their prompts read together, their tokens chosen together.

    Answers that begin later have not used their part of the caches until then.
    """
    how = describe_execution(model.dtype, model.device)
    vision, text = model.config.vision_config, model.config.text_config
    unseen = [s.media_to_encode() for s in sequences]
    media = [medium for some in unseen for medium in some]
    visual = sum(m.stop - m.start for m in media) * vision.out_hidden_size * how.item
    encoding = scratch = 0  # of one sequence alone: its own need says it better
    if sum(map(bool, unseen)) > 1:
        patches = min(sum(m.num_patches for m in media), max_patches_together(how.has_kernels))
        encoding = pass_bytes(vision, patches, how) if patches else 0
        scratch = vision_scratch(vision, patches, how)
    reading = [s for s in sequences if s.is_reading]
    unread = sum(s.num_prompt - s.num_computed for s in reading)
    num_writing = len(sequences) - len(reading)
    num_rows = min(unread, MAX_TOKENS_PER_STEP) + num_writing
    step = step_bytes(text, num_rows, how)
    if any(map(scores_bytes, reading)):
        step = max(step, scoring_bytes(text, unread, how))
    unused = 0
    for s in reading:
        held = s.held_bytes + sum(follower.held_bytes for follower in s.followers)
        unused += max(0, held - cache_bytes(text, s.num_prompt, how.item))
    num_answers = sum(map(caches_of, sequences))
    drafted = max(s.options.prompt_lookup_num_tokens for s in sequences)
    scratch = max(scratch, text_scratch(text, max(num_rows, num_answers + drafted), how))
    writing = logits_bytes(text, num_answers + drafted, num_answers, how)
    freed = sum(map(freed_bytes, sequences))
    widest = max(visual + max(encoding, step - freed) - unused, writing - freed)
    return widest + scratch + OTHER_BYTES


def scores_bytes(sequence: Sequence) -> int:
    """Of the log-probabilities of its prompt."""
    return 0 if sequence.prompt_scores is None else sequence.prompt_scores.num_bytes


def freed_bytes(sequence: Sequence) -> int:
    """Of the patches that the encoder lets go of, unless the caller keeps them."""
    parts = [part for medium in sequence.media_to_encode() for part in medium.patches]
    made = sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
    return 0 if sequence.keeps_patches else made


def describe_request(
    config: Qwen2_5_VLConfig,
    inputs: ModelInputs,
    options: GenerationConfig,
    visual_cache: VisualCache | None = None,
) -> Request:
    """A whole batch as its memory depends on it."""
    num_written = 1 if options.is_greedy else options.num_return_sequences
    prompts = tuple(inputs.attention_mask.sum(dim=1).tolist())
    pixels = [p for p in (inputs.pixel_values, inputs.pixel_values_videos) if p is not None]
    return Request(
        prompts=prompts,
        reserved=tuple(max_answer_tokens(length, options, config) for length in prompts),
        images=grid_tuples(inputs.image_grid_thw),
        videos=grid_tuples(inputs.video_grid_thw),
        answers=num_caches(options, num_written, returns_caches(options)),
        drafted=options.prompt_lookup_num_tokens,
        is_greedy=options.is_greedy,
        beams=options.num_beams,
        num_returned=options.output_logits + options.output_scores,
        patch_bytes=pixels[0].itemsize if pixels else 0,
        keeps_patches=any(isinstance(p, torch.Tensor) for p in pixels),
        has_visual_cache=bool(visual_cache and visual_cache.max_bytes),
    )


def describe_execution(dtype: torch.dtype, device: torch.device) -> Execution:
    return Execution(dtype.itemsize, has_compiled_layers(dtype, device), torch.get_num_threads())


def grid_tuples(grid_thw: torch.Tensor | None) -> tuple[Grid, ...]:
    rows = [] if grid_thw is None else grid_thw.tolist()
    return tuple((int(t), int(h), int(w)) for t, h, w in rows)

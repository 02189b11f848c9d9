"""Reading the prompts: media once, then the tokens in steps of bounded size, each prompt into a
cache of its own.

Refusals that concern the size of a request are here too: what does not fit, and which item costs
most.

    B prompts · N packed tokens · D hidden_size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.engine.footprint import MAX_TOKENS_PER_STEP, Execution, Footprint, Request, measure
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import LESS_MEMORY, ContextLengthError, OutOfMemoryError
from qwen25vl.inputs import Grid, ModelInputs
from qwen25vl.memory import release_free_memory, require_bytes
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.layers import has_compiled_layers
from qwen25vl.model.packing import Packing
from qwen25vl.model.qwen2_5_vl import encode
from qwen25vl.model.text import next_positions

Progress = Callable[[str, int, int], None]
LARGE_STAGE_BYTES = 32 * 2**20


def prefill(
    model: Qwen2_5_VLCausalModel,
    inputs: ModelInputs,
    packing: Packing,
    reserved: Sequence[int],
    footprint: Footprint,
    report: Progress,
    visual_cache: VisualCache | None = None,
) -> tuple[list[KVCache], torch.Tensor]:
    """Encode the media, then read the prompts in steps of bounded size: (B caches, last hidden rows
    [B, D]).

    reserved: for each prompt the number of tokens that may follow it, for which its cache has room.
    After a stage that took much by its `footprint`, the heap is given back before the next one.
    """
    core = model.model
    grids = inputs.image_grid_thw, inputs.video_grid_thw
    positions = core.pack_positions(packing, inputs.input_ids, *grids, inputs.second_per_grid_ts)
    is_large = max(footprint.images, footprint.videos) >= LARGE_STAGE_BYTES
    if is_large:
        release_free_memory()  # what decoding the pictures left on the heap
    embeds = embed_prompts(model, inputs, packing, report, visual_cache)
    if is_large:
        release_free_memory()
    caches = [
        KVCache(model.config.text_config, model.dtype, model.device, length + room)
        for length, room in zip(packing.lengths, reserved, strict=True)
    ]
    last = [torch.empty(0, dtype=torch.float32, device="cpu")] * len(caches)
    start = 0
    for step in plan_prefill(packing.lengths, MAX_TOKENS_PER_STEP):
        lengths = [num_tokens for _, num_tokens in step]
        stop = start + sum(lengths)
        hidden = core.language_model.run(
            embeds[start:stop],
            positions[:, start:stop].to(embeds.device),
            lengths,
            [caches[row] for row, _ in step],
        )
        for (row, _), rows in zip(step, hidden.split(lengths), strict=True):
            last[row] = rows[-1].clone()  # a view would keep the whole step
        start = stop
        report("prefill", stop, len(embeds))
    for cache, position in zip(caches, next_positions(positions, packing.lengths), strict=True):
        cache.next_position = position
    if footprint.prompt >= LARGE_STAGE_BYTES:
        del embeds
        release_free_memory()
    return caches, torch.stack(last)


def embed_prompts(
    model: Qwen2_5_VLCausalModel,
    inputs: ModelInputs,
    packing: Packing,
    report: Progress,
    visual_cache: VisualCache | None,
) -> torch.Tensor:
    """Packed embeddings [N, D] with the visual tokens in their slots."""
    core = model.model
    visual = partial(visual_cache.encode, core.visual) if visual_cache else core.visual
    images = encode(
        visual,
        inputs.pixel_values,
        inputs.image_grid_thw,
        "image_grid_thw",
        partial(report, "images"),
    )
    videos = encode(
        visual,
        inputs.pixel_values_videos,
        inputs.video_grid_thw,
        "video_grid_thw",
        partial(report, "videos"),
    )
    return core.embed(packing.pack(inputs.input_ids), images, videos)


def plan_prefill(lengths: Sequence[int], max_tokens: int) -> list[list[tuple[int, int]]]:
    """Cut packed prompts into steps of (row, number of tokens), at most `max_tokens` together.

    A prompt is always cut at the same places, whatever stands beside it.
    """
    steps: list[list[tuple[int, int]]] = []
    room = 0
    for row, length in enumerate(lengths):
        for start in range(0, length, max_tokens):
            size = min(max_tokens, length - start)
            if size > room:
                steps.append([])
                room = max_tokens
            steps[-1].append((row, size))
            room -= size
    return steps


def check_context(
    prompts: Sequence[torch.Tensor], inputs: ModelInputs, config: Qwen2_5_VLConfig
) -> None:
    """Refuse a prompt [length] that leaves no room for an answer, and name what costs most in
    it."""
    available = config.text_config.max_position_embeddings
    for row, prompt in enumerate(prompts):
        if len(prompt) < available:
            continue
        items = [(item.name, item.num_tokens) for item in inputs.media if item.conversation == row]
        items = items or count_items(prompt, config)
        num_visual = sum(num_tokens for _, num_tokens in items)
        costly = sorted(items, key=lambda item: -item[1])[:3]
        which = "".join(f"; {name} takes {num_tokens}" for name, num_tokens in costly)
        raise ContextLengthError(
            f"prompt {row + 1} of {len(prompts)} has {len(prompt)} tokens ({num_visual} visual, "
            f"{len(prompt) - num_visual} text) and an answer needs one more, but the context holds {available}{which}"
        )


def count_items(prompt: torch.Tensor, config: Qwen2_5_VLConfig) -> list[tuple[str, int]]:
    """Pictures and videos of a prompt with their tokens, found as runs of slots."""
    names = {config.image_token_id: "picture", config.video_token_id: "video"}
    token_ids, counts = prompt.unique_consecutive(return_counts=True)
    runs = [
        (names[i], n)
        for i, n in zip(token_ids.tolist(), counts.tolist(), strict=True)
        if i in names
    ]
    return [
        (f"{kind} {sum(k == kind for k, _ in runs[: i + 1])}", n)
        for i, (kind, n) in enumerate(runs)
    ]


def check_memory(
    model: Qwen2_5_VLCausalModel,
    inputs: ModelInputs,
    config: GenerationConfig,
    visual_cache: VisualCache | None = None,
) -> Footprint:
    """What a request needs beside the model. Raises OutOfMemoryError, before anything is computed,
    where that is more than is free; patches that exist already are not needed again."""
    request = describe_request(model.config, inputs, config, visual_cache)
    found = measure(model.config, request, describe_execution(model.dtype, model.device))
    num_tokens, num_patches = count_inputs(inputs)
    num_answers = config.num_return_sequences * len(inputs.input_ids)
    answers = f"{num_answers} answer{'s' if num_answers > 1 else ''} of at most {max(request.reserved)} tokens"
    purpose = f"a request of {answers}, {num_tokens} prompt tokens and {num_patches} patches"
    require_bytes(found.peak - found.patches, model.device, purpose)
    return found


def describe_request(
    model: Qwen2_5_VLConfig,
    inputs: ModelInputs,
    config: GenerationConfig,
    visual_cache: VisualCache | None = None,
) -> Request:
    """A request as its memory depends on it."""
    prompts = tuple(inputs.attention_mask.sum(dim=1).tolist())
    pixels = [p for p in (inputs.pixel_values, inputs.pixel_values_videos) if p is not None]
    return Request(
        prompts=prompts,
        reserved=tuple(reserve_answers(prompts, config, model)),
        images=read_grids(inputs.image_grid_thw),
        videos=read_grids(inputs.video_grid_thw),
        answers=config.num_return_sequences,
        drafted=config.prompt_lookup_num_tokens,
        is_greedy=config.is_greedy,
        output_logits=config.output_logits,
        patch_bytes=pixels[0].itemsize if pixels else 0,
        keeps_patches=any(isinstance(p, torch.Tensor) for p in pixels),
        has_visual_cache=bool(visual_cache and visual_cache.max_bytes),
    )


def describe_execution(dtype: torch.dtype, device: torch.device) -> Execution:
    return Execution(dtype.itemsize, has_compiled_layers(dtype, device), torch.get_num_threads())


def read_grids(grid_thw: torch.Tensor | None) -> tuple[Grid, ...]:
    return (
        () if grid_thw is None else tuple((int(t), int(h), int(w)) for t, h, w in grid_thw.tolist())
    )


def reserve_answers(
    prompts: Sequence[int], config: GenerationConfig, model: Qwen2_5_VLConfig
) -> list[int]:
    """The most tokens that each answer may have: what is asked for, as far as the context has
    room."""
    context = model.text_config.max_position_embeddings
    return [max(0, min(config.max_new_tokens, context - length)) for length in prompts]


def count_inputs(inputs: ModelInputs) -> tuple[int, int]:
    """Prompt tokens and patches."""
    pixels = (inputs.pixel_values, inputs.pixel_values_videos)
    return int(inputs.attention_mask.sum()), sum(len(p) for p in pixels if p is not None)


@contextmanager
def named_memory_need(inputs: ModelInputs) -> Iterator[None]:
    """Turn torch's out-of-memory error into one that says how large the request was."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(
            error
        ):
            raise
        num_tokens, num_patches = count_inputs(inputs)
        raise OutOfMemoryError(
            f"out of memory with {num_tokens} prompt tokens and {num_patches} patches; {LESS_MEMORY}: "
            f"{str(error).splitlines()[0]}"
        ) from None

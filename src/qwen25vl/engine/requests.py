"""From a batch of inputs and the options of an answer to sequences for the engine.

Refusals that concern the size of a request are here too: prompts that fill the context, and which
item costs most.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.engine.additions import Additions
from qwen25vl.engine.beams import BeamSearch
from qwen25vl.engine.constraint import check_constraint, constrain
from qwen25vl.engine.draws import make_key
from qwen25vl.engine.lookup import PromptLookup
from qwen25vl.engine.medium import Medium, check_slots, split_media
from qwen25vl.engine.need import max_answer_tokens, memory_need
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.outbox import Outbox
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.processors import own_processors
from qwen25vl.engine.prompt_scores import PromptScores
from qwen25vl.engine.sampling import SamplerState
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.stopping import AnswerText, RepetitionDetector
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import ContextLengthError, UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.layers import check_token_ids
from qwen25vl.model.packing import Packing
from qwen25vl.processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class Call:
    """What all sequences of one call share. adapted: for each prompt the model under the adapter
    that it asks for, or None for the model itself; nothing where none asks for one. salt:
    kept caches serve only sequences of the same salt. shows_special, shows_stop: whether the text
    of answers has special tokens and the stop string. spared: the tokens between which no stop
    string is looked for. num_prompt_likeliest: how many likeliest tokens are asked for in the place
    of each token of the prompts, beside the log-probabilities of these; None for none of it."""

    options: GenerationConfig
    outbox: Outbox
    tokenizer: Tokenizer | None = None
    visual_cache: VisualCache | None = None
    prefixes: PrefixCache | None = None
    added: Additions = field(default_factory=Additions)
    keeps_caches: bool = False
    salt: str = ""
    shows_special: bool = False
    shows_stop: bool = False
    spared: tuple[int, int] | None = None
    num_prompt_likeliest: int | None = None
    adapted: Items[Qwen2_5_VLCausalModel | None] = ()

    def adapted_for(self, row: int) -> Qwen2_5_VLCausalModel | None:
        return self.adapted[row] if self.adapted else None

    @property
    def num_sequences(self) -> int:
        """For each prompt: a beam search is one, and so are greedy answers, which are all equal."""
        is_one = self.options.is_greedy or self.options.num_beams > 1
        return 1 if is_one else self.options.num_return_sequences


def open_sequences(model: Qwen2_5_VLCausalModel, inputs: ModelInputs, call: Call) -> list[Sequence]:
    """One sequence for each prompt [B, L], with its further answers as followers.

    Greedy answers to one prompt would all be equal, so only one is written. Raises UsageError and
    MessageError where inputs or options do not fit together, ContextLengthError for a prompt that
    leaves no room for an answer.
    """
    options, added = call.options, call.added
    end_token_ids = find_end_tokens(options, call.tokenizer)
    if added.constraint is not None:
        check_constraint(options)
    if inputs.input_ids.ndim != 2 or not inputs.input_ids.numel():
        shape = list(inputs.input_ids.shape)
        raise UsageError(f"input_ids has shape {shape}; expected [batch, length]")
    batch, length = inputs.input_ids.shape
    added.check(inputs.input_ids.shape, model.config.text_config.hidden_size)
    if call.adapted and len(call.adapted) != batch:
        raise UsageError(f"{len(call.adapted)} adapters are named for {batch} prompts")
    packing = Packing.of((batch, length), inputs.attention_mask)
    packed = packing.pack(inputs.input_ids)
    prompts = [row.tolist() for row in packed.split(packing.lengths)]
    check_token_ids(packed, len(model.model.language_model.embed_tokens.weight))
    check_context(prompts, inputs, model.config)
    grids = inputs.image_grid_thw, inputs.video_grid_thw
    positions = model.model.pack_positions(
        packing, inputs.input_ids, *grids, inputs.second_per_grid_ts
    )
    pixels = inputs.pixel_values, inputs.pixel_values_videos
    keeps_patches = any(isinstance(values, torch.Tensor) for values in pixels)
    if added.embeds is not None and not any(values is not None for values in pixels):
        media: list[list[Medium]] = [[] for _ in prompts]  # they are in the embeddings
    else:
        check_slots(prompts, inputs, model.config)
        media = split_media(inputs, prompts, model.config)
    embeds: Items[torch.Tensor | None] = [None] * batch
    if added.embeds is not None:
        embeds = packing.pack(added.embeds.to(model.device, model.dtype)).split(packing.lengths)
    seed = 0 if options.is_greedy else draw_seed(options.seed)
    numbers: Counter[tuple[int, ...]] = Counter()  # of answers to equal prompts of one adapter
    sequences = []
    parts = zip(prompts, positions.split(packing.lengths, dim=1), media, embeds, strict=True)
    for row, (ids, part, items, given) in enumerate(parts):
        answers = []
        prompt = (id(call.adapted_for(row)), *ids)
        prompt = prompt if given is None else (*prompt, hash_of(given))
        for _ in range(call.num_sequences):
            key = make_key(seed, numbers[prompt])
            numbers[prompt] += 1
            answers.append(open_sequence(model, call, row, ids, part, items, key))
            answers[-1].embeds, answers[-1].end_token_ids = given, end_token_ids
            answers[-1].sampler.constraint = constrain(added.constraint, end_token_ids)
        sequences.append(join_answers(model, call, row, answers, keeps_patches))
    return sequences


def join_answers(
    model: Qwen2_5_VLCausalModel,
    call: Call,
    row: int,
    answers: list[Sequence],
    keeps_patches: bool,
) -> Sequence:
    """The first answer to a prompt, with the others as its followers and with what all need."""
    first = answers[0]
    first.followers = answers[1:]
    first.prefixes, first.past = call.prefixes, call.added.cache_for(row)
    first.keeps_patches = keeps_patches
    first.prompt_scores = scores_for(call, first)
    held, first.transient_bytes, first.stage_bytes = memory_need(model, first)
    per_prompt = call.options.num_return_sequences if call.options.num_beams > 1 else len(answers)
    for place, one in enumerate(answers):
        one.index = row * per_prompt + place
        one.held_bytes = held // len(answers)
    call.outbox.expected["prefill"] += first.num_prompt
    for medium in first.media:
        call.outbox.expected[f"{medium.kind}s"] += medium.num_patches
    return first


def open_sequence(
    model: Qwen2_5_VLCausalModel,
    call: Call,
    row: int,
    ids: list[int],
    positions: torch.Tensor,
    media: list[Medium],
    key: int,
) -> Sequence:
    options, config, added = call.options, model.config, call.added
    slots = (config.image_token_id, config.video_token_id)
    known = ids if added.has_ids else []
    max_tokens = max_answer_tokens(len(ids), options, config)
    own = own_processors(options, len(known), max_tokens, added.allowed_for(row))
    return Sequence(
        index=row,
        ids=ids,
        positions=positions,
        media=media,
        options=options,
        max_tokens=max_tokens,
        end_token_ids=(),
        outbox=call.outbox,
        sampler=SamplerState(options, key, known, (*own, *added.processors)),
        next_position=int(positions.max()) + 1,
        repetition=RepetitionDetector(options.max_repeated_tokens),
        text=answer_text(call),
        lookup=PromptLookup(known, options.max_matching_ngram_size, slots)
        if options.prompt_lookup_num_tokens
        else None,
        visual_cache=call.visual_cache,
        deadline=None if options.max_time is None else time.monotonic() + options.max_time,
        criteria=added.criteria,
        beams=BeamSearch(options, max_tokens) if options.num_beams > 1 else None,
        has_ids=added.has_ids,
        keeps_caches=call.keeps_caches,
        salt=call.salt,
        adapted=call.adapted_for(row),
    )


def scores_for(call: Call, sequence: Sequence) -> PromptScores | None:
    number = call.num_prompt_likeliest
    if number is None:
        return None
    if sequence.past is not None or not sequence.has_ids:
        raise UsageError(
            "log-probabilities of a prompt need all of its tokens; this one has a cache or "
            "embeddings in their place"
        )
    return PromptScores(sequence.ids, number)


def answer_text(call: Call) -> AnswerText | None:
    if call.tokenizer is None:
        return None
    stops = call.options.stop_strings
    return AnswerText(call.tokenizer, stops, call.shows_special, call.shows_stop, call.spared)


def hash_of(embeds: torch.Tensor) -> int:
    """Equal for equal embeddings."""
    return hash(embeds.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


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

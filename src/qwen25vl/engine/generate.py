"""The generation loop: prefill the prompts, then run passes over all unfinished answers, each
giving them a token.

`generate_tokens` is the whole loop and yields after every step; `generate` collects the steps,
`stream` passes them on. No state is kept on the model: two loops over one model can run in turns,
and an abandoned loop leaves nothing.

With prompt lookup a pass also reads the tokens drafted after an answer's last token, and gives
several steps. Tokens are chosen as usual, each from the row of its predecessor, until one differs
from the draft. So penalties, sampling and stop conditions give the same tokens as without drafts.

    B prompts · S = B · num_return_sequences answers · n answers in a step · N packed tokens · V
    vocab_size
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from qwen25vl.engine.choosing import write_tokens
from qwen25vl.engine.lookup import PromptLookup
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.prefill import (
    Progress,
    check_context,
    check_memory,
    named_memory_need,
    prefill,
    reserve_answers,
)
from qwen25vl.engine.sampling import open_generators
from qwen25vl.engine.sequence import Answer, Chunk, FinishReason
from qwen25vl.engine.stopping import AnswerText, RepetitionDetector, Tokenizer
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs, brief
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.packing import Packing


@dataclass(frozen=True)
class Step:
    """The result of one step: a chunk for each of n answers, and their raw logits [n, V] in
    float32."""

    chunks: tuple[Chunk, ...]
    logits: torch.Tensor


@dataclass(frozen=True)
class GenerateOutput:
    """sequences [S, L + new]; logits: per step [S, V] raw, 0 for finished answers; a reason per
    answer."""

    sequences: torch.Tensor
    logits: tuple[torch.Tensor, ...] | None
    finish_reasons: tuple[FinishReason, ...]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={brief(value)}" for name, value in vars(self).items())
        return f"GenerateOutput({shown})"


class Streamer(Protocol):
    """The ecosystem's streamer: the prompt's ids [B, L] are put first, then [S] at each step."""

    def put(self, value: torch.Tensor) -> None: ...
    def end(self) -> None: ...


def generate(
    model: Qwen2_5_VLCausalModel,
    inputs: ModelInputs,
    config: GenerationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    streamer: Streamer | None = None,
    progress: Progress | None = None,
    visual_cache: VisualCache | None = None,
) -> torch.Tensor | GenerateOutput:
    """Write whole answers.

    Returns ids [S, L + new]: every prompt as given, padding included, followed by its answer (end
    token and stop string included) and then `pad_token_id`; the answers to one prompt stand
    together. With `return_dict_in_generate`, a GenerateOutput. `tokenizer` is needed for
    `stop_strings` only. Raises what `generate_tokens` raises.
    """
    prompts = inputs.input_ids.repeat_interleave(config.num_return_sequences, dim=0)
    # NOTE numbers in lists, not small tensors: kept among the buffers of each step they would tear
    # up the heap
    written: list[list[int]] = [[] for _ in prompts]
    logits = open_logits(model, inputs, config)
    num_steps = num_put = 0
    reasons: dict[int, FinishReason] = {}
    try:
        if streamer:
            streamer.put(inputs.input_ids.cpu())
        for step in generate_tokens(
            model, inputs, config, tokenizer=tokenizer, progress=progress, visual_cache=visual_cache
        ):
            for chunk, row in zip(step.chunks, step.logits, strict=True):
                place = len(written[chunk.index])
                if place == num_steps:
                    num_steps += 1
                    if config.output_logits:
                        logits[place].zero_()
                written[chunk.index].append(chunk.token)
                if config.output_logits:
                    logits[place, chunk.index] = row
                if chunk.finish_reason:
                    reasons[chunk.index] = chunk.finish_reason
            if (
                streamer
            ):  # answers with drafts run ahead of each other; a column is put when it is complete
                num_full = min(
                    (len(ids) for i, ids in enumerate(written) if i not in reasons),
                    default=num_steps,
                )
                for place in range(num_put, num_full):
                    column = [
                        ids[place] if place < len(ids) else config.fill_token_id for ids in written
                    ]
                    streamer.put(torch.tensor(column, dtype=torch.int64, device="cpu"))
                num_put = num_full
    finally:
        if streamer:
            streamer.end()  # also after an error: another thread may be waiting for it
    answers = torch.tensor(
        [ids + [config.fill_token_id] * (num_steps - len(ids)) for ids in written],
        dtype=torch.int64,
        device="cpu",
    )
    sequences = torch.cat([prompts, answers.to(prompts.device)], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences,
        tuple(logits[:num_steps]) if config.output_logits else None,
        tuple(reasons[i] for i in range(len(prompts))),
    )


def open_logits(
    model: Qwen2_5_VLCausalModel, inputs: ModelInputs, config: GenerationConfig
) -> torch.Tensor:
    """Room for the logits of all steps, float32 [steps, S, V], if they are asked for.

    What is not written yet takes no memory, and no step lies between buffers that come and go.
    """
    if not config.output_logits:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    num_answers = len(lengths) * config.num_return_sequences
    shape = (
        max(reserve_answers(lengths, config, model.config)),
        num_answers,
        model.config.text_config.vocab_size,
    )
    return torch.empty(shape, dtype=torch.float32, device=model.device)


def stream(
    model: Qwen2_5_VLCausalModel,
    inputs: ModelInputs,
    config: GenerationConfig,
    *,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
    visual_cache: VisualCache | None = None,
) -> Iterator[Chunk]:
    """Yield each token as it is chosen; the texts of an answer's chunks join to its text.

    Special tokens give no text, a stop string and what follows it are cut off, half characters wait
    for their rest. Chunks of several answers alternate. Raises what `generate_tokens` raises, at
    the first chunk.
    """
    for step in generate_tokens(
        model, inputs, config, tokenizer=tokenizer, progress=progress, visual_cache=visual_cache
    ):
        yield from step.chunks


@torch.inference_mode()
def generate_tokens(
    model: Qwen2_5_VLCausalModel,
    inputs: ModelInputs,
    config: GenerationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    visual_cache: VisualCache | None = None,
) -> Iterator[Step]:
    """Yield once per step, until every answer is finished. Inference mode holds inside only, not
    between the steps.

    visual_cache: provides the visual tokens of recent pictures and stores those of new ones.
    progress: called with (stage, done, total), where stage is "images", "videos", "prefill" or
    "decode". An answer that fills the context ends with "length". Raises UsageError and
    MessageError if inputs or options do not fit together, ContextLengthError for a prompt that
    leaves no room for an answer, NumericsError, OutOfMemoryError.
    """
    end_token_ids = check_request(config, tokenizer)
    report = progress or (lambda stage, done, total: None)
    with named_memory_need(inputs):
        answers, hidden = open_answers(
            model, inputs.to(model.device), config, tokenizer, report, visual_cache
        )
    drafts: list[list[int]] = [[] for _ in answers]
    while True:
        for step in write_steps(
            answers, drafts, model.compute_logits(hidden), config, end_token_ids
        ):
            report("decode", max(len(answer.tokens) for answer in answers), config.max_new_tokens)
            yield step
        answers = [answer for answer in answers if not answer.finish_reason]
        if not answers:
            return
        drafts = [
            answer.draft(config.prompt_lookup_num_tokens // len(answers)) for answer in answers
        ]
        with named_memory_need(inputs):
            hidden = decode(model, answers, drafts)


def check_request(config: GenerationConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Validate the request. Returns the tokens that end an answer: those of the config, and the
    control tokens among the stop strings, which never show up in the text."""
    if config.num_return_sequences > 1 and config.is_greedy:
        raise UsageError(
            f"{config.num_return_sequences} greedy answers to one prompt would be equal; give do_sample=True"
        )
    if config.stop_strings and tokenizer is None:
        raise UsageError("stop_strings need a tokenizer: pass tokenizer=processor.tokenizer")
    control = tokenizer.control_ids if tokenizer else {}
    return (
        *config.eos_token_id,
        *(control[stop] for stop in config.stop_strings if stop in control),
    )


def open_answers(
    model: Qwen2_5_VLCausalModel,
    inputs: ModelInputs,
    config: GenerationConfig,
    tokenizer: Tokenizer | None,
    report: Progress,
    visual_cache: VisualCache | None,
) -> tuple[list[Answer], torch.Tensor]:
    """Read the prompts, each once, and open its answers: (S answers, their last hidden rows [S,
    D])."""
    if inputs.input_ids.ndim != 2 or not inputs.input_ids.numel():
        raise UsageError(
            f"input_ids has shape {list(inputs.input_ids.shape)}; expected [batch, length]"
        )
    batch, length = inputs.input_ids.shape
    packing = Packing.of((batch, length), inputs.attention_mask)
    prompts = packing.pack(inputs.input_ids).split(packing.lengths)
    check_context(prompts, inputs, model.config)
    footprint = check_memory(model, inputs, config, visual_cache)
    reserved = reserve_answers(packing.lengths, config, model.config)
    caches, hidden = prefill(model, inputs, packing, reserved, footprint, report, visual_cache)
    answers: list[Answer] = []
    slots = (model.config.image_token_id, model.config.video_token_id)
    told: Counter[tuple[int, ...]] = Counter()  # answers to prompts of the same tokens
    for prompt, cache, max_tokens in zip(prompts, caches, reserved, strict=True):
        ids = tuple(prompt.tolist())
        prompt_ids = prompt.unique()
        seed = (
            0 if config.is_greedy else config.seed
        )  # where nothing is drawn, torch's generator stays as it is
        generators = open_generators(seed, config.num_return_sequences, model.device, told[ids])
        told[ids] += len(generators)
        for number, generator in enumerate(generators):
            answers.append(
                Answer(
                    index=len(answers),
                    prompt_ids=prompt_ids,
                    cache=cache.clone() if number else cache,
                    max_tokens=max_tokens,
                    generator=generator,
                    repetition=RepetitionDetector(config.max_repeated_tokens),
                    text=AnswerText(tokenizer, config.stop_strings) if tokenizer else None,
                    lookup=PromptLookup(ids, config.max_matching_ngram_size, slots)
                    if config.prompt_lookup_num_tokens
                    else None,
                )
            )
    return answers, hidden.repeat_interleave(config.num_return_sequences, dim=0)


def write_steps(
    answers: Sequence[Answer],
    drafts: Sequence[Sequence[int]],
    logits: torch.Tensor,
    config: GenerationConfig,
    end_token_ids: Sequence[int],
) -> Iterator[Step]:
    """The steps that one pass gives, from its raw logits [N, V]: one row for each answer and
    drafted token. Then the caches are rolled back past rejected tokens."""
    parts = logits.split([1 + len(drafted) for drafted in drafts])
    lengths = [len(answer.tokens) for answer in answers]
    writing = list(range(len(answers)))
    for place in range(max(map(len, parts))):
        rows = torch.stack([parts[i][place] for i in writing]).float()
        chunks = write_tokens([answers[i] for i in writing], rows, config, end_token_ids)
        yield Step(chunks, rows)
        writing = [i for i, chunk in zip(writing, chunks, strict=True)
                   if not chunk.finish_reason and drafts[i][place : place + 1] == [chunk.token]]  # fmt: skip
        if not writing:
            break
    for answer, drafted, before in zip(answers, drafts, lengths, strict=True):
        answer.settle(len(answer.tokens) - before, len(drafted))


def decode(
    model: Qwen2_5_VLCausalModel,
    answers: Sequence[Answer],
    drafts: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Read the last token of each answer and those drafted after it: hidden rows [N, D], answer
    after answer."""
    written = [
        [answer.tokens[-1], *drafted] for answer, drafted in zip(answers, drafts, strict=True)
    ]
    caches, lengths = [answer.cache for answer in answers], [len(tokens) for tokens in written]
    starts = [cache.next_position for cache in caches]
    positions = [
        start + place
        for start, length in zip(starts, lengths, strict=True)
        for place in range(length)
    ]
    token_ids = torch.tensor(
        [token for tokens in written for token in tokens], device=model.device, dtype=torch.int64
    )
    embeds = model.model.language_model.embed_tokens(token_ids)  # a written slot token is text
    packed = torch.tensor(positions, device=model.device, dtype=torch.int64).expand(3, -1)
    hidden = model.model.language_model.run(embeds, packed, lengths, caches)
    for cache, length in zip(caches, lengths, strict=True):
        cache.next_position += length
    return hidden

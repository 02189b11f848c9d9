"""The loop that writes: prefill the prompts, then one token for every unfinished answer at each step.

`generate_tokens` is the whole of it and yields after every step; `generate` collects what it yields, `stream` hands
it on. All state lies in the loop's own objects, none on the model: two loops over one model can run in turns, and a
loop that is dropped in the middle leaves nothing behind.

    B prompts · S = B · num_return_sequences answers · n answers not yet finished · N packed tokens · V vocab_size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal, Protocol

import torch

from qwen25vl.errors import UsageError
from qwen25vl.generation.config import GenerationConfig
from qwen25vl.generation.prefill import Progress, check_context, check_memory, named_memory_need, prefill
from qwen25vl.generation.sampling import choose_tokens, log_probabilities, open_generators, process_logits
from qwen25vl.generation.stopping import AnswerText, RepetitionDetector, Tokenizer
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.cache import KVCache
from qwen25vl.model.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.model.packing import Packing

FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True)
class Chunk:
    """One token of one answer.

    text: what it adds to the text that can be shown, often "" (a character or a possible stop string not yet
    complete, a special token); logprob: of the token under the model's raw logits; index: which answer, counted as
    the rows of `generate`; finish_reason: None until the answer's last chunk.
    """

    text: str
    token: int
    logprob: float
    index: int
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Step:
    """What one step gave: a chunk per unfinished answer, and their raw logits [n, V] in float32."""

    chunks: tuple[Chunk, ...]
    logits: torch.Tensor


@dataclass(frozen=True)
class GenerateOutput:
    """sequences [S, L + new]; logits: per step [S, V] raw, 0 for finished answers; a reason per answer."""

    sequences: torch.Tensor
    logits: tuple[torch.Tensor, ...] | None
    finish_reasons: tuple[FinishReason, ...]


class Streamer(Protocol):
    """The ecosystem's streamer: the prompt's ids [B, L] are put first, then [S] at each step."""

    def put(self, value: torch.Tensor) -> None: ...
    def end(self) -> None: ...


@dataclass
class Answer:
    """One answer on its way. prompt_ids: the distinct tokens of its prompt."""

    index: int
    prompt_ids: torch.Tensor
    cache: KVCache
    max_tokens: int
    generator: torch.Generator
    repetition: RepetitionDetector
    text: AnswerText | None
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def accept(self, token: int, logprob: float, end_token_ids: Sequence[int]) -> Chunk:
        self.tokens.append(token)
        text, met_stop_string = self.text.push(token) if self.text else ("", False)
        if met_stop_string or token in end_token_ids:
            self.finish_reason = "stop"
        elif self.repetition.push(token):
            self.finish_reason = "repetition"
        elif len(self.tokens) == self.max_tokens:
            self.finish_reason = "length"
        if self.text and self.finish_reason and not met_stop_string:
            text += self.text.finish()
        return Chunk(text, token, logprob, self.index, self.finish_reason)


def generate(
    model: Qwen2_5_VLForConditionalGeneration,
    inputs: ModelInputs,
    config: GenerationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    streamer: Streamer | None = None,
    progress: Progress | None = None,
) -> torch.Tensor | GenerateOutput:
    """Write whole answers.

    Returns ids [S, L + new]: every prompt as given, padding included, followed by its answer (end token and stop
    string included) and then `pad_token_id`; the answers to one prompt stand together. With
    `return_dict_in_generate`, a GenerateOutput. `tokenizer` is needed for `stop_strings` only. Raises what
    `generate_tokens` raises.
    """
    prompts = inputs.input_ids.repeat_interleave(config.num_return_sequences, dim=0)
    columns: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    reasons: dict[int, FinishReason] = {}
    try:
        if streamer:
            streamer.put(inputs.input_ids.cpu())
        for step in generate_tokens(model, inputs, config, tokenizer=tokenizer, progress=progress):
            rows = [chunk.index for chunk in step.chunks]
            column = torch.full((len(prompts),), config.fill_token_id)
            column[rows] = torch.tensor([chunk.token for chunk in step.chunks])
            columns.append(column)
            reasons |= {chunk.index: chunk.finish_reason for chunk in step.chunks if chunk.finish_reason}
            if config.output_logits:
                spread = torch.zeros(len(prompts), step.logits.shape[1], device=step.logits.device)
                logits.append(spread.index_copy_(0, torch.tensor(rows, device=spread.device), step.logits))
            if streamer:
                streamer.put(column)
    finally:
        if streamer:
            streamer.end()  # also after an error: another thread may be waiting for it
    sequences = torch.cat([prompts, torch.stack(columns, dim=1).to(prompts.device)], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences, tuple(logits) if config.output_logits else None, tuple(reasons[i] for i in range(len(prompts)))
    )


def stream(
    model: Qwen2_5_VLForConditionalGeneration,
    inputs: ModelInputs,
    config: GenerationConfig,
    *,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
) -> Iterator[Chunk]:
    """Yield each token as it is chosen; the texts of an answer's chunks join to its text.

    Special tokens give no text, a stop string and what follows it are cut off, half characters wait for their rest.
    Chunks of several answers alternate. Raises what `generate_tokens` raises, at the first chunk.
    """
    for step in generate_tokens(model, inputs, config, tokenizer=tokenizer, progress=progress):
        yield from step.chunks


@torch.inference_mode()
def generate_tokens(
    model: Qwen2_5_VLForConditionalGeneration,
    inputs: ModelInputs,
    config: GenerationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Iterator[Step]:
    """Yield once per step, until every answer is finished. Inference mode holds inside only, not between the steps.

    progress: called with a stage ("images", "videos", "prefill", "decode"), how much is done and how much there is.
    Raises UsageError and MessageError where inputs or options do not fit together, ContextLengthError for a prompt
    that leaves no room for an answer, NumericsError, OutOfMemoryError. An answer that fills the context ends with
    "length".
    """
    config = check_request(config, tokenizer)
    report = progress or (lambda stage, done, total: None)
    with named_memory_need(inputs):
        answers, hidden = open_answers(model, inputs.to(model.device), config, tokenizer, report)
    for num_steps in count(1):
        logits = model.compute_logits(hidden).float()
        chunks = write_tokens(answers, logits, config)
        report("decode", num_steps, config.max_new_tokens)
        yield Step(chunks, logits)
        answers = [answer for answer in answers if not answer.finish_reason]
        if not answers:
            return
        with named_memory_need(inputs):
            hidden = decode(model, answers)


def check_request(config: GenerationConfig, tokenizer: Tokenizer | None) -> GenerationConfig:
    """Refuse what can not be, and let a control token that is a stop string end the answer as the token it is."""
    if config.num_return_sequences > 1 and config.is_greedy:
        raise UsageError(
            f"{config.num_return_sequences} greedy answers to one prompt would be equal; give do_sample=True"
        )
    if not config.stop_strings:
        return config
    if tokenizer is None:
        raise UsageError("stop_strings need a tokenizer: pass tokenizer=processor.tokenizer")
    control = [tokenizer.control_ids[stop] for stop in config.stop_strings if stop in tokenizer.control_ids]
    return replace(config, eos_token_id=(*config.eos_token_id, *control))


def open_answers(
    model: Qwen2_5_VLForConditionalGeneration,
    inputs: ModelInputs,
    config: GenerationConfig,
    tokenizer: Tokenizer | None,
    report: Progress,
) -> tuple[list[Answer], torch.Tensor]:
    """Read the prompts, each once, and open its answers: (S answers, their last hidden rows [S, D])."""
    if inputs.input_ids.ndim != 2 or not inputs.input_ids.numel():
        raise UsageError(f"input_ids has shape {list(inputs.input_ids.shape)}; expected [batch, length]")
    batch, length = inputs.input_ids.shape
    packing = Packing.of((batch, length), inputs.attention_mask)
    prompts = packing.pack(inputs.input_ids).split(packing.lengths)
    check_context(prompts, inputs, model.config)
    check_memory(model, inputs)
    caches, hidden = prefill(model, inputs, packing, report)
    answers: list[Answer] = []
    for prompt, cache in zip(prompts, caches, strict=True):
        prompt_ids = prompt.unique()
        room = model.config.text_config.max_position_embeddings - len(prompt)
        seed = 0 if config.is_greedy else config.seed  # where nothing is drawn, torch's generator stays as it is
        for number, generator in enumerate(open_generators(seed, config.num_return_sequences, model.device)):
            answers.append(
                Answer(
                    index=len(answers),
                    prompt_ids=prompt_ids,
                    cache=cache.clone() if number else cache,
                    max_tokens=min(config.max_new_tokens, room),
                    generator=generator,
                    repetition=RepetitionDetector(config.max_repeated_tokens),
                    text=AnswerText(tokenizer, config.stop_strings) if tokenizer else None,
                )
            )
    return answers, hidden.repeat_interleave(config.num_return_sequences, dim=0)


def write_tokens(answers: Sequence[Answer], logits: torch.Tensor, config: GenerationConfig) -> tuple[Chunk, ...]:
    """Choose the next token of each answer from its raw logits [n, V]."""
    log_probs = log_probabilities(logits)
    scores = process_logits(logits, config, [a.prompt_ids for a in answers], [a.tokens for a in answers])
    tokens = choose_tokens(scores, config, [a.generator for a in answers])
    chosen = zip(answers, tokens.tolist(), log_probs.gather(1, tokens[:, None])[:, 0].tolist(), strict=True)
    return tuple(answer.accept(token, logprob, config.eos_token_id) for answer, token, logprob in chosen)


def decode(model: Qwen2_5_VLForConditionalGeneration, answers: Sequence[Answer]) -> torch.Tensor:
    """Read the last token of each answer: their hidden rows [n, D]."""
    token_ids = torch.tensor([answer.tokens[-1] for answer in answers], device=model.device)
    caches = [answer.cache for answer in answers]
    positions = torch.tensor([cache.next_position for cache in caches], device=model.device).expand(3, -1)
    embeds = model.model.language_model.embed_tokens(token_ids)  # a written slot token is text
    hidden = model.model.language_model.run(embeds, positions, [1] * len(caches), caches)
    for cache in caches:
        cache.next_position += 1
    return hidden

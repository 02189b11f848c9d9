"""Whole answers and streams for callers who wait: thin clients of the engine.

B prompts · S = B · num_return_sequences answers · V vocab_size
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from qwen25vl.engine.engine import Engine
from qwen25vl.engine.need import max_answer_tokens
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.requests import Call, open_sequences
from qwen25vl.engine.sequence import Chunk, FinishReason, Outbox, Sequence
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.inputs import ModelInputs, brief
from qwen25vl.memory import require_bytes
from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.progress import Progress


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
    engine: Engine,
    inputs: ModelInputs,
    options: GenerationConfig,
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
    `stop_strings` only. progress: called with (stage, done, total), where stage is "images",
    "videos", "prefill" or "decode". visual_cache: provides the visual tokens of recent pictures and
    stores those of new ones. An answer that fills the context ends with "length".

    Raises UsageError and MessageError if inputs or options do not fit together, ContextLengthError
    for a prompt that leaves no room for an answer, DeadlineError, NumericsError, OutOfMemoryError.
    """
    outbox = Outbox(progress, options.output_logits, is_live=streamer is not None)
    call = Call(options, outbox, tokenizer, visual_cache)
    num_answers = len(inputs.input_ids) * options.num_return_sequences
    try:
        sequences = open_sequences(engine.model, inputs.to(engine.model.device), call)
        table = AnswerTable(engine, sequences, num_answers, options)
        if streamer:
            streamer.put(inputs.input_ids.cpu())
        with closing(run(engine, sequences)) as chunks:
            for chunk, row in chunks:
                table.put(chunk, row)
                if streamer:
                    for column in table.new_columns():
                        streamer.put(column)
    finally:
        if streamer:
            streamer.end()  # also after an error: another thread may be waiting for it
    return table.output(inputs)


def stream(
    engine: Engine,
    inputs: ModelInputs,
    options: GenerationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    visual_cache: VisualCache | None = None,
    prefix_cache: PrefixCache | None = None,
) -> ChunkStream:
    """Yield each token as it is chosen; the texts of an answer's chunks join to its text.

    Special tokens give no text, a stop string and what follows it are cut off, half characters wait
    for their rest. Chunks of several answers alternate. Raises what `generate` raises, at the first
    chunk.
    """
    call = Call(options, Outbox(progress), tokenizer, visual_cache, prefix_cache)
    return ChunkStream(engine, inputs, call)


class ChunkStream(Iterator[Chunk]):
    """The chunks of a call. Dropping it stops the answers and frees their memory."""

    def __init__(self, engine: Engine, inputs: ModelInputs, call: Call) -> None:
        self.engine = engine
        self.sequences: list[Sequence] = []
        self.chunks = write_chunks(engine, inputs, call, self.sequences)

    @property
    def num_reused(self) -> int:
        """Tokens of the prompts that kept caches had."""
        return sum(sequence.num_reused for sequence in self.sequences)

    def __next__(self) -> Chunk:
        return next(self.chunks)

    def close(self) -> None:
        """Stop writing, and free the memory that it takes; from any thread."""
        self.engine.cancel(self.sequences)
        with suppress(ValueError):  # another thread waits for a chunk: it gets none any more
            self.chunks.close()


def write_chunks(
    engine: Engine, inputs: ModelInputs, call: Call, known: list[Sequence]
) -> Generator[Chunk, None, None]:
    """The chunks of all answers; of greedy answers to one prompt each is a copy of the first. The
    sequences are added to `known`."""
    sequences = open_sequences(engine.model, inputs.to(engine.model.device), call)
    known += [one for sequence in sequences for one in (sequence, *sequence.followers)]
    del inputs  # its patches belong to the sequences now
    copies = call.options.num_return_sequences if call.options.is_greedy else 1
    with closing(run(engine, sequences)) as chunks:
        for chunk, _ in chunks:
            for copy in range(copies):
                yield replace(chunk, index=chunk.index * copies + copy)


def run(
    engine: Engine, sequences: list[Sequence]
) -> Generator[tuple[Chunk, torch.Tensor | None], None, None]:
    """Add sequences of one call to the engine, and yield what they write until all are over. A
    caller who leaves cancels them."""
    model, outbox = engine.model, sequences[0].outbox
    followers = [follower for sequence in sequences for follower in sequence.followers]
    engine.add(sequences)
    try:
        while True:
            engine.run_until(lambda: outbox.is_ready)
            while outbox.chunks:
                yield outbox.chunks.popleft()
            if outbox.error is not None:
                raise outbox.error
            if outbox.num_open == 0:
                return
    finally:
        engine.cancel([*followers, *sequences])
        del model  # which nobody else may hold while this runs


class AnswerTable:
    """The answers of a batch as they grow, and their logits if they are asked for.

    Of greedy answers to one prompt only the first is written; the others are copies.
    """

    def __init__(
        self,
        engine: Engine,
        sequences: list[Sequence],
        num_answers: int,
        options: GenerationConfig,
    ) -> None:
        self.options = options
        self.copies = options.num_return_sequences if options.is_greedy else 1
        # NOTE numbers in lists, not small tensors: kept among the buffers of each step they would
        # fragment the heap
        self.written: list[list[int]] = [[] for _ in range(num_answers)]
        self.reasons: dict[int, FinishReason] = {}
        self.num_steps = self.num_put = 0
        self.logits = torch.empty(0, dtype=torch.float32, device="cpu")
        if options.output_logits:
            self.logits = open_logits(engine, sequences, num_answers)

    def put(self, chunk: Chunk, row: torch.Tensor | None) -> None:
        for index in range(chunk.index * self.copies, (chunk.index + 1) * self.copies):
            place = len(self.written[index])
            if place == self.num_steps:
                self.num_steps += 1
                if self.options.output_logits:
                    self.logits[place].zero_()
            self.written[index].append(chunk.token)
            if row is not None:
                self.logits[place, index] = row
            if chunk.finish_reason:
                self.reasons[index] = chunk.finish_reason

    def new_columns(self) -> Iterator[torch.Tensor]:
        """The next tokens of all answers [S], once every unfinished answer has its own: answers may
        run ahead of one another."""
        open_lengths = [len(ids) for i, ids in enumerate(self.written) if i not in self.reasons]
        num_full = min(open_lengths, default=self.num_steps)
        for place in range(self.num_put, num_full):
            column = [self.token_at(ids, place) for ids in self.written]
            yield torch.tensor(column, dtype=torch.int64, device="cpu")
        self.num_put = max(self.num_put, num_full)

    def token_at(self, ids: list[int], place: int) -> int:
        return ids[place] if place < len(ids) else self.options.fill_token_id

    def output(self, inputs: ModelInputs) -> torch.Tensor | GenerateOutput:
        rows = [
            [self.token_at(ids, place) for place in range(self.num_steps)] for ids in self.written
        ]
        answers = torch.tensor(rows, dtype=torch.int64, device="cpu").view(len(rows), -1)
        prompts = inputs.input_ids.repeat_interleave(self.options.num_return_sequences, dim=0)
        sequences = torch.cat([prompts, answers.to(prompts.device)], dim=1)
        if not self.options.return_dict_in_generate:
            return sequences
        return GenerateOutput(
            sequences,
            tuple(self.logits[: self.num_steps]) if self.options.output_logits else None,
            tuple(self.reasons[index] for index in range(len(self.written))),
        )


def open_logits(engine: Engine, sequences: list[Sequence], num_answers: int) -> torch.Tensor:
    """Room for the logits of all steps, float32 [steps, S, V]. What is not written yet takes no
    memory, and no step lies between buffers that come and go."""
    config = engine.model.config
    steps = max(
        max_answer_tokens(sequence.num_prompt, sequence.options, config) for sequence in sequences
    )
    shape = steps, num_answers, config.text_config.vocab_size
    num_bytes = 4 * steps * num_answers * config.text_config.vocab_size
    require_bytes(num_bytes, engine.model.device, "the logits of all steps")
    sequences[0].transient_bytes += num_bytes
    return torch.empty(shape, dtype=torch.float32, device=engine.model.device)

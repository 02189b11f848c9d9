"""Whole answers and streams for callers who wait: thin clients of the engine.

B prompts · S = B · num_return_sequences answers · V vocab_size
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from collections.abc import Sequence as Items
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

import torch

from qwen25vl.engine.additions import Additions
from qwen25vl.engine.answers import AnswerTable, GenerateOutput, num_copies
from qwen25vl.engine.engine import Engine
from qwen25vl.engine.need import returns_caches
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.outbox import Chunk, Outbox, Written
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.requests import Call, open_sequences
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.progress import Progress


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
    added: Additions | None = None,
    adapted: Items[Qwen2_5_VLCausalModel | None] = (),
) -> torch.Tensor | GenerateOutput:
    """Write whole answers.

    Returns ids [S, L + new]: every prompt as given, padding included, followed by its answer (end
    token and stop string included) and then `pad_token_id`; the answers to one prompt stand
    together. With `return_dict_in_generate`, a GenerateOutput. `tokenizer` is needed for
    `stop_strings` only. progress: called with (stage, done, total), where stage is "images",
    "videos", "prefill" or "decode". visual_cache: provides the visual tokens of recent pictures and
    stores those of new ones. added: the caller's functions, embeddings and caches. adapted: the
    model under the adapter of each prompt, None for the model itself; nothing where all are. An
    answer that fills the context ends with "length".

    Raises UsageError and MessageError if inputs or options do not fit together, ContextLengthError
    for a prompt that leaves no room for an answer, DeadlineError, NumericsError, OutOfMemoryError.
    """
    added = added or Additions()
    prompts = inputs.input_ids if added.has_ids else inputs.input_ids[:, :0]
    with ended_on_error(streamer):
        options.validate()
        options = options.within(inputs.input_ids.shape[-1])
        if streamer is not None and options.num_beams > 1:
            raise UsageError("the answers of a beam search are whole at its end; give no streamer")
        outbox = Outbox(progress, options.output_logits, is_live=streamer is not None)
        keeps_caches = returns_caches(options) or added.renewed is not None
        call = Call(
            options, outbox, tokenizer, visual_cache, None, added, keeps_caches, adapted=adapted
        )
        sequences = open_sequences(engine.model, inputs.to(engine.model.device), call)
        num_answers = len(inputs.input_ids) * options.num_return_sequences
        table = AnswerTable(engine, sequences, num_answers, options)
        if streamer:
            streamer.put(prompts.cpu())
        with closing(run(engine, sequences)) as written:
            for one in written:
                table.put(one)
                if streamer:
                    for column in table.new_columns():
                        streamer.put(column)
    if streamer:
        streamer.end()
    if added.renewed is not None:
        added.renewed[:] = table.caches
    return table.output(prompts)


@contextmanager
def ended_on_error(streamer: Streamer | None) -> Iterator[None]:
    """End a streamer after an error: another thread may be waiting for it."""
    try:
        yield
    except BaseException:
        if streamer is not None:
            streamer.end()
        raise


def stream(
    engine: Engine,
    inputs: ModelInputs,
    options: GenerationConfig,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    visual_cache: VisualCache | None = None,
    prefix_cache: PrefixCache | None = None,
    added: Additions | None = None,
    adapted: Items[Qwen2_5_VLCausalModel | None] = (),
) -> ChunkStream:
    """Yield each token as it is chosen; the texts of an answer's chunks join to its text.

    Special tokens give no text, a stop string and what follows it are cut off, half characters wait
    for their rest. Chunks of several answers alternate. Raises what `generate` raises, at the first
    chunk.
    """
    options.validate()
    options = options.within(inputs.input_ids.shape[-1])
    added = added or Additions()
    outbox = Outbox(progress)
    call = Call(options, outbox, tokenizer, visual_cache, prefix_cache, added, adapted=adapted)
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
    copies = num_copies(call.options)
    with closing(run(engine, sequences)) as written:
        for one in written:
            for copy in range(copies):
                yield replace(one.chunk, index=one.chunk.index * copies + copy)


def run(engine: Engine, sequences: list[Sequence]) -> Generator[Written, None, None]:
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

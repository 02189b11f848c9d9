"""The answers of a call as they grow, and what `generate` makes of them.

B prompts · S = B · num_return_sequences answers · K num_beams · V vocab_size
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from qwen25vl.engine.engine import Engine
from qwen25vl.engine.need import max_answer_tokens
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.outbox import Written
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.stopping import FinishReason
from qwen25vl.inputs import brief
from qwen25vl.memory import require_bytes
from qwen25vl.model.cache import KVCache


@dataclass(frozen=True)
class GenerateOutput:
    """What `return_dict_in_generate` returns; also readable by key, as a mapping without the fields
    that are None, and by place among these.

    sequences [S, L + new]. scores, logits: per step [S, V], 0 for finished answers; of a beam
    search [B · K, V] of the beams. past_key_values: one cache for each answer, from which
    `generate` and `forward` go on. sequences_scores [S], beam_indices [S, new]: of a beam search,
    the normalised score and, for each token, the row of the step that it was chosen from, −1 behind
    the end. finish_reasons: one for each answer. attentions and hidden_states are always None.
    """

    sequences: torch.Tensor
    scores: tuple[torch.Tensor, ...] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    attentions: None = None
    hidden_states: None = None
    past_key_values: list[KVCache] | None = None
    sequences_scores: torch.Tensor | None = None
    beam_indices: torch.Tensor | None = None
    finish_reasons: tuple[FinishReason, ...] = ()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={brief(value)}" for name, value in self.items())
        return f"GenerateOutput({shown})"

    def items(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self).items() if value is not None]

    def keys(self) -> list[str]:
        return [name for name, _ in self.items()]

    def values(self) -> list[Any]:
        return [value for _, value in self.items()]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


class AnswerTable:
    """The answers of a batch as they grow, with their logits and scores if these are asked for.

    Of greedy answers to one prompt only the first is written; the others are copies. Those of a
    beam search come whole, and its logits and scores stay with the search until then.
    """

    def __init__(
        self,
        engine: Engine,
        sequences: list[Sequence],
        num_answers: int,
        options: GenerationConfig,
    ) -> None:
        self.options = options
        self.copies = num_copies(options)
        self.searches = [one.beams for one in sequences if one.beams is not None]
        # sampled answers after the first wait with it, until the prompt is read
        self.sequences = [each for one in sequences for each in (one, *one.followers)]
        # NOTE numbers in lists, not small tensors: kept among the buffers of each step they would
        # fragment the heap
        self.written: list[list[int]] = [[] for _ in range(num_answers)]
        self.reasons: dict[int, FinishReason] = {}
        self.num_steps = self.num_put = 0
        self.logits = self.scores = torch.empty(0, dtype=torch.float32, device="cpu")
        wanted = options.output_logits + options.output_scores
        if wanted and self.searches:
            rows = options.num_beams * len(self.searches)
            reserve_rows(engine, sequences, wanted * rows)
        elif wanted:
            shape = reserve_rows(engine, sequences, wanted * num_answers), num_answers
            kept = [open_rows(engine, *shape) for _ in range(wanted)]
            self.logits = kept[0] if options.output_logits else self.logits
            self.scores = kept[-1] if options.output_scores else self.scores
            if kept[0].device.type != "cpu":  # there all of it is taken at once
                sequences[0].outbox.step_bytes = 0

    def put(self, written: Written) -> None:
        chunk = written.chunk
        kept = [(self.logits, written.logits), (self.scores, written.scores)]
        for index in range(chunk.index * self.copies, (chunk.index + 1) * self.copies):
            place = len(self.written[index])
            for table, row in kept:
                if row is None or not len(table):
                    continue
                if place == self.num_steps:
                    table[place].zero_()
                table[place, index] = row
            self.num_steps = max(self.num_steps, place + 1)
            self.written[index].append(chunk.token)
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

    def output(self, prompts: torch.Tensor) -> torch.Tensor | GenerateOutput:
        """prompts [B, L]: what the answers are appended to."""
        rows = [
            [self.token_at(ids, place) for place in range(self.num_steps)] for ids in self.written
        ]
        answers = torch.tensor(rows, dtype=torch.int64, device="cpu").view(len(rows), -1)
        repeated = prompts.repeat_interleave(self.options.num_return_sequences, dim=0)
        sequences = torch.cat([repeated, answers.to(prompts.device)], dim=1)
        if not self.options.return_dict_in_generate:
            return sequences
        logits, scores = self.logits[: self.num_steps], self.scores[: self.num_steps]
        reasons = tuple(self.reasons[index] for index in range(len(self.written)))
        found: dict[str, Any] = {
            "logits": tuple(logits) if self.options.output_logits else None,
            "scores": tuple(scores) if self.options.output_scores else None,
            **(self.of_searches() if self.searches else {}),
        }
        if self.options.use_cache:
            found["past_key_values"] = self.caches
        return GenerateOutput(sequences, finish_reasons=reasons, **found)

    @property
    def caches(self) -> list[KVCache]:
        """One for each answer, where they were kept."""
        return list(chain.from_iterable(one.kept_caches for one in self.sequences))

    def of_searches(self) -> dict[str, Any]:
        """What a beam search returns beside its answers."""
        found: dict[str, Any] = {"beam_indices": self.beam_indices()}
        if self.options.output_scores:
            best = [answer.score for search in self.searches for answer in search.answers]
            found["sequences_scores"] = torch.tensor(best, dtype=torch.float32, device="cpu")
            found["scores"] = join_steps([search.step_scores for search in self.searches])
        if self.options.output_logits:
            found["logits"] = join_steps([search.step_logits for search in self.searches])
        return found

    def beam_indices(self) -> torch.Tensor:
        num_beams, rows = self.options.num_beams, []
        for number, search in enumerate(self.searches):
            for answer in search.answers:
                places = [num_beams * number + parent for parent in answer.parents]
                rows.append([*places, *[-1] * (self.num_steps - len(places))])
        return torch.tensor(rows, dtype=torch.int64, device="cpu")


def num_copies(options: GenerationConfig) -> int:
    """How many equal answers one written one stands for."""
    is_one = options.is_greedy and options.num_beams == 1
    return options.num_return_sequences if is_one else 1


def reserve_rows(engine: Engine, sequences: list[Sequence], num_rows: int) -> int:
    """Reserve so many rows of the vocabulary for each step of a call, and refuse what does not fit
    into memory. Returns the number of steps."""
    config, outbox = engine.model.config, sequences[0].outbox
    outbox.step_bytes = 4 * num_rows * config.text_config.vocab_size
    outbox.max_steps = max(
        max_answer_tokens(sequence.num_prompt, sequence.options, config) for sequence in sequences
    )
    require_bytes(outbox.bytes_to_come, engine.model.device, "the logits of all steps")
    return outbox.max_steps


def open_rows(engine: Engine, steps: int, num_answers: int) -> torch.Tensor:
    """Room for the rows of all steps, float32 [steps, S, V]. What is not written yet takes no
    memory, and no step lies between buffers that come and go."""
    shape = steps, num_answers, engine.model.config.text_config.vocab_size
    return torch.empty(shape, dtype=torch.float32, device=engine.model.device)


def join_steps(searches: Items[list[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """[B · K, V] of each step from the steps [K, V] of each search, 0 for one that is over. The
    parts are let go of as they are joined."""
    longest = max(len(steps) for steps in searches)
    joined = []
    for place in range(longest):
        parts = [steps[place] if place < len(steps) else None for steps in searches]
        like = next(part for part in parts if part is not None)
        joined.append(torch.cat([torch.zeros_like(like) if p is None else p for p in parts]))
        for steps in searches:
            if place < len(steps):
                steps[place] = joined[-1][:0]
    return tuple(joined)

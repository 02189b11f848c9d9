"""The engine: sequences come and go, and each step moves all of them on.

A step takes arrivals, cancellations and deadlines; it reads one row, and drafts, of each answer
that is written; it reads the oldest prompts for as long as the step's time allows, or, where the
next tokens need a medium that is not encoded yet, works on the encoder instead; one call of the
language model computes all rows; the sampler chooses; chunks are handed out.

With the compiled kernels a row has the same bits in any company and in any chunks. So nothing that
is decided here, not even by a clock, changes an answer.

Any number of threads may wait for their answers at one engine: one of them runs the steps, for all,
and when it has what it wanted another one goes on. Nothing runs while nobody waits.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from threading import Condition, Lock, get_ident

import torch

from qwen25vl.engine.admission import release_after
from qwen25vl.engine.footprint import MAX_TOKENS_PER_STEP
from qwen25vl.engine.pace import Pace
from qwen25vl.engine.scheduler import Scheduler
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.step import Rows, reading_rows, run_rows, writing_rows
from qwen25vl.engine.thread_count import ThreadCounts
from qwen25vl.engine.writing import write_tokens
from qwen25vl.errors import UsageError
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.layers import has_compiled_layers
from qwen25vl.threads import at_most

IDLE_SECONDS = 0.02  # before a thread that can do nothing looks again
MAX_WAIT_SECONDS = 1.0  # before a thread that waits for another one looks again
MAX_HELD_BACK = 8  # steps that read prompts before answers go on that nobody waits for


class Engine:
    """Runs the sequences of one model."""

    def __init__(self, model: Qwen2_5_VLCausalModel) -> None:
        self.find_model = weakref.ref(model)  # the model holds its engine
        self.scheduler = Scheduler(self.find_model)
        self.pace = Pace()
        self.thread_counts = ThreadCounts()
        self.num_held_back = 0  # steps since somebody's answer was written
        self.num_steps = 0  # that did something and went well
        # Not reentrant: a finaliser that cancels must not enter what its own thread is doing.
        self.condition = Condition(Lock())
        self.runner: int | None = None  # the thread that runs a step

    @property
    def model(self) -> Qwen2_5_VLCausalModel:
        model = self.find_model()
        if model is None:
            raise UsageError("the model of this engine does not exist any more")
        return model

    # For any thread.

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Take sequences; those with followers bring these along."""
        self.scheduler.arrive(sequences)
        with self.condition:
            self.condition.notify_all()

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Drop sequences. Nothing is handed out for them any more, and their memory is free at the
        latest after the step that runs now."""
        self.scheduler.cancel(sequences)
        while self.scheduler.cancelled and self.runner is None:
            if not self.condition.acquire(blocking=False):
                return  # whoever holds it looks at the cancelled ones before it lets go
            try:
                if self.runner is None:
                    self.scheduler.take_changes()
            finally:
                self.condition.release()

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Run steps, or let another thread run them, until `is_done`. What goes wrong in a sequence
        is left in its outbox."""
        if self.runner == get_ident():
            raise UsageError("a progress function cannot ask the model that reports to it")
        while not is_done():
            was_busy = True
            try:
                if self.claim(is_done):
                    was_busy = self.step()
            finally:
                self.release()
            if not was_busy and not is_done():
                with self.condition:
                    self.condition.wait(IDLE_SECONDS)

    def claim(self, is_done: Callable[[], bool]) -> bool:
        """Become the thread that runs a step, unless `is_done` before that."""
        with self.condition:
            while self.runner is not None and not is_done():
                self.condition.wait(MAX_WAIT_SECONDS)
            if is_done():
                return False
            self.runner = get_ident()
            return True

    def release(self) -> None:
        """Let another thread run the next step. Whatever interrupts this, nobody waits for ever."""
        if self.runner != get_ident():
            return
        self.runner = None
        with self.condition:
            try:
                if self.runner is None:
                    self.scheduler.take_changes()
            finally:
                self.condition.notify_all()

    @property
    def is_busy(self) -> bool:
        """Whether there are sequences that are not over."""
        return bool(self.scheduler.running or self.scheduler.waiting or self.scheduler.arrivals)

    # For the thread that runs.

    @torch.inference_mode()
    def step(self) -> bool:
        """Move every sequence on. Returns whether there was anything to do."""
        try:
            self.scheduler.take_changes()
            self.scheduler.admit()
            was_busy = self.compute()
            self.num_steps += was_busy
            return was_busy
        except BaseException:
            for sequence in [*self.scheduler.running]:  # what was interrupted is computed again
                if sequence.finish_reason:
                    self.scheduler.drop(sequence)
                else:
                    sequence.roll_back()
            raise

    def compute(self) -> bool:
        """The work of one step; whether there was any."""
        start = time.perf_counter()
        writing = [s for s in self.scheduler.running if not s.is_reading and not s.outbox.is_full]
        reading = [s for s in self.scheduler.running if s.is_reading]
        is_urgent = self.is_urgent()
        rows = self.choose_reading(reading, is_urgent)
        reading = [s for s in reading if s in self.scheduler.running]
        is_encoding = bool(reading) and not rows
        if is_encoding:
            self.encode(reading, is_urgent)
            start = time.perf_counter()
        if reading and not is_urgent and self.num_held_back < MAX_HELD_BACK:
            writing = []  # nobody waits for single tokens: read prompts first, in full steps
            self.num_held_back += 1
        else:
            self.num_held_back = 0
        num_read = sum(len(one.tokens) for one in rows)
        num_drafting = max(1, sum(sequence.lookup is not None for sequence in writing))
        for s in writing:
            try:
                rows += writing_rows(s, s.options.prompt_lookup_num_tokens // num_drafting)
            except Exception as error:
                self.scheduler.fail(s, error)
        if rows and num_read:
            self.run(rows)
            self.pace.learn(time.perf_counter() - start, num_read, len(writing))
        elif rows:
            self.write(rows)
            self.pace.learn(time.perf_counter() - start, 0, len(writing))
        return bool(rows) or is_encoding

    def write(self, rows: list[Rows]) -> None:
        """A step that only writes."""
        num_rows = sum(len(one.tokens) for one in rows)
        count = self.thread_counts.of(num_rows, torch.get_num_threads())
        start = time.perf_counter()
        with at_most(count.choose()):
            self.run(rows)
        count.learn(time.perf_counter() - start)

    def is_urgent(self) -> bool:
        """Whether somebody waits for the next token of an answer."""
        return any(
            s.outbox.is_live and not s.outbox.is_full and not s.is_reading
            for s in self.scheduler.running
        )

    def choose_reading(self, reading: list[Sequence], is_urgent: bool) -> list[Rows]:
        """Pieces of prompts for this step, the oldest first; none if the oldest needs a medium that
        is not encoded."""
        # Where chunks change the last bits, prompts are always cut at the same places.
        has_exact_chunks = has_compiled_layers(self.model.dtype, self.model.device)
        room = MAX_TOKENS_PER_STEP
        if is_urgent and has_exact_chunks:
            room = self.pace.num_tokens()
        rows: list[Rows] = []
        for sequence in reading:
            try:
                one = reading_rows(sequence, room if has_exact_chunks else MAX_TOKENS_PER_STEP)
            except Exception as error:
                self.scheduler.fail(sequence, error)
                continue
            is_together = not is_urgent and sequence.outbox is reading[0].outbox
            if one is None and is_together:
                return []  # the prompts of a call are read together, in steps as full as possible
            if one is None or len(one.tokens) > room:
                break
            rows.append(one)
            room -= len(one.tokens)
            if room == 0 or one.stop < sequence.num_prompt:
                break
        return rows

    def encode(self, reading: list[Sequence], is_urgent: bool) -> None:
        """Work on the encoder, and tell those who wait for it."""
        seconds = self.pace.time_left() if is_urgent else self.pace.step_seconds
        encoder = self.scheduler.encoder
        try:
            encoder.advance(self.model, reading, seconds, self.is_urgent)
        except BaseException as error:  # the patches are gone, so the work cannot begin anew
            affected = {s for owners in encoder.owners.values() for s in owners}
            oldest = next((s for s in reading if s.media_to_encode()), reading[0])
            for sequence in affected or {oldest}:
                self.scheduler.fail(sequence, error)
            if not isinstance(error, Exception):
                raise
        while encoder.faults:
            self.scheduler.fail(*encoder.faults.popitem())

    def run(self, rows: list[Rows]) -> None:
        """Compute rows and use the results. An error is traced to the sequence that causes it."""
        try:
            logits = run_rows(self.model, rows)
        except Exception as error:
            each = by_sequence(rows)
            for sequence in each:
                sequence.roll_back()
            if len(each) == 1:
                self.scheduler.fail(rows[0].sequence, error)
            for one_alone in each.values() if len(each) > 1 else ():
                self.run(one_alone)
            return
        parts = logits.split([one.num_logits for one in rows])
        written: list[tuple[Rows, torch.Tensor]] = []
        for one, part in zip(rows, parts, strict=True):
            was_reading = one.sequence.is_reading
            one.sequence.num_computed = one.stop - len(one.drafted)
            written.append((one, part))
            if was_reading:
                try:
                    written += self.finish_reading(one, part)
                except Exception as error:
                    self.scheduler.fail(one.sequence, error)
        faults = write_tokens(
            [(one, part) for one, part in written if one.sequence in self.scheduler.running]
        )
        for sequence, fault in faults.items():
            self.scheduler.fail(sequence, fault)
        for one, _ in written:
            if one.sequence.finish_reason and one.sequence in self.scheduler.running:
                self.scheduler.drop(one.sequence)

    def finish_reading(self, rows: Rows, logits: torch.Tensor) -> list[tuple[Rows, torch.Tensor]]:
        """After a piece of a prompt was read: let go of its media, and when it was the last piece,
        start the other answers. Returns what they take part with in this step. Raises what the
        caller's progress function raises."""
        sequence = rows.sequence
        for medium in sequence.media:
            if medium.stop <= rows.stop:
                medium.tokens = None
        sequence.outbox.advance("prefill", len(rows.tokens))
        if not rows.num_logits or sequence.cache is None:
            return []
        release_after(sequence)
        started = []
        while sequence.followers:
            follower = sequence.followers[0]
            try:
                follower.cache, follower.num_computed = sequence.cache.clone(), rows.stop
            except Exception as error:
                self.scheduler.fail(follower, error)
                continue
            self.scheduler.running.append(sequence.followers.pop(0))
            started.append((replace(rows, sequence=follower), logits))
        return started


def by_sequence(rows: Iterable[Rows]) -> dict[Sequence, list[Rows]]:
    """The rows of each sequence: one, or one for each of its beams."""
    found: dict[Sequence, list[Rows]] = {}
    for one in rows:
        found.setdefault(one.sequence, []).append(one)
    return found

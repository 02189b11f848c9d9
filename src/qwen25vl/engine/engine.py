"""The engine: sequences come and go, and each step moves all of them on.

A step takes arrivals, cancellations and deadlines; it reads one row, and drafts, of each answer that
is written; it reads the oldest prompts for as long as the step's time allows, or, where the next
tokens need a medium that is not encoded yet, works on the encoder instead; one call of the language
model computes all rows; the sampler chooses; chunks are handed out.

With the compiled kernels a row has the same bits in any company and in any chunks. So nothing that
is decided here, not even by a clock, changes an answer.

Any number of threads may wait for their answers at one engine: one of them runs the steps, for all,
and when it has what it wanted another one goes on. Nothing runs while nobody waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from threading import Condition, get_ident
from weakref import WeakSet

import torch

from qwen25vl.engine.admission import make_room, name_need, too_large
from qwen25vl.engine.encoding import Encoder
from qwen25vl.engine.footprint import MAX_TOKENS_PER_STEP
from qwen25vl.engine.pace import Pace
from qwen25vl.engine.prefix import PrefixCache, make_key, weights_state
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.step import Rows, reading_rows, run_rows, writing_rows
from qwen25vl.engine.writing import write_tokens
from qwen25vl.errors import DeadlineError, UsageError
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.layers import has_compiled_layers

IDLE_SECONDS = 0.02  # before a thread that can do nothing looks again


class Engine:
    """Runs the sequences of one model."""

    def __init__(self, model: Qwen2_5_VLCausalModel) -> None:
        self.model = model
        self.pace = Pace()
        self.stores: WeakSet[PrefixCache] = WeakSet()  # of kept caches: dropped when memory lacks
        self.encoder = Encoder(model.visual)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.arrivals: deque[Sequence] = deque()
        self.cancelled: deque[Sequence] = deque()
        self.condition = Condition()
        self.runner: int | None = None  # the thread that runs a step

    # For any thread.

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Take sequences; those with followers bring these along."""
        for sequence in sequences:
            sequence.outbox.num_open += 1 + len(sequence.followers)
            self.arrivals.append(sequence)
            if sequence.prefixes is not None:
                self.stores.add(sequence.prefixes)
        with self.condition:
            self.condition.notify_all()

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Drop sequences. Nothing is handed out for them any more, and their memory is free at the
        latest after the step that runs now."""
        self.cancelled.extend(sequences)
        if self.condition.acquire(blocking=False):
            try:
                if self.runner is None:
                    self.take_changes()
            finally:
                self.condition.release()

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Run steps, or let another thread run them, until `is_done`. What goes wrong in a sequence
        is left in its outbox."""
        while not is_done():
            with self.condition:
                while self.runner is not None and not is_done():
                    if self.runner == get_ident():
                        raise UsageError(
                            "a progress function cannot ask the model that reports to it"
                        )
                    self.condition.wait()
                if is_done():
                    return
                self.runner = get_ident()
            was_busy = True
            try:
                was_busy = self.step()
            finally:
                with self.condition:
                    self.runner = None
                    self.take_changes()
                    self.condition.notify_all()
            if not was_busy and not is_done():
                with self.condition:
                    self.condition.wait(IDLE_SECONDS)

    # For the thread that runs.

    @torch.inference_mode()
    def step(self) -> bool:
        """Move every sequence on. Returns whether there was anything to do."""
        try:
            self.take_changes()
            self.admit()
            return self.compute()
        except BaseException:
            for sequence in self.running:  # what was interrupted is computed again
                sequence.roll_back()
            raise

    def take_changes(self) -> None:
        """Arrivals, cancellations and deadlines."""
        while self.arrivals:
            self.waiting.append(self.arrivals.popleft())
        while self.cancelled:
            self.drop(self.cancelled.popleft())
        for sequence in [*self.waiting, *self.running]:
            if sequence.is_late and not sequence.tokens:
                self.fail(sequence, DeadlineError("the time was over before the answer began"))

    def admit(self) -> None:
        """Start waiting sequences, the oldest first, as far as there is memory for them."""
        while self.waiting:
            sequence = self.waiting[0]
            if not make_room(sequence, self.running, self.stores, self.model.device):
                if self.running:
                    return  # until one of these is over
                self.fail(sequence, too_large(sequence, self.model.device))
                continue
            self.running.append(self.waiting.pop(0))
            try:
                self.open_cache(sequence)
                self.encoder.find_known(sequence)
            except Exception as error:
                self.fail(sequence, error)

    def open_cache(self, sequence: Sequence) -> None:
        """Reserve a sequence's cache, and copy into it what a kept one has of its prompt."""
        text = self.model.config.text_config
        capacity = sequence.num_prompt + sequence.max_tokens
        sequence.cache = KVCache(text, self.model.dtype, self.model.device, capacity)
        if sequence.prefixes is None or not sequence.prefixes.kept:
            return
        weights = weights_state(self.model)
        if weights is None:
            return
        found = sequence.prefixes.find(make_key(sequence.ids, sequence.media), weights)
        if found is None:
            return
        kept, length = found
        for medium in sequence.media:
            if medium.start < length < medium.stop:
                length = medium.start  # the encoder computes a medium as a whole
        sequence.cache.copy_prefix(kept.cache, length, sequence.position_of(length))
        sequence.num_computed = sequence.num_reused = length
        sequence.outbox.skip("prefill", length)
        sequence.outbox.num_reused += length
        for medium in sequence.media:
            if medium.stop <= length:
                medium.patches = []
                sequence.outbox.skip(f"{medium.kind}s", medium.num_patches)

    def compute(self) -> bool:
        """The work of one step; whether there was any."""
        start = time.perf_counter()
        writing = [s for s in self.running if not s.is_reading and not s.outbox.is_full]
        reading = [s for s in self.running if s.is_reading]
        is_urgent = self.is_urgent()
        rows = self.choose_reading(reading, is_urgent)
        is_encoding = bool(reading) and not rows
        if is_encoding:
            self.encode(reading, is_urgent)
            start = time.perf_counter()
        if reading and not is_urgent:
            writing = []  # nobody waits for single tokens: read all prompts first
        num_read = sum(len(one.tokens) for one in rows)
        num_drafting = max(1, sum(sequence.lookup is not None for sequence in writing))
        for s in writing:
            rows.append(writing_rows(s, s.options.prompt_lookup_num_tokens // num_drafting))
        if rows:
            self.run(rows)
            self.pace.learn(time.perf_counter() - start, num_read, len(writing))
        return bool(rows) or is_encoding

    def is_urgent(self) -> bool:
        """Whether somebody waits for the next token of an answer."""
        return any(not s.is_reading and s.outbox.is_live for s in self.running)

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
            one = reading_rows(sequence, room if has_exact_chunks else MAX_TOKENS_PER_STEP)
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
        try:
            self.encoder.advance(reading, seconds, self.is_urgent)
        except Exception as error:
            for sequence in {s for owners in self.encoder.owners.values() for s in owners}:
                self.fail(sequence, error)

    def run(self, rows: list[Rows]) -> None:
        """Compute rows and use the results. An error is traced to the sequence that causes it."""
        try:
            logits = run_rows(self.model, rows)
        except Exception as error:
            for one in rows:
                one.sequence.roll_back()
            if len(rows) == 1:
                self.fail(rows[0].sequence, error)
            for one in rows if len(rows) > 1 else ():
                self.run([one])
            return
        parts = logits.split([one.num_logits for one in rows])
        written: list[tuple[Rows, torch.Tensor]] = []
        for one, part in zip(rows, parts, strict=True):
            was_reading = one.sequence.is_reading
            one.sequence.num_computed = one.stop - len(one.drafted)
            written.append((one, part))
            if was_reading:
                written += self.finish_reading(one, part)
        faults = write_tokens(
            [(one, part) for one, part in written if one.sequence in self.running]
        )
        for sequence, fault in faults.items():
            self.fail(sequence, fault)
        for one, _ in written:
            if one.sequence.finish_reason and one.sequence in self.running:
                self.drop(one.sequence)

    def finish_reading(self, rows: Rows, logits: torch.Tensor) -> list[tuple[Rows, torch.Tensor]]:
        """After a piece of a prompt was read: let go of its media, and when it was the last piece,
        start the other answers. Returns what they take part with in this step."""
        sequence = rows.sequence
        for medium in sequence.media:
            if medium.stop <= rows.stop:
                medium.tokens = None
        try:
            sequence.outbox.advance("prefill", len(rows.tokens))
        except Exception as error:  # of the caller's progress function
            self.fail(sequence, error)
        if not rows.num_logits or sequence.cache is None:
            return []
        followers, sequence.followers = sequence.followers, []
        for follower in followers:
            follower.cache, follower.num_computed = sequence.cache.clone(), rows.stop
            self.running.append(follower)
        return [(replace(rows, sequence=follower), logits) for follower in followers]

    # The end of sequences.

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is. If its prompt is not read yet, its first follower goes
        on with it."""
        for other in (*self.waiting, *self.running):
            if sequence in other.followers:
                other.followers.remove(sequence)
                sequence.outbox.num_open -= 1
        for place in (self.waiting, self.running):
            if sequence in place:
                index = place.index(sequence)
                heir = sequence.hand_over()
                place[index : index + 1] = [heir] if heir else []
                sequence.outbox.num_open -= 1
                self.encoder.replace(sequence, heir)
                self.keep_prefix(sequence)
                sequence.cache = None

    def keep_prefix(self, sequence: Sequence) -> None:
        """Keep the cache of a sequence that is over, where prompts may reuse it: up to the last medium
        that is whole."""
        cache = sequence.cache
        if cache is None or sequence.prefixes is None or not sequence.prefixes.max_bytes:
            return
        length = sequence.num_computed
        for medium in sequence.media:
            if medium.start < length < medium.stop:
                length = medium.start
        cache.crop(length, sequence.position_of(length))
        weights = weights_state(self.model)
        if weights is not None:
            media = [medium for medium in sequence.media if medium.stop <= length]
            ids = [*sequence.ids, *sequence.tokens][:length]
            sequence.prefixes.keep(make_key(ids, media), cache, weights)

    def fail(self, sequence: Sequence, error: BaseException) -> None:
        """End a sequence, and those that wait for its prompt, with an error."""
        sequence.outbox.error = sequence.outbox.error or name_need(error, sequence)
        sequence.outbox.num_open -= len(sequence.followers)
        sequence.followers = []
        sequence.prefixes = None
        self.drop(sequence)

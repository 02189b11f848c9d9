"""Who takes part: arrivals, admission, cancellations and ends.

A sequence comes in by `arrivals`, waits until memory for its prompt and its longest answer is
reserved, runs, and leaves when it is over, cancelled, late or failed. Nothing that was admitted is
ever put back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from weakref import WeakSet

from qwen25vl.engine.admission import Room, make_room, name_need, too_large
from qwen25vl.engine.encoding import Encoder
from qwen25vl.engine.prefix import PrefixCache, prefix_key, weights_state
from qwen25vl.engine.sequence import Sequence
from qwen25vl.errors import DeadlineError
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel


class Scheduler:
    """The sequences of one engine. `arrive` and `cancel` may be called by any thread, all else by
    the one that runs a step, or by nobody else at that time."""

    def __init__(self, find_model: Callable[[], Qwen2_5_VLCausalModel | None]) -> None:
        self.find_model = find_model
        self.encoder = Encoder()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.arrivals: deque[Sequence] = deque()
        self.cancelled: deque[Sequence] = deque()
        self.stores: WeakSet[PrefixCache] = WeakSet()  # dropped from when memory is lacking
        self.max_bytes: int | None = None  # of memory for all sequences and kept caches

    @property
    def model(self) -> Qwen2_5_VLCausalModel:
        model = self.find_model()
        assert model is not None  # whoever waits holds it
        return model

    def arrive(self, sequences: Iterable[Sequence]) -> None:
        """Take sequences; those with followers bring these along."""
        for sequence in sequences:
            sequence.outbox.num_open += 1 + len(sequence.followers)
            self.arrivals.append(sequence)

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        self.cancelled.extend(sequences)

    def take_changes(self) -> None:
        """Arrivals, cancellations and deadlines."""
        while self.arrivals:
            sequence = self.arrivals.popleft()
            self.waiting.append(sequence)
            if sequence.prefixes is not None:
                self.stores.add(sequence.prefixes)
        while self.cancelled:
            self.drop(self.cancelled.popleft())
        for sequence in [*self.waiting, *self.running]:
            if sequence.is_late and not sequence.tokens:
                self.fail(sequence, DeadlineError("the time was over before the answer began"))

    def admit(self) -> None:
        """Start waiting sequences, the oldest first, as far as there is memory for them."""
        while self.waiting:
            sequence = self.waiting[0]
            try:
                room = Room(self.model, list(self.stores), self.max_bytes)
                if not make_room(room, sequence, self.running):
                    if any(not one.outbox.is_full for one in self.running):
                        return  # until one of these is over; those that nobody reads never will be
                    self.fail(sequence, too_large(room, sequence))
                    continue
                self.open_cache(sequence)
                self.encoder.find_known(self.model, sequence)
            except Exception as error:
                self.fail(sequence, error)
                continue
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def open_cache(self, sequence: Sequence) -> None:
        """Reserve a sequence's cache, and copy into it what a kept one has of its prompt."""
        text = self.model.config.text_config
        capacity = sequence.num_prompt + sequence.max_tokens
        sequence.cache = KVCache(text, self.model.dtype, self.model.device, capacity)
        found = (sequence.past, sequence.past.length) if sequence.past else self.find_kept(sequence)
        if found is None:
            return
        kept, length = found
        length = min(length, sequence.num_prompt - 1)  # the last token is read, for its logits
        for medium in sequence.media:
            if medium.start < length < medium.stop:
                length = medium.start  # the encoder computes a medium as a whole
        sequence.cache.copy_prefix(kept, length, sequence.position_of(length))
        sequence.num_computed = sequence.num_reused = length
        sequence.outbox.skip("prefill", length)
        for medium in sequence.media:
            if medium.stop <= length:
                medium.patches = []
                sequence.outbox.skip(f"{medium.kind}s", medium.num_patches)

    def find_kept(self, sequence: Sequence) -> tuple[KVCache, int] | None:
        """A kept cache that begins like a prompt, and how many tokens they share; None where every
        row must be computed, for what it says of the prompt."""
        if sequence.prompt_scores is not None:
            return None
        if sequence.prefixes is None or not sequence.prefixes.kept:
            return None
        weights = weights_state(sequence.model_of(self.model))
        if weights is None:
            return None
        found = sequence.prefixes.find(
            prefix_key(sequence.ids, sequence.media, sequence.salt), weights
        )
        return None if found is None else (found[0].cache, found[1])

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is. If its prompt is not read yet, its first follower
        goes on with it."""
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
                if sequence.keeps_caches and sequence.finish_reason:
                    sequence.kept_caches = sequence.answer_caches()
                cache, sequence.cache = sequence.cache, None
                if sequence.beams is not None:
                    sequence.beams.beams = []
                if cache is not None:
                    try:
                        self.keep_prefix(sequence, cache)
                    except Exception as error:
                        sequence.outbox.error = sequence.outbox.error or error

    def keep_prefix(self, sequence: Sequence, cache: KVCache) -> None:
        """Keep the cache of a sequence that is over, where prompts may reuse it: up to the last
        medium that is whole."""
        if sequence.prefixes is None or not sequence.prefixes.max_bytes:
            return
        length = sequence.num_computed
        for medium in sequence.media:
            if medium.start < length < medium.stop:
                length = medium.start
        if length < cache.length:
            cache = cache.copy_of_prefix(length, sequence.position_of(length))
        weights = weights_state(sequence.model_of(self.model))
        if weights is not None:
            media = [medium for medium in sequence.media if medium.stop <= length]
            ids = [*sequence.ids, *sequence.tokens][:length]
            sequence.prefixes.keep(prefix_key(ids, media, sequence.salt), cache, weights)

    def fail(self, sequence: Sequence, error: BaseException) -> None:
        """End a sequence, and those that wait for its prompt, with an error."""
        if not isinstance(error, Exception):  # Ctrl-C belongs to the thread that runs the steps
            error = RuntimeError("the work was interrupted in another thread")
        sequence.outbox.error = sequence.outbox.error or name_need(error, sequence)
        sequence.outbox.num_open -= len(sequence.followers)
        sequence.followers = []
        sequence.prefixes = None
        self.drop(sequence)

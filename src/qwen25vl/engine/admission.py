"""Whether there is memory for one more sequence, to the byte: what is admitted always finishes.

A sequence *holds* its cache, for the prompt and the longest answer allowed, from the moment when it
is admitted. Its pages take memory only as tokens reach them, so the free memory that the system
reports still includes what running sequences are going to take. Beside that, a step needs
*transient* memory: to encode media, to read prompts, to choose tokens, of one sequence or of all.
What a call *returns* of each step beside tokens, logits and scores, is counted once for each call.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from qwen25vl import memory
from qwen25vl.engine.need import common_need
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.sequence import Sequence
from qwen25vl.errors import LESS_MEMORY, OutOfMemoryError, Qwen25VLError, is_out_of_memory
from qwen25vl.memory import release_free_memory
from qwen25vl.model.cache import KVCache
from qwen25vl.model.causal import Qwen2_5_VLCausalModel

LARGE_STAGE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Room:
    """What sequences may take of memory: max_bytes in all, kept caches included, where there is a
    limit of one's own, and never more than is free. stores: the kept caches."""

    model: Qwen2_5_VLCausalModel
    stores: Items[PrefixCache] = ()
    max_bytes: int | None = None

    @property
    def kept_bytes(self) -> int:
        return sum(store.num_bytes for store in self.stores)

    def missing_bytes(self, new: Sequence, running: Items[Sequence]) -> int:
        """How much more memory a sequence needs than there is beside the running ones; 0 where it
        fits."""
        limits = []
        if (free := memory.available_bytes(self.model.device)) is not None:
            limits.append(free)
        if self.max_bytes is not None:
            touched = sum(touched_bytes(cache) for one in running for cache in one.caches)
            limits.append(self.max_bytes - self.kept_bytes - touched)
        if not limits:
            return 0
        return max(0, needed_bytes(self.model, (new, *running)) - min(limits))


def needed_bytes(model: Qwen2_5_VLCausalModel, together: Items[Sequence]) -> int:
    """What these sequences will take beside what they have taken already."""
    promised = sum(untouched_bytes(sequence) for sequence in together)
    calls = {id(sequence.outbox): sequence.outbox for sequence in together}
    promised += sum(outbox.bytes_to_come for outbox in calls.values())
    return promised + transient_bytes(model, together)


def transient_bytes(model: Qwen2_5_VLCausalModel, together: Items[Sequence]) -> int:
    """What the widest step needs for a while, whoever of these takes part in it. A sequence alone
    reads its prompt when the patches that it came with are gone, and its own need knows that."""
    own = max(sequence.transient_bytes for sequence in together)
    return own if len(together) == 1 else max(own, common_need(model, together))


def untouched_bytes(sequence: Sequence) -> int:
    """What a sequence and the answers that wait for its prompt hold and have not used yet. Where
    memory is taken at once, as on a GPU, a cache has used all of it."""
    waiting = sum(follower.held_bytes for follower in sequence.followers)
    caches = sequence.caches
    if not caches:
        return waiting + sequence.held_bytes
    if caches[0].storage.device.type != "cpu":
        caches_to_come = sequence.options.num_beams - len(caches)
        return waiting + caches_to_come * caches[0].storage.nbytes
    return waiting + max(0, sequence.held_bytes - sum(map(touched_bytes, caches)))


def touched_bytes(cache: KVCache) -> int:
    return cache.storage.nbytes // cache.capacity * cache.length


def make_room(room: Room, new: Sequence, running: Items[Sequence]) -> bool:
    """Whether a sequence may start; kept caches are dropped for it if need be."""
    missing = room.missing_bytes(new, running)
    if missing > room.kept_bytes:
        return False  # dropping them all would not be enough
    for store in room.stores:
        if missing and store.kept:
            store.release(missing)
            release_free_memory()
            missing = room.missing_bytes(new, running)
    return not missing


def release_after(sequence: Sequence) -> None:
    """Give unused memory back to the system after a stage of a sequence that took much of it: it
    would add up with what the next stage needs."""
    if sequence.stage_bytes >= LARGE_STAGE_BYTES:
        release_free_memory()


def too_large(room: Room, sequence: Sequence) -> OutOfMemoryError:
    """The refusal of what cannot fit even alone."""
    device = room.model.device
    needed = needed_bytes(room.model, [sequence])
    free = memory.gigabytes(max(0, needed - room.missing_bytes(sequence, ())))
    num_patches = sum(medium.num_patches for medium in sequence.media)
    num_answers = 1 + len(sequence.followers)
    answers = f"{num_answers} answer{'s' if num_answers > 1 else ''}"
    return OutOfMemoryError(
        f"a request of {answers} of at most {sequence.max_tokens} tokens, {sequence.num_prompt} "
        f"prompt tokens and {num_patches} patches needs {memory.gigabytes(needed)} of memory on "
        f"{device}, "
        f"only {free} are free; {LESS_MEMORY}"
    )


def name_need(error: BaseException, sequence: Sequence) -> BaseException:
    """An error of torch or Python for lack of memory as one that says how large the request was;
    others as they are."""
    if isinstance(error, Qwen25VLError) or not is_out_of_memory(error):
        return error
    num_patches = sum(medium.num_patches for medium in sequence.media)
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return OutOfMemoryError(
        f"out of memory with {sequence.num_prompt} prompt tokens and {num_patches} patches; "
        f"{LESS_MEMORY}: {reason}"
    )

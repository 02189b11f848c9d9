"""Encoding media in the engine: a few at a time, in parts, each new medium once."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from collections.abc import Sequence as Items

import torch

from qwen25vl.engine.admission import release_after
from qwen25vl.engine.footprint import max_patches_together
from qwen25vl.engine.medium import Medium
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.visual_cache import item_key
from qwen25vl.inputs import Grid, Patches
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.layers import has_compiled_layers
from qwen25vl.model.vision import Qwen2_5_VLVisionModel

Owners = dict[Medium, list[Sequence]]


class Encoder:
    """The vision encoder at work on the media of one group, or on none. Its state between two parts
    is kept, so it can be left at any time and goes on later."""

    def __init__(self) -> None:
        self.owners: Owners = {}
        self.faults: dict[Sequence, Exception] = {}  # of callers' progress functions
        self.visual: Qwen2_5_VLVisionModel | None = None  # of those that are encoded
        self.work: Generator[float, None, torch.Tensor] | None = None
        self.share = 0.0

    def advance(
        self,
        model: Qwen2_5_VLCausalModel,
        reading: Items[Sequence],
        seconds: float,
        is_urgent: Callable[[], bool],
    ) -> None:
        """Work for about this long, at least one part; begin with the next media of the oldest
        prompt if nothing is begun. Raises what goes wrong after dropping the work."""
        if self.work is None:
            # an adapter may have an encoder of its own
            oldest = next(s for s in reading if s.media_to_encode())
            self.visual = oldest.model_of(model).visual
            alike = [s for s in reading if s.model_of(model).visual is self.visual]
            self.begin(self.visual, alike, is_urgent)
        assert self.work is not None
        assert self.visual is not None
        start = last = time.perf_counter()
        try:
            while True:
                self.count(next(self.work))
                now = time.perf_counter()
                if now - start + (now - last) > seconds:
                    return
                last = now
        except StopIteration as stop:
            self.finish(self.visual, stop.value)
        except BaseException:
            self.work = self.visual = None
            raise

    def count(self, share: float) -> None:
        """Tell those who wait how much of the work is done."""
        for medium, owners in self.owners.items():
            for sequence in owners:
                amount = (share - self.share) * medium.num_patches
                try:
                    sequence.outbox.advance(f"{medium.kind}s", amount)
                except Exception as error:
                    self.faults[sequence] = error
        self.share = share

    def begin(
        self,
        visual: Qwen2_5_VLVisionModel,
        reading: Items[Sequence],
        is_urgent: Callable[[], bool],
    ) -> None:
        release_after(reading[0])  # what decoding the pictures has left
        weight = visual.patch_embed.proj.weight
        is_exact = not weight.is_cpu or has_compiled_layers(weight.dtype, weight.device)
        self.owners = choose_media(reading, max_patches_together(is_exact))
        patches = Patches([part for medium in self.owners for part in medium.patches])
        grids = [medium.grid for medium in self.owners]
        for medium in self.owners:
            medium.patches = []  # the encoder lets go of what it has read
        if is_watched(visual):
            self.work = encode_whole(visual, patches, grids)
        else:
            self.work = visual.encode_in_parts(patches, grids, is_urgent)
        self.share = 0.0

    def finish(self, visual: Qwen2_5_VLVisionModel, tokens: torch.Tensor) -> None:
        """Give every prompt, and every visual cache, the tokens of its media."""
        self.work = self.visual = None
        for sequence in {owners[0]: None for owners in self.owners.values() if owners}:
            release_after(sequence)
        parts = tokens.split([medium.stop - medium.start for medium in self.owners])
        for (medium, owners), part in zip(self.owners.items(), parts, strict=True):
            medium.tokens = part.clone() if len(parts) > 1 else part
            for sequence in owners:
                if sequence.visual_cache is not None:
                    key = item_key(visual, medium, sequence.salt)
                    sequence.visual_cache.keep(key, medium.tokens)
                for other in sequence.media:
                    if other.tokens is None and is_same(other, medium):
                        other.tokens, other.patches = medium.tokens, []
        self.owners = {}

    def replace(self, sequence: Sequence, heir: Sequence | None) -> None:
        """Note that a sequence is over and who goes on with its prompt; stop work that nobody needs
        any more."""
        for owners in self.owners.values():
            if sequence in owners:
                others = [one for one in owners if one is not sequence]
                owners[:] = [*others, heir] if heir else others
        if not any(self.owners.values()):
            self.work, self.visual, self.owners = None, None, {}

    def find_known(self, model: Qwen2_5_VLCausalModel, sequence: Sequence) -> None:
        """Take from the visual cache what it has of a prompt's media."""
        if sequence.visual_cache is None:
            return
        visual = sequence.model_of(model).visual
        for medium in sequence.media_to_encode():
            if medium.patches:
                key = item_key(visual, medium, sequence.salt)
                medium.tokens = sequence.visual_cache.find(key)
                if medium.tokens is not None:
                    medium.patches = []
                    sequence.outbox.skip(f"{medium.kind}s", medium.num_patches)


def is_watched(visual: Qwen2_5_VLVisionModel) -> bool:
    """Whether somebody has hooks on calls of the encoder as a whole, or put another function in
    their place."""
    return bool("forward" in vars(visual) or visual._forward_hooks or visual._forward_pre_hooks)


def encode_whole(
    visual: Qwen2_5_VLVisionModel, patches: Patches, grids: Items[Grid]
) -> Generator[float, None, torch.Tensor]:
    """`encode_in_parts` in one part."""
    tokens = visual(patches, grids)
    yield 1.0
    return tokens  # type: ignore[no-any-return]


def is_same(one: Medium, other: Medium) -> bool:
    """Whether two media stand for the same numbers, as far as their digests are known."""
    return one.digest is not None and other.digest is not None and one.key() == other.key()


def choose_media(reading: Items[Sequence], max_patches: int) -> Owners:
    """Media for the encoder with the prompts that have them: the oldest prompt's next one, and
    those after it up to `max_patches` together."""
    chosen: Owners = {}
    known: dict[object, Medium] = {}
    num_patches = 0
    for sequence in reading:
        is_shared = sequence.visual_cache is not None or sequence.prefixes is not None
        for medium in sequence.media_to_encode():
            key = medium.key() if is_shared else medium
            if key in known:
                chosen[known[key]].append(sequence)
            elif not chosen or num_patches + medium.num_patches <= max_patches:
                known[key] = medium
                chosen[medium] = [sequence]
                num_patches += medium.num_patches
            else:
                max_patches = 0  # nothing behind this one goes first; what is chosen may come again
    return chosen

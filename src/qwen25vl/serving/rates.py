"""How fast this machine serves, measured as it goes, and how long a new request would wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen25vl.serving.job import Job

LATEST = 0.3  # the weight of the latest request in the averages
MIN_SECONDS = 1.0  # of Retry-After


class Rates:
    """Averages: seconds for a patch, for a token of a prompt, and of a whole answer. None until
    the first was measured."""

    def __init__(self) -> None:
        self.patch_seconds: float | None = None
        self.prompt_seconds: float | None = None
        self.answer_seconds: float | None = None

    def learn(self, job: Job) -> None:
        """Take the stages of a request that is over."""
        timings = job.watch.timings(1)
        unread = job.num_tokens - job.num_cached
        if job.num_patches and timings.vision:
            self.patch_seconds = average(self.patch_seconds, timings.vision / job.num_patches)
        if unread > 0 and timings.prefill:
            self.prompt_seconds = average(self.prompt_seconds, timings.prefill / unread)
        if timings.decode:
            self.answer_seconds = average(self.answer_seconds, timings.decode)

    def first_token_seconds(self, num_tokens: int, num_patches: int) -> float:
        """Until the first token of a request for which nothing is kept, on an idle server."""
        patches = num_patches * (self.patch_seconds or 0.0)
        return patches + num_tokens * (self.prompt_seconds or 0.0)

    def queue_seconds(self, active: Sequence[Job], waiting: Sequence[Job]) -> float:
        """Until a request that comes now is begun: all before it must be read, and as many answers
        end as requests wait, and one more."""
        unread = [*waiting, *(job for job in active if job.first is None)]
        reading = sum(self.first_token_seconds(j.num_tokens, j.num_patches) for j in unread)
        ending = (len(waiting) + 1) * (self.answer_seconds or 0.0) / max(1, len(active))
        return reading + ending

    def retry_seconds(self, active: Sequence[Job], waiting: Sequence[Job]) -> float:
        """What Retry-After says. It is not cut to what some client accepts: one that comes back
        too early is refused again."""
        return max(MIN_SECONDS, self.queue_seconds(active, waiting))


def average(before: float | None, latest: float) -> float:
    return latest if before is None else LATEST * latest + (1 - LATEST) * before

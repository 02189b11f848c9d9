"""How many threads compute a step that only writes: as many as make it fastest, as measured.

Such a step is hundreds of short parallel regions, and each ends with its slowest thread. Beside
another busy process one of the threads waits for a core in every few regions, and the others wait
for it: one thread fewer is then faster, several times for a small model. A small model may gain
nothing from a second thread at any time. So a few steps in a while are computed with the next
smaller or larger number, and whatever is faster is kept. No answer depends on it: a kernel gives
the same bits with any number of threads.

Reading prompts and encoding pictures always take all threads: their regions are long, and the
threads share them out as they go.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

STEPS_OF_TRIAL = 3
FEWEST_STEPS, MOST_STEPS = 16, 512  # between two trials: twice as many after each that lost
GAIN = 0.95  # of the time: a number that needs no more is better
SURPRISE = 1.3  # times as long as before: tried at once
LOST = 1.5  # times as long in the first step: no further step is tried


def choices(most: int) -> list[int]:
    """Numbers of threads worth trying, the largest first: all, all but one, and then fractions."""
    parts = {most, most - 1, most * 3 // 4, most // 2, most // 4, 1}
    return sorted((count for count in parts if count >= 1), reverse=True)


@dataclass
class ThreadCount:
    """The number for steps with about so many rows. most: the process's own number of threads."""

    most: int
    place: int = 0  # of the number in use, among the choices
    trial: int | None = None  # the place that is tried
    is_upward: bool = False  # whether the next trial is of more threads
    wait: int = FEWEST_STEPS
    steps_left: int = FEWEST_STEPS
    usual: float | None = None  # seconds of a step when the last trial ended
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    tried: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.choices = choices(self.most)

    def choose(self) -> int:
        """Threads for the next step."""
        return self.choices[self.place if self.trial is None else self.trial]

    def learn(self, seconds: float) -> None:
        """Take the time of the step that was computed with what `choose` said."""
        if self.trial is not None:
            self.tried.append(seconds)
            self.judge()
            return
        self.recent.append(seconds)
        self.steps_left -= 1
        if self.is_surprised():
            self.wait = FEWEST_STEPS
            self.steps_left = 0
            self.is_upward = False
        if self.steps_left <= 0 and len(self.recent) >= STEPS_OF_TRIAL:
            self.start_trial()

    def is_surprised(self) -> bool:
        """Whether steps take much longer than they did: the machine has other work now."""
        latest = [*self.recent][-STEPS_OF_TRIAL:]
        full = len(latest) == STEPS_OF_TRIAL
        return full and self.usual is not None and min(latest) > SURPRISE * self.usual

    def start_trial(self) -> None:
        steps = (-1, 1) if self.is_upward else (1, -1)
        places = [self.place + step for step in steps]
        self.trial = next((at for at in places if 0 <= at < len(self.choices)), None)
        self.is_upward = not self.is_upward
        self.usual = median(self.recent)
        self.steps_left = self.wait
        self.tried.clear()

    def judge(self) -> None:
        """Keep the number that is tried, or return to the one before."""
        assert self.trial is not None
        usual = median(self.recent)
        is_lost = self.tried[0] > LOST * usual
        if len(self.tried) < STEPS_OF_TRIAL and not is_lost:
            return
        if median(self.tried) < GAIN * usual:
            self.is_upward = self.trial < self.place  # go on in the same direction
            self.place = self.trial
            self.wait = FEWEST_STEPS
            self.recent.clear()
            self.recent.extend(self.tried)
            self.usual = median(self.tried)
        else:
            self.wait = min(2 * self.wait, MOST_STEPS)
        self.steps_left = self.wait
        self.trial = None


class ThreadCounts:
    """One ThreadCount for each order of magnitude of rows."""

    def __init__(self) -> None:
        self.counts: dict[int, ThreadCount] = {}

    def of(self, num_rows: int, most: int) -> ThreadCount:
        """The one for steps of `num_rows` rows in a process with `most` threads."""
        size = num_rows.bit_length()
        if size not in self.counts or self.counts[size].most != most:
            self.counts[size] = ThreadCount(most)
        return self.counts[size]

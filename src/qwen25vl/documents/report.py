"""How far a job is, and what it took."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from qwen25vl.documents.items import Item
from qwen25vl.documents.results import Result

POWERCAP = Path("/sys/class/powercap")


class Report:
    """num_done: answers of this run; num_skipped: inputs that were there already, num_failed_before
    of them without an answer. kinds: of failures, with how many there are."""

    def __init__(self, num_sources: int, *, meter: EnergyMeter | None = None) -> None:
        self.num_sources, self.num_sources_read = num_sources, 0
        self.num_done = self.num_failed = self.num_skipped = self.num_failed_before = 0
        self.num_cut = self.num_tries_again = 0
        self.num_prompt_tokens = self.num_visual_tokens = self.num_answer_tokens = 0
        self.kinds: Counter[str] = Counter()
        self.is_listed = False
        self.meter = EnergyMeter() if meter is None else meter
        self.started = time.monotonic()
        self.ended: float | None = None

    def begin(self) -> None:
        """The backend is ready: from now on time counts."""
        self.started = time.monotonic()
        self.meter.begin()

    def end(self) -> None:
        """All is answered; ending the backend does not count."""
        self.ended = time.monotonic()

    def skip(self, item: Item, is_failed: bool) -> None:
        self.num_skipped += 1
        self.num_failed_before += is_failed

    def count(self, item: Item, result: Result) -> None:
        self.num_tries_again += max(0, result.attempts - 1)
        if result.error is not None:
            self.num_failed += 1
            self.kinds[result.error.kind] += 1
        else:
            self.num_done += item.num_pages
        self.num_cut += result.error is None and result.finish_reason == "length"
        prompt, answer = result.num_tokens
        details = (result.usage or {}).get("prompt_tokens_details") or {}
        self.num_prompt_tokens += prompt
        self.num_answer_tokens += answer
        self.num_visual_tokens += details.get("image_tokens") or 0

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    @property
    def rate(self) -> float:
        """Pages a second."""
        return self.num_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """As the inputs that were read so far say; None before the first."""
        if not self.num_sources_read or not (self.num_done + self.num_failed):
            return None
        left = self.num_sources - self.num_sources_read
        return self.seconds * left / self.num_sources_read

    def line(self) -> str:
        """For a terminal."""
        words = [f"{self.num_done} pages", f"{self.rate:.2f} a second"]
        if self.num_sources > 1:
            words.append(f"input {self.num_sources_read} of {self.num_sources}")
        if (left := self.seconds_left) is not None and left > 0:
            words.append(f"about {span(left)} left")
        if self.num_failed:
            words.append(f"{self.num_failed} failed")
        return ", ".join([*words, f"{self.num_answer_tokens} tokens written"])

    def sentence(self) -> str:
        """At the end."""
        words = [f"{self.num_done} pages in {span(self.seconds)} ({self.rate:.2f} a second)"]
        words.append(f"{self.num_prompt_tokens} tokens read, {self.num_answer_tokens} written")
        if self.num_skipped:
            words.append(f"{self.num_skipped} were there already")
        if self.num_cut:
            words.append(f"{self.num_cut} cut off at the longest answer")
        if (joules := self.meter.joules()) is not None:
            words.append(f"{joules:.0f} J")
        failed = self.num_failed + self.num_failed_before
        if failed:
            kinds = ", ".join(f"{number} {kind}" for kind, number in self.kinds.most_common())
            words.append(f"{failed} failed" + (f" ({kinds})" if kinds else " in an earlier run"))
        return "; ".join(words)

    def summary(self) -> dict[str, Any]:
        return {
            "pages": self.num_done,
            "failed": self.num_failed,
            "failed_by_kind": dict(self.kinds),
            "skipped": self.num_skipped,
            "failed_before": self.num_failed_before,
            "cut_off": self.num_cut,
            "tries_again": self.num_tries_again,
            "seconds": round(self.seconds, 3),
            "pages_per_second": round(self.rate, 4),
            "prompt_tokens": self.num_prompt_tokens,
            "visual_tokens": self.num_visual_tokens,
            "completion_tokens": self.num_answer_tokens,
            "joules": self.meter.joules(),
        }


class EnergyMeter:
    """Joules of the processor packages since `begin`, of the whole machine; None where the system
    does not say them, which without privileges is the rule."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        self.zones = sorted(folder.glob("intel-rapl:?")) if folder.is_dir() else []
        self.last: dict[Path, int] = {}
        self.total = 0.0

    def begin(self) -> None:
        self.last = self.read()
        self.total = 0.0

    def read(self) -> dict[Path, int]:
        try:
            return {zone: int((zone / "energy_uj").read_text()) for zone in self.zones}
        except (OSError, ValueError):
            return {}

    def joules(self) -> float | None:
        """To be called now and then: the counters wrap after some minutes of full load."""
        now = self.read()
        if not now or now.keys() != self.last.keys():
            return None
        for zone, value in now.items():
            gained = value - self.last[zone]
            if gained < 0:
                gained += int((zone / "max_energy_range_uj").read_text())
            self.total += gained / 1e6
        self.last = now
        return round(self.total, 1)


def span(seconds: float) -> str:
    """3 h 20 min, 5 min 10 s, 12 s"""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole} s" if minutes else f"{seconds:.1f} s"

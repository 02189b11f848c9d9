"""What is lost or damaged in a video file, and whether that is a warning or an error."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from qwen25vl.errors import MediaFormatError

MAX_MISSING_PART = 0.1


@dataclass
class Damage:
    """Collected while a file is read.

    lost, concealed: frames that did not come out of the decoder, and those whose missing parts it
    guessed, as timestamps (as numbers where a file has none). cut_off: how the file ends too early,
    in words; missing_part: how much of it is not there, 0 to 1.
    """

    lost: set[int] = field(default_factory=set)
    concealed: set[int] = field(default_factory=set)
    cut_off: str = ""
    missing_part: float = 0.0

    def check_end(self, strict: bool | None, name: str) -> None:
        """Raise MediaFormatError where too much is missing at the end;
        strict False reads what is there."""
        most = {None: MAX_MISSING_PART, True: 0.0, False: 1.0}[strict]
        if self.cut_off and self.missing_part > most:
            remedy = "" if strict else "; strict=False reads what is there"
            raise MediaFormatError(f"{name} is cut off: {self.cut_off}{remedy}")

    def report(self, strict: bool | None, num_frames: int, name: str) -> None:
        """One warning about everything that was found, or with strict a MediaFormatError."""
        concealed = len(self.concealed - self.lost)
        found = [f"is cut off: {self.cut_off}"] if self.cut_off else []
        if self.lost or concealed:
            lost = f"{len(self.lost)} of its {num_frames} frames lost"
            found.append(f"is damaged: {lost}, {concealed} concealed by the decoder")
        if not found:
            return
        message = f"{name} {' and '.join(found)}"
        if strict:
            raise MediaFormatError(message)
        stand_ins = "; a neighbour stands in for each lost frame" if self.lost else ""
        warnings.warn(message + stand_ins, stacklevel=3)

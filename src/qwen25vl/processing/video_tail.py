"""Whether a video file is there to its end.

What a container announces is compared with what the file has: the place of every sample in MP4 and
QuickTime, the size of the whole in Matroska and AVI, and the duration in all of them. An edit list
shortens the duration and leaves the samples; a soundtrack may be longer than the pictures.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from qwen25vl.processing.damage import Damage

MIN_MISSING_SECONDS = 0.5
MIN_MISSING_PART = 0.05
# the file states none
ESTIMATED_DURATION = (
    "mpeg",
    "mpegts",
    "mpegvideo",
    "m4v",
    "h264",
    "hevc",
    "dv",
)
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def find_cut(
    file: BinaryIO, container: Any, stream: Any, end_seconds: float, damage: Damage
) -> None:
    """Note in `damage` how much is missing;
    end_seconds is where the last packet of any stream ends."""
    format_name = container.format.name
    file_bytes = file.seek(0, io.SEEK_END)
    stated_seconds = (container.duration or 0) / 1e6
    if "matroska" not in format_name:
        stated_seconds += max(container.start_time or 0, 0) / 1e6
    missing_seconds = stated_seconds - end_seconds
    places = (
        [entry.pos + entry.size for entry in stream.index_entries]
        if format_name.startswith("mov")
        else []
    )
    num_missing = sum(place > file_bytes for place in places)
    if num_missing:
        damage.missing_part = num_missing / len(places)
        damage.cut_off = f"{num_missing} of its {len(places)} frames are not there"
        return
    if format_name in ESTIMATED_DURATION:
        return
    tolerance = max(MIN_MISSING_SECONDS, MIN_MISSING_PART * stated_seconds)
    if announced_bytes(file) > file_bytes and stream.average_rate:
        tolerance = min(tolerance, 0.5 / float(stream.average_rate))
    if missing_seconds > tolerance:
        damage.missing_part = missing_seconds / stated_seconds
        damage.cut_off = (
            f"it ends after {end_seconds:.1f} of the {stated_seconds:.1f} seconds it announces"
        )


def announced_bytes(file: BinaryIO) -> int:
    """How long a Matroska or RIFF (AVI, WebP) file says it is; 0 where it does not say."""
    file.seek(0)
    head = file.read(4096)
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:8], "little")
    if not head.startswith(EBML):
        return 0
    size, at = read_ebml_size(head, 4)
    at += size
    if head[at : at + 4] != SEGMENT:
        return 0
    size, at = read_ebml_size(head, at + 4)
    return at + size if size else 0


def read_ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """The variable-length size at `at`, 0 for "unknown" (all bits set), and where it ends."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    is_unknown = length > 8 or value == (1 << 7 * length) - 1
    return 0 if is_unknown else value, at + length

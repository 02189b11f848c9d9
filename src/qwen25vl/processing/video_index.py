"""The frames of a video file in the order they are shown, found without decoding all of them.

The packets' timestamps, sorted, number the frames, whatever the container claims about their count
and rate (B-frames are stored out of order, AVI headers lie, phones record at variable rates). Not
every packet is a frame that is shown:

- an edit list hides packets that are only there to be decoded, and these may be the keyframes that
  others need;
- frames shown before the first keyframe may refer to frames that the file does not have; the
  decoder is asked;
- VP8 and VP9 store frames that only others refer to.

Nor has every frame a packet: where bytes were lost,
the hole in the timestamps is filled with lost frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np

from qwen25vl.errors import MediaFormatError, MediaSizeError
from qwen25vl.processing.damage import Damage
from qwen25vl.processing.video_container import (
    demux,
    import_av,
    open_container,
    reading,
    refuse_damage,
    video_stream,
)
from qwen25vl.processing.video_tail import find_cut

MAX_RATE_ERROR = 0.05
# between two blocks of Matroska lie their headers, or that of a cluster
MAX_BLOCK_HEADER_BYTES = 64
HOLE_INTERVALS = 1.5
MAX_REORDERED_FRAMES = 16
NO_PTS = -(1 << 63)
# their decoders can start without a keyframe, and drop what is not whole
RECOVERING = ("h264", "hevc", "vvc")


@dataclass(frozen=True)
class Packet:
    """pts: in the stream's time base, NO_PTS where none is stated. is_visible: its frame is shown.
    follows_loss: bytes before it are lost."""

    pts: int
    is_keyframe: bool
    is_visible: bool
    follows_loss: bool


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a file in the order they are shown.

    pts and keyframes are in the stream's time base, ascending; pts is empty where the file has no
    timestamps, which then are made from the rate. Hidden keyframes count, as decoding may start
    there. times are seconds after the first frame; fps is the mean rate. damage: what is known to
    be lost; decoding adds to it.
    """

    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    times: tuple[float, ...]
    fps: float
    damage: Damage = field(default_factory=Damage)


def read_index(file: BinaryIO, name: str, most: int | None = None) -> FrameIndex:
    """Number the frames of a video file. Raises MediaFormatError for a file without video,
    MediaSizeError for one of more than `most` packets of it."""
    damage = Damage()
    with reading(name), open_container(file) as container:
        stream = video_stream(container, name)
        time_base = float(stream.time_base)
        packets, end_seconds = read_packets(container, stream, name, most)
        find_cut(file, container, stream, end_seconds, damage)
        stated_fps = float(stream.average_rate or stream.guessed_rate or 0)
    pts = [packet.pts for packet in packets if packet.is_visible]
    keyframes = keyframe_times(packets)
    if not keyframes or NO_PTS in pts or len(set(pts)) < len(pts):
        return count_frames(file, keyframes, stated_fps, damage, name)
    visible = drop_undecodable(file, packets, set(pts), name)
    if not visible:
        raise MediaFormatError(f"{name} holds no frames")
    shown = sorted(visible)
    if any(packet.follows_loss for packet in packets):
        shown = fill_holes(packets, shown, stated_fps * time_base, damage)
    if shown[0] < keyframes[0]:
        keyframes = (shown[0], *keyframes)  # where decoding starts in any case
    times = tuple((time - shown[0]) * time_base for time in shown)
    return FrameIndex(tuple(shown), keyframes, times, mean_rate(times, stated_fps), damage)


def keyframe_times(packets: Sequence[Packet]) -> tuple[int, ...]:
    """The timestamps of the keyframes, hidden ones included."""
    stated = {packet.pts for packet in packets if packet.is_keyframe}
    return tuple(sorted(stated - {NO_PTS}))


def too_many_frames(name: str, most: int) -> MediaSizeError:
    return MediaSizeError(f"{name} has more than {most} frames, the most that are read here")


def read_packets(
    container: Any, stream: Any, name: str, most: int | None
) -> tuple[list[Packet], float]:
    """The packets of a stream in the order of decoding,
    and the second at which the last of any stream ends."""
    packets, end_seconds = [], 0.0
    file_bytes = container.size
    has_contiguous_blocks = "matroska" in container.format.name
    last_byte, is_after_gap = None, False
    for packet in demux(container):
        if packet.size == 0:
            continue
        if has_contiguous_blocks and packet.pos is not None:
            is_after_gap |= (
                last_byte is not None and packet.pos - last_byte > MAX_BLOCK_HEADER_BYTES
            )
            last_byte = packet.pos + packet.size
        if (
            packet.is_corrupt
            and packet.pos is not None
            and 0 < file_bytes <= packet.pos + packet.size
        ):
            continue  # the file ends within it
        if packet.pts is not None:
            end_seconds = max(
                end_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base)
            )
        if packet.stream_index == stream.index:
            is_visible = not packet.is_discard and is_shown(packet, stream.codec_context.name)
            follows_loss = is_after_gap or packet.is_corrupt
            pts = NO_PTS if packet.pts is None else packet.pts
            packets.append(Packet(pts, packet.is_keyframe, is_visible, follows_loss))
            if most is not None and len(packets) > most:
                raise too_many_frames(name, most)
            is_after_gap = False
    return packets, end_seconds


def is_shown(packet: Any, codec: str) -> bool:
    """False for a packet of VP8 or VP9 whose only frame is there for others to refer to."""
    if codec not in ("vp8", "vp9", "libvpx", "libvpx-vp9"):
        return True
    data = memoryview(packet)
    first, last = data[0], data[-1]
    if "vp9" not in codec:
        return bool(first & 0x10)
    if last & 0xE0 == 0xC0:  # the marker of a superframe: hidden frames together with a shown one
        return True
    bits = f"{first:08b}"
    header = bits[5:] if bits[2:4] == "11" else bits[4:]  # profile 3 has a reserved bit more
    shows_existing, shows_this = header[0] == "1", header[2] == "1"
    return shows_existing or shows_this


def drop_undecodable(
    file: BinaryIO, packets: Sequence[Packet], visible: set[int], name: str
) -> set[int]:
    """Without the frames at the beginning that refer to what the file does not have.

    Frames stored before the first keyframe, or after it but shown before it, are decoded to see
    which come out; so is the first keyframe of a codec that may take several frames to recover.
    """
    start = next(position for position, packet in enumerate(packets) if packet.is_keyframe)
    first = packets[start].pts
    unled = visible - {packet.pts for packet in packets[start:]}
    leading = {pts for pts in visible if pts < first} | unled
    last = max(first, *leading) if leading else first
    decodable: set[int] = set()
    with reading(name), open_container(file) as container:
        stream = video_stream(container, name)
        stream.thread_type = "NONE"  # threads may swallow the error of the first packet
        if not leading:
            refuse_damage(stream)
        may_recover = stream.codec_context.name in RECOVERING
        if not leading and not may_recover:
            return visible
        for packet in demux(container, stream):
            if not may_recover and packet.pts in unled:
                continue
            try:
                frames = packet.decode()
            except import_av().FFmpegError:
                if may_recover or not leading:  # damage, which is told when the frames are read
                    return visible
                continue
            decodable |= {frame.pts for frame in frames if not frame.is_corrupt}
            reached = [frame.pts for frame in frames if frame.pts is not None and frame.pts >= last]
            if reached:
                return {pts for pts in visible if pts in decodable or pts >= reached[0]}
    return visible & decodable


def frame_interval(shown: Sequence[int], rate: float) -> float:
    """From one frame to the next, in the stream's time base: as stated, else as most frames lie;
    0 where nothing tells."""
    if rate:
        return 1 / rate
    return float(np.median(np.diff(shown))) if len(shown) > 1 else 0.0


def fill_holes(
    packets: Sequence[Packet], shown: list[int], rate: float, damage: Damage
) -> list[int]:
    """Timestamps with those of lost frames between them, where bytes are lost and the timestamps
    have a hole.

    rate: frames per unit of the stream's time base as stated, 0 where nothing is.
    """
    step = frame_interval(shown, rate)
    visible = [packet for packet in packets if packet.is_visible]
    borders = [
        sorted((before.pts, after.pts)) for before, after in pairwise(visible) if after.follows_loss
    ]
    reorder = MAX_REORDERED_FRAMES * step
    filled: list[int] = []
    for first, last in pairwise(shown):
        is_near = any(low - reorder <= first and last <= high + reorder for low, high in borders)
        if not is_near or not last - first > HOLE_INTERVALS * step > 0:
            continue
        num_missing = round((last - first) / step) - 1
        if num_missing <= len(shown):
            filled += [
                first + round(k * (last - first) / (num_missing + 1))
                for k in range(1, num_missing + 1)
            ]
    damage.lost.update(filled)
    return sorted({*shown, *filled})


def count_frames(
    file: BinaryIO, keyframes: tuple[int, ...], fps: float, damage: Damage, name: str
) -> FrameIndex:
    """The index of a file whose packets do not tell: all of it is decoded to count.

    Frames may have timestamps where not all packets have one.
    """
    with reading(name), open_container(file) as container:
        stream = video_stream(container, name)
        time_base = float(stream.time_base)
        pts = [frame.pts for frame in decode_all(container, stream, damage)]
    if not pts:
        raise MediaFormatError(f"{name} holds no frames")
    has_times = None not in pts and all(first < second for first, second in pairwise(pts))
    if has_times and not damage.lost and not damage.concealed:
        times = tuple((time - pts[0]) * time_base for time in pts)
        keyframes = (pts[0], *(time for time in keyframes if time > pts[0]))
        return FrameIndex(tuple(pts), keyframes, times, mean_rate(times, fps), damage)
    known = [(number, time * time_base) for number, time in enumerate(pts) if time is not None]
    if len(known) > 1 and known[-1][1] > known[0][1]:
        measured = (known[-1][0] - known[0][0]) / (known[-1][1] - known[0][1])
        fps = fps if abs(fps - measured) <= MAX_RATE_ERROR * measured else measured
    if not fps:
        raise MediaFormatError(f"{name} has neither timestamps nor a frame rate")
    return FrameIndex((), (), tuple(i / fps for i in range(len(pts))), fps, damage)


def decode_all(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """Every frame that can be decoded, in order;
    damage is noted by the number of the packet or the frame."""
    number, is_decodable = 0, False
    for position, packet in enumerate(demux(container, stream)):
        is_decodable |= position == 0 and packet.is_keyframe  # else the beginning cannot be
        try:
            frames = packet.decode()
        except import_av().FFmpegError:
            if is_decodable or number:
                damage.lost.add(position)
            continue
        for frame in frames:
            if frame.is_corrupt:
                damage.concealed.add(number)
            number += 1
            yield frame


def mean_rate(times: Sequence[float], stated_fps: float) -> float:
    """The stated rate where the timestamps bear it out; containers round timestamps, and some state
    a wrong rate."""
    measured = (len(times) - 1) / times[-1] if len(times) > 1 else stated_fps or 1.0
    return stated_fps if abs(stated_fps - measured) <= MAX_RATE_ERROR * measured else measured


def present_pts(index: FrameIndex, number: int) -> int:
    """The timestamp of a frame, or of the nearest one before it that is not lost."""
    present = number
    while present > 0 and index.pts[present] in index.damage.lost:
        present -= 1
    return index.pts[present]

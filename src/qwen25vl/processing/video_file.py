"""Picking single frames out of a video file with PyAV, exactly and without decoding more than they need.

A first pass reads the packets without decoding them: their timestamps, sorted, number the frames as they are shown,
whatever the container claims about their count and rate (B-frames are stored out of order, AVI headers lie, phones
record at variable rates). The second pass decodes: it seeks to the last keyframe at or before a wanted frame where
that lies ahead, and on the way there skips frames that no other frame refers to.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from qwen25vl.errors import DependencyError, MediaFormatError, Qwen25VLError

DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,mpegvideo,m4v,h264,hevc,ivf,mxf,rm,dv,nut"  # no playlists
READ_BUFFER_BYTES = 1 << 20
MAX_RATE_ERROR = 0.05
MIN_MISSING_SECONDS = 0.5
MIN_MISSING_PART = 0.05


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a file in the order they are shown.

    pts and keyframes are in the stream's time base, ascending; pts is empty where the file has no timestamps, which
    then are made from the rate. times are seconds after the first frame; fps is the mean rate.
    """

    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    times: tuple[float, ...]
    fps: float


def read_index(file: BinaryIO, name: str) -> FrameIndex:
    """Number the frames of a video file. Raises MediaFormatError for a file without video, or a cut-off one."""
    with reading(name), open_container(file) as container:
        stream = video_stream(container, name)
        time_base = float(stream.time_base)
        packets, end_seconds = [], 0.0
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None:
                end_seconds = max(end_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index and not packet.is_discard:
                packets.append((packet.pts, packet.is_keyframe))
        check_end(file, container, stream, len(packets), end_seconds, name)
        stated_fps = float(stream.average_rate or stream.guessed_rate or 0)
    if any(pts is None for pts, _ in packets) or len({pts for pts, _ in packets}) < len(packets):
        return count_frames(file, stated_fps, name)
    keyframes = tuple(sorted(pts for pts, is_keyframe in packets if is_keyframe))
    pts = tuple(sorted(pts for pts, _ in packets if keyframes and pts >= keyframes[0]))
    if not pts:
        raise MediaFormatError(f"{name} holds no frames")
    times = tuple((p - pts[0]) * time_base for p in pts)
    return FrameIndex(pts, keyframes, times, mean_rate(times, stated_fps))


def count_frames(file: BinaryIO, fps: float, name: str) -> FrameIndex:
    """The index of a file without usable timestamps: all of it is decoded to count."""
    with reading(name), open_container(file) as container:
        num_frames = sum(1 for _ in container.decode(video_stream(container, name)))
    if not num_frames or not fps:
        raise MediaFormatError(f"{name} {'holds no frames' if fps else 'has neither timestamps nor a frame rate'}")
    return FrameIndex((), (), tuple(i / fps for i in range(num_frames)), fps)


def mean_rate(times: Sequence[float], stated_fps: float) -> float:
    """The stated rate where the timestamps bear it out; containers round timestamps, and some state a wrong rate."""
    measured = (len(times) - 1) / times[-1] if len(times) > 1 else stated_fps or 1.0
    return stated_fps if abs(stated_fps - measured) <= MAX_RATE_ERROR * measured else measured


def check_end(file: BinaryIO, container: Any, stream: Any, num_packets: int, end_seconds: float, name: str) -> None:
    if container.format.name == "gif":
        file.seek(-min(file.seek(0, io.SEEK_END), READ_BUFFER_BYTES), io.SEEK_CUR)
        if not file.read().rstrip(b"\0").endswith(b";"):
            raise MediaFormatError(f"{name} is cut off: it lacks the end mark of a GIF")
    stated_frames = stream.frames if container.format.name.startswith("mov") else 0
    stated_seconds = (container.duration or 0) / 1e6 + max(container.start_time or 0, 0) / 1e6
    if "matroska" in container.format.name:
        stated_seconds = (container.duration or 0) / 1e6
    missing = stated_seconds - end_seconds
    if num_packets < stated_frames or missing > max(MIN_MISSING_SECONDS, MIN_MISSING_PART * stated_seconds):
        seconds = f"{end_seconds:.1f} of the {stated_seconds:.1f} seconds"
        raise MediaFormatError(f"{name} is cut off: it ends after {seconds} it announces")


def decode_frames(file: BinaryIO, index: FrameIndex, wanted: Sequence[int], name: str) -> Iterator[np.ndarray]:
    """The frames with these ascending numbers, one by one: uint8 [H, W, 3], turned upright."""
    with reading(name):
        frames = frames_by_time(file, index, wanted, name) if index.pts else frames_by_count(file, wanted, name)
        for frame in frames:
            if frame.is_corrupt:
                raise MediaFormatError(f"{name} is damaged at second {frame.time or 0:.1f}")
            yield upright_rgb(frame)


def frames_by_count(file: BinaryIO, wanted: Sequence[int], name: str) -> Iterator[Any]:
    with open_container(file) as container:
        decoded = container.decode(video_stream(container, name))
        numbers = set(wanted)
        for number, frame in enumerate(decoded):
            if number in numbers:
                yield from [frame] * wanted.count(number)
            if number >= wanted[-1]:
                return


def frames_by_time(file: BinaryIO, index: FrameIndex, wanted: Sequence[int], name: str) -> Iterator[Any]:
    """Seek ahead where a keyframe allows; where that misses (some containers have no table), start over without."""
    targets = [index.pts[number] for number in wanted]
    done = 0
    for may_seek in (True, False):
        try:
            with open_container(file) as container:
                stream = video_stream(container, name)
                for frame in decode_targets(container, stream, index.keyframes, targets[done:], may_seek):
                    yield frame
                    done += 1
        except import_av().FFmpegError:
            if not may_seek:
                raise
        if done == len(targets):
            return
    where = f"frame {wanted[done]} of {len(index.pts)}"
    raise MediaFormatError(f"{name} is cut off or damaged: {where} can not be decoded")


def decode_targets(
    container: Any, stream: Any, keyframes: Sequence[int], targets: Sequence[int], may_seek: bool
) -> Iterator[Any]:
    """One frame for each ascending timestamp; ends early where one is missed."""
    frames = decode_needed(container, stream, set(targets))
    frame = None
    for target in targets:
        keyframe = keyframes[bisect_right(keyframes, target) - 1]
        if may_seek and keyframe > (keyframes[0] if frame is None else frame.pts):
            frames.close()
            container.seek(keyframe, stream=stream)
            frames, frame = decode_needed(container, stream, set(targets)), None
        if frame is None or frame.pts < target:
            frame = next((f for f in frames if f.pts is not None and f.pts >= target), None)
        if frame is None or (may_seek and frame.pts != target):
            return
        yield frame


def decode_needed(container: Any, stream: Any, targets: set[int]) -> Generator[Any, None, None]:
    for packet in container.demux(stream):
        is_wanted = packet.pts is None or packet.pts in targets
        stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
        yield from packet.decode()


def upright_rgb(frame: Any) -> np.ndarray:
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What FFmpeg reports becomes one kind of error."""
    av = import_av()
    try:
        yield
    except Qwen25VLError:
        raise
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise MediaFormatError(f"{name} is no video, or it is cut off or damaged: {reason}") from error


def import_av() -> Any:
    try:
        import av
    except ImportError:
        raise DependencyError('videos need PyAV: pip install "qwen25vl[video]"') from None
    return av


@contextmanager
def open_container(file: BinaryIO) -> Iterator[Any]:
    """From its beginning, with FFmpeg kept from following playlists to other files and addresses."""
    file.seek(0)
    how: dict[str, Any] = {"buffer_size": READ_BUFFER_BYTES, "metadata_errors": "ignore"}
    with import_av().open(file, options={"format_whitelist": DEMUXERS}, **how) as container:
        yield container


def video_stream(container: Any, name: str) -> Any:
    """The first video stream that is no cover picture."""
    av = import_av()
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise MediaFormatError(f"{name} holds no video" + (", only sound" if container.streams.audio else ""))
    if streams[0].codec_context is None:
        raise MediaFormatError(f"{name} holds video of a kind that can not be decoded")
    streams[0].thread_type = "AUTO"
    return streams[0]

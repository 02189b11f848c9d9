"""Picking single frames out of a video file with PyAV,
exactly and without decoding more than they need.

`read_index` has numbered the frames without decoding. Decoding seeks to the last keyframe at or
before a wanted frame where that lies ahead, and on the way there skips frames that no other frame
refers to. Where a container has no table to seek by, or a wrong one, it starts over without
seeking. Where the decoder meets damage, it goes on from there carefully: every packet is decoded,
what fails is counted, and a neighbour stands in for a lost frame.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.damage import Damage
from qwen25vl.processing.display_matrix import upright_rgb
from qwen25vl.processing.video_container import (
    REFUSE_DAMAGE,
    SILENT_DECODERS,
    demux,
    import_av,
    open_container,
    reading,
    refuse_damage,
    video_stream,
)
from qwen25vl.processing.video_index import FrameIndex, decode_all, present_pts, read_index

__all__ = ["FrameIndex", "decode_frames", "read_index"]

SEEKABLE = ("mov", "matroska")  # formats with a table of keyframes


def decode_frames(
    file: BinaryIO, index: FrameIndex, wanted: Sequence[int], name: str
) -> Iterator[np.ndarray]:
    """The frames with these ascending numbers, one by one: uint8 [H, W, 3], turned upright.

    What is lost or concealed is noted in index.damage.
    Raises MediaFormatError where no frame can be decoded.
    """
    with reading(name):
        find = frames_by_time if index.pts else frames_by_count
        for frame in find(file, index, wanted, name):
            yield upright_rgb(frame)


def frames_by_count(
    file: BinaryIO, index: FrameIndex, wanted: Sequence[int], name: str
) -> Iterator[Any]:
    with open_container(file) as container:
        decoded = decode_all(container, video_stream(container, name), index.damage)
        numbers = set(wanted)
        for number, frame in enumerate(decoded):
            if number in numbers:
                yield from [frame] * wanted.count(number)
            if number >= wanted[-1]:
                return


def frames_by_time(
    file: BinaryIO, index: FrameIndex, wanted: Sequence[int], name: str
) -> Iterator[Any]:
    """Seek ahead where a keyframe allows; where that misses start over without, and carefully where
    it is damaged."""
    targets = [present_pts(index, number) for number in wanted]
    done = 0
    for may_seek in (True, False):
        is_damaged = False
        try:
            with open_container(file) as container:
                stream = video_stream(container, name)
                refuse_damage(stream)
                for frame in decode_targets(
                    container, stream, index.keyframes, targets[done:], may_seek
                ):
                    if is_damaged := frame.is_corrupt:
                        break
                    yield frame
                    done += 1
        except import_av().FFmpegError:
            is_damaged = True
        if done == len(targets):
            return
        if is_damaged:
            break
    with open_container(file) as container:
        yield from decode_carefully(container, index, targets[done:], is_damaged, name)


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
        if frame is None or frame.pts != target:
            return
        yield frame


def decode_needed(container: Any, stream: Any, targets: set[int]) -> Generator[Any, None, None]:
    for packet in demux(container, stream):
        is_wanted = packet.pts is None or packet.pts in targets
        stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
        yield from packet.decode()


def decode_carefully(
    container: Any, index: FrameIndex, targets: Sequence[int], may_seek: bool, name: str
) -> Iterator[Any]:
    """A frame for each ascending timestamp:
    its own, or where that is lost the nearest one that was decoded."""
    stream = video_stream(container, name)
    stream.thread_type = "NONE"  # so that an error belongs to the packet that was just sent
    may_seek = may_seek and container.format.name.startswith(SEEKABLE)
    frames = decode_noting(container, stream, index, index.pts[0])
    previous = current = None
    for target in targets:
        keyframe = index.keyframes[max(bisect_right(index.keyframes, target) - 1, 0)]
        if may_seek and keyframe > (index.keyframes[0] if current is None else current.pts):
            frames.close()
            container.seek(keyframe, stream=stream)
            frames = decode_noting(container, stream, index, keyframe)
            previous, current = current or previous, None
        while current is None or current.pts < target:
            following = next(frames, None)
            if following is None:
                break
            previous, current = current or previous, following
        near = [frame for frame in (previous, current) if frame is not None]
        if not near:
            raise MediaFormatError(
                f"{name} is damaged: none of its {len(index.pts)} frames can be decoded"
            )
        yield min(near, key=lambda frame: abs(frame.pts - target))


def decode_noting(
    container: Any, stream: Any, index: FrameIndex, first: int
) -> Generator[Any, None, None]:
    """Every frame from here on that can be decoded; those that are lost or concealed are noted.

    first: the timestamp from which on frames can be expected. A second decoder, which refuses what
    is damaged, watches those that say nothing.
    """
    av = import_av()
    damage: Damage = index.damage
    shown = {pts for pts in index.pts if pts >= first}
    watcher = None
    if stream.codec_context.name in SILENT_DECODERS:
        watcher = av.CodecContext.create(stream.codec_context.codec.name, "r")
        watcher.extradata = stream.codec_context.extradata
        watcher.options = REFUSE_DAMAGE
    expected: set[int] = set()
    for packet in demux(container, stream):
        is_shown = packet.pts in shown
        if is_shown:
            expected.add(packet.pts)
        try:
            if watcher is not None and packet.size:
                watcher.decode(packet)
        except av.FFmpegError:
            damage.concealed |= {packet.pts} & shown
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damage.lost |= {packet.pts} & shown
            continue
        for frame in frames:
            if frame.pts is None:
                continue
            damage.lost -= {frame.pts}
            damage.lost |= {pts for pts in expected if pts < frame.pts}
            expected = {pts for pts in expected if pts > frame.pts}
            if frame.is_corrupt:
                damage.concealed.add(frame.pts)
            yield frame
    damage.lost |= expected

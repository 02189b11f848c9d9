"""Videos whose frames carry their number, written in memory; cut, shifted and damaged."""

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np
import torch

WIDTH, HEIGHT, BITS = 96, 64, 8
X265 = "log-level=none:keyint=12:bframes=3:scenecut=0"
CODECS = {
    "h264": ("libx264", {"g": "12"}),
    "h264 open": ("libx264", {"g": "15", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "h264 refresh": ("libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
    "hevc": ("libx265", {"x265-params": X265 + ":open-gop=0"}),
    "hevc open": ("libx265", {"x265-params": X265 + ":open-gop=1"}),
    "mpeg4": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2": ("mpeg2video", {"g": "12", "bf": "2"}),
    "mjpeg": ("mjpeg", {}),
    "vp8": ("libvpx", {"g": "12"}),
    "vp9": ("libvpx-vp9", {"g": "12"}),
}


def drawn(number: int) -> np.ndarray:
    """A frame that carries its number as eight black or white bars."""
    bars = [(number >> bit & 1) * 255 for bit in range(BITS)]
    row = np.array(bars, np.uint8).repeat(WIDTH // BITS)
    return row[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)


def number_of(frame: np.ndarray) -> int:
    columns = frame[..., 0].astype(float).mean(0)
    bars = columns[: len(columns) // BITS * BITS].reshape(BITS, -1).mean(1)
    return sum(1 << bit for bit in range(BITS) if bars[bit] > 127)


def numbers_of(frames: torch.Tensor) -> list[int]:
    return [number_of(frame.permute(1, 2, 0).numpy()) for frame in frames]


def noisy(number: int) -> np.ndarray:
    """A frame that compresses badly, so that each of its packets has bytes enough to damage."""
    noise = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH + 300, 3), np.uint8)
    return drawn(number) // 2 + np.ascontiguousarray(noise[:, number * 3 : number * 3 + WIDTH])


def write_video(
    kind: str = "h264",
    container: str = "mp4",
    *,
    times_ms: Sequence[int] = range(0, 6000, 100),
    draw: Callable[[int], np.ndarray] = drawn,
    matrix: Sequence[int] | None = None,
    sound_seconds: float = 0.0,
    options: dict[str, str] | None = None,
) -> bytes:
    """Sixty frames at ten a second, if nothing else is said. options: of the container."""
    codec, codec_options = CODECS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=10, options=codec_options)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if kind == "mjpeg" else "yuv420p"
        if list(times_ms) != list(range(0, 6000, 100)):
            stream.codec_context.time_base = Fraction(1, 1000)
        if matrix is not None:
            stream.set_display_matrix(list(matrix))
        sound = output.add_stream("aac", rate=16000, layout="mono") if sound_seconds else None
        for number, time in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(draw(number))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            write_sound(output, sound, sound_seconds)
    return file.getvalue()


def write_sound(
    output: av.container.OutputContainer, stream: av.AudioStream, seconds: float
) -> None:
    for start in range(0, int(16000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def cut(data: bytes, container: str, *, first: int = 0, shift: float = 0.0) -> bytes:
    """The packets from `first` on, `shift` seconds earlier and without encoding anything anew.

    In MP4 and QuickTime what then lies before second 0 is hidden by an edit list.
    """
    file = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"} if shift else {}
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(file, "w", format=container, options=options) as output,
    ):
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        ticks = round(shift / stream.time_base)
        for packet in [packet for packet in source.demux(stream) if packet.size][first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, copy
            output.mux(packet)
    return file.getvalue()


def end_edit_after(data: bytes, seconds: float) -> bytes:
    """Shorten the last entry of the edit list of an MP4 file,
    whose durations are in milliseconds."""
    changed = bytearray(data)
    at = changed.find(b"elst") + 8
    num_entries = int.from_bytes(changed[at : at + 4], "big")
    struct.pack_into(">I", changed, at + 4 + (num_entries - 1) * 12, round(seconds * 1000))
    return bytes(changed)


def decode_everything(data: bytes) -> list[tuple[int | None, int]]:
    """What a player shows: (timestamp, number) of every frame that the decoder gives out."""
    shown = []
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            shown += [(frame.pts, number_of(frame.to_ndarray(format="rgb24"))) for frame in frames]
    return shown


def packet_places(data: bytes) -> list[tuple[int, int]]:
    """Where the data of each video packet lies: (offset, length)."""
    with av.open(io.BytesIO(data)) as container:
        bodies = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    places, start = [], 0
    for body in bodies:
        start = data.index(body, start)
        places.append((start, len(body)))
        start += len(body)
    return places

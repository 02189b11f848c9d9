"""Opening a video file with PyAV: which formats, which stream,
and one kind of error for what FFmpeg reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from qwen25vl.errors import DependencyError, MediaFormatError, Qwen25VLError

# no playlists
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mpegvideo,m4v,h264,hevc,ivf,mxf,rm,dv,nut"
READ_BUFFER_BYTES = 1 << 20
REFUSE_DAMAGE = {"err_detect": "crccheck+bitstream+buffer+explode"}
# conceal damage without a mark on the frame
SILENT_DECODERS = ("hevc", "mjpeg", "mpeg1video", "mpeg2video")


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
        raise MediaFormatError(
            f"{name} is not a video, or it is cut off or damaged: {reason}"
        ) from error


def import_av() -> Any:
    try:
        import av
    except ImportError:
        raise DependencyError('videos need PyAV: pip install "qwen25vl[video]"') from None
    return av


@contextmanager
def open_container(file: BinaryIO) -> Iterator[Any]:
    """From its beginning, with FFmpeg kept from following playlists
    to other files and addresses."""
    file.seek(0)
    how: dict[str, Any] = {"buffer_size": READ_BUFFER_BYTES, "metadata_errors": "ignore"}
    with import_av().open(file, options={"format_whitelist": DEMUXERS}, **how) as container:
        yield container


def video_stream(container: Any, name: str) -> Any:
    """The first video stream that is no cover picture."""
    av = import_av()
    streams = [
        s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        raise MediaFormatError(
            f"{name} holds no video" + (", only sound" if container.streams.audio else "")
        )
    if streams[0].codec_context is None:
        raise MediaFormatError(f"{name} holds video in a codec that cannot be decoded")
    streams[0].thread_type = "AUTO"
    return streams[0]


def refuse_damage(stream: Any) -> None:
    """Have a decoder that would conceal damage without a word raise an error instead."""
    if stream.codec_context.name in SILENT_DECODERS:
        stream.codec_context.options = REFUSE_DAMAGE


def demux(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of these streams, or of all.

    Damage may make a stream begin in the middle of a file. PyAV raises IndexError for its packets;
    they are passed over.
    """
    while True:
        try:
            yield from container.demux(*streams)
            return
        except IndexError:
            continue

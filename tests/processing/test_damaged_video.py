"""Files with lost and damaged packets:
the frames, and one warning that says how many are not right."""

import io
import re
import warnings
from collections.abc import Iterator

import av
import pytest
import torch
from videos import cut, decode_everything, noisy, number_of, numbers_of, packet_places, write_video

from qwen25vl.errors import MediaFormatError
from qwen25vl.processing.video import VideoOptions, load_clip
from qwen25vl.processing.video_container import demux
from qwen25vl.processing.video_file import decode_frames, read_index

EVERY_FRAME = VideoOptions(fps=10, resized_height=64, resized_width=96)


def lose(data: bytes, *numbers: int) -> bytes:
    """Zeros in place of some of the video packets."""
    changed = bytearray(data)
    places = packet_places(data)
    for number in numbers:
        at, size = places[number]
        changed[at : at + size] = bytes(size)
    return bytes(changed)


def spoil(data: bytes, number: int) -> bytes:
    """Other bytes in the second half of one video packet."""
    changed = bytearray(data)
    at, size = packet_places(data)[number]
    for place in range(at + size // 2, at + size, 3):
        changed[place] ^= 0x5A
    return bytes(changed)


def garble(data: bytes, number: int) -> bytes:
    """Bytes of 255 in place of all but the header of one video packet."""
    changed = bytearray(data)
    at, size = packet_places(data)[number]
    changed[at + 8 : at + size] = b"\xff" * (size - 8)
    return bytes(changed)


def load_with_one_warning(
    data: bytes, options: VideoOptions = EVERY_FRAME
) -> tuple[torch.Tensor, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = load_clip(data, options, name="clip").frames
    assert len(caught) == 1, [str(warning.message) for warning in caught]
    message = str(caught[0].message)
    assert message.startswith("clip ")
    assert "\n" not in message
    return frames, message


@pytest.mark.parametrize(
    "kind", ["h264", "h264 open", "hevc", "hevc open", "mpeg4", "mpeg2", "mjpeg", "vp9"]
)
def test_whole_files_say_nothing(kind: str) -> None:
    """A warning about a good file teaches people to ignore warnings."""
    container = {"vp9": "webm", "mpeg2": "mpegts"}.get(kind, "mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = write_video(kind, container, draw=noisy)
        for options in (EVERY_FRAME, VideoOptions(nframes=4), VideoOptions(strict=True)):
            load_clip(data, options)


@pytest.mark.parametrize("lost", [(30,), (31, 32), (5, 29, 53)])
@pytest.mark.parametrize("kind", ["h264", "hevc", "mpeg4", "mjpeg"])
def test_lost_packets_are_counted(kind: str, lost: tuple[int, ...]) -> None:
    """One lost packet failed the whole clip, or shifted every frame after it."""
    data = lose(write_video(kind, draw=noisy), *lost)
    num_lost = 60 - len(decode_everything(data))  # with those that could not do without them
    assert num_lost >= len(lost)
    frames, message = load_with_one_warning(data)
    assert len(frames) == 60
    assert f"clip is damaged: {num_lost} of its 60 frames lost" in message
    with pytest.raises(
        MediaFormatError, match=f"clip is damaged: {num_lost} of its 60 frames lost"
    ):
        load_clip(data, VideoOptions(fps=10, strict=True), name="clip")


def test_a_neighbour_stands_in() -> None:
    """A lost frame was black, or the next keyframe's."""
    data = lose(write_video("mjpeg"), 20, 40)
    frames, _ = load_with_one_warning(data)
    numbers = numbers_of(frames)
    assert numbers[20] in (19, 21)
    assert numbers[40] in (39, 41)
    assert [n for n in range(60) if numbers[n] != n] == [20, 40]


def test_a_lost_packet_that_is_not_looked_at_does_not_move_the_others() -> None:
    """Counted without it, the clip had two frames fewer and another rate."""
    whole = write_video("mjpeg", times_ms=range(0, 20000, 100), draw=lambda n: noisy(n % 50))
    clip = load_clip(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damaged = load_clip(lose(whole, 103))
    assert len(damaged.frames) == len(clip.frames) == 40
    assert damaged.sampled_fps == clip.sampled_fps
    assert torch.equal(damaged.frames, clip.frames)


@pytest.mark.parametrize("kind", ["mpeg4", "mpeg2", "mjpeg", "hevc", "h264"])
@pytest.mark.parametrize("number", [13, 30, 36])
def test_concealed_damage_is_told(kind: str, number: int) -> None:
    """Decoders paint over what is missing, some of them without a mark on the frame."""
    harm = garble if kind in ("hevc", "h264") else spoil
    container = "mp4" if kind in ("hevc", "h264") else "matroska"
    data = harm(write_video(kind, container, draw=noisy), number)
    frames, message = load_with_one_warning(data)
    assert len(frames) == 60
    assert re.search(r"[1-9]\d* (of its 60 frames lost|concealed)", message)


def test_a_hole_in_matroska() -> None:
    """Damage to the structure takes several packets away, and left the clip shorter."""
    data = bytearray(write_video(container="matroska", draw=noisy))
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        at, size = packets[30].pos, packets[30].size
    data[at : at + size] = bytes(size)
    frames, message = load_with_one_warning(bytes(data))
    assert len(frames) == 60
    assert " lost" in message


def test_a_hole_in_a_transport_stream() -> None:
    data = bytearray(write_video("mpeg2", "mpegts", draw=noisy))
    packets = len(data) // 188
    for number in range(packets // 2, packets // 2 + 8):
        data[number * 188 : number * 188 + 188] = bytes(188)
    frames, message = load_with_one_warning(bytes(data))
    assert len(frames) == 60
    assert "damaged" in message


def test_damage_to_the_first_keyframe() -> None:
    """What comes before the first good frame has no neighbour on the left."""
    data = lose(write_video(), 0)
    frames, message = load_with_one_warning(data)
    assert len(frames) == 60
    assert "lost" in message


def test_damage_in_hidden_packets_of_an_edit_list() -> None:
    data = lose(cut(write_video(draw=noisy), "mp4", shift=2.4), 30)
    frames, message = load_with_one_warning(data)
    assert len(frames) == 36
    assert "of its 36" in message


def test_nothing_that_can_be_decoded_is_an_error() -> None:
    """Warnings about every frame, and then an empty clip."""
    data = lose(write_video(), *range(60))
    for strict in (None, False, True):
        with pytest.raises(MediaFormatError, match="clip"):
            load_clip(data, VideoOptions(strict=strict), name="clip")


def faststart(data: bytes, container: str) -> bytes:
    """With the index in front, so that a part can be read."""
    if container == "matroska":
        return data
    with av.open(io.BytesIO(data)) as source:
        stream = source.streams.video[0]
        file = io.BytesIO()
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        with av.open(file, "w", format="mp4", options=options) as target:
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    return file.getvalue()


def test_a_file_that_lacks_its_end(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Up to a tenth is a warning; more is refused, unless strict=False asks for what is there."""
    path = tmp_path / "clip.mp4"
    data = write_video(container="matroska", draw=noisy)
    places = packet_places(data)
    short = data[: places[57][0]]
    frames, message = load_with_one_warning(short)
    assert len(frames) in (56, 57)
    assert "cut off" in message
    with pytest.raises(MediaFormatError, match="cut off"):
        load_clip(short, VideoOptions(strict=True))
    half = data[: places[30][0]]
    path.write_bytes(half)
    with pytest.raises(MediaFormatError, match=r"cut off: it ends after .* strict=False"):
        load_clip(path)
    frames, message = load_with_one_warning(half, VideoOptions(fps=10, strict=False))
    assert len(frames) == 30
    assert "cut off" in message


def test_an_mp4_that_lacks_its_last_packets(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The place of every frame is known, and whether the file is long enough for it."""
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    source.write_bytes(write_video("mjpeg"))
    with av.open(source) as old, av.open(target, "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    data = target.read_bytes()
    at, size = packet_places(data)[57]
    frames, message = load_with_one_warning(data[: at + size // 2])
    assert len(frames) == 56
    assert numbers_of(frames)[:28] == list(range(28))
    assert numbers_of(frames)[-1] == 56
    assert "cut off: 3 of its 60 frames are not there" in message


def test_strict_in_a_message_item_may_be_text() -> None:
    options = VideoOptions().override({"strict": "true"})
    assert options.strict is True
    assert options.override({"strict": None}).strict is True
    assert options.override({"strict": False}).strict is False


def test_single_frames_of_a_damaged_file() -> None:
    """The number of a frame does not depend on what else is looked at."""
    data = lose(write_video("mjpeg"), 20)
    file = io.BytesIO(data)
    for wanted in ([5, 50], [20], [19, 21], [20, 20, 45]):
        index = read_index(file, "clip")
        numbers = [number_of(frame) for frame in decode_frames(file, index, wanted, "clip")]
        assert [abs(a - b) for a, b in zip(numbers, wanted, strict=True)] == [
            int(n == 20) for n in wanted
        ]


def test_a_stream_that_begins_in_the_middle() -> None:
    """Damage to a transport stream can look like a new stream, for which PyAV raises IndexError."""

    class Container:
        calls = 0

        def demux(self, *streams: object) -> Iterator[int]:
            self.calls += 1
            yield self.calls
            if self.calls < 3:
                raise IndexError("list index out of range")

    assert list(demux(Container())) == [1, 2, 3]

"""Files whose packets are not their frames:
edit lists, cut beginnings and ends, hidden and missing references."""

import io
import warnings

import av
import pytest
from videos import cut, decode_everything, end_edit_after, number_of, numbers_of, write_video

from qwen25vl.processing import video_file
from qwen25vl.processing.video import VideoOptions, load_clip
from qwen25vl.processing.video_file import decode_frames, read_index


def check_against_player(data: bytes) -> int:
    """Count, times and any choice of frames are those of decoding everything;
    nothing is called damaged."""
    shown = [number for _, number in decode_everything(data)]
    file = io.BytesIO(data)
    index = read_index(file, "clip")
    assert len(index.times) == len(shown)
    assert index.fps == pytest.approx(10, rel=0.01)
    last = len(shown) - 1
    for wanted in (
        [0],
        [last],
        [0, last],
        [last // 3, last // 3 + 1, 2 * last // 3],
        list(range(last + 1)),
    ):
        frames = decode_frames(file, index, wanted, "clip")
        assert [number_of(frame) for frame in frames] == [shown[number] for number in wanted]
    assert not index.damage.lost
    assert not index.damage.concealed
    assert not index.damage.cut_off
    return len(shown)


@pytest.mark.parametrize("kind", ["h264", "h264 open", "hevc", "hevc open", "mpeg4", "mjpeg"])
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_edit_lists_hide_head_and_tail(kind: str, container: str) -> None:
    """Header and packets count the hidden frames; visible frames need a keyframe that is hidden."""
    whole = write_video(kind, container)
    head = cut(whole, container, shift=2.4)
    assert check_against_player(head) == 36
    both = end_edit_after(head, 2.2)
    assert check_against_player(both) == 22
    clip = load_clip(both)
    assert clip.sampled_fps * 2.2 == pytest.approx(len(clip.frames))
    assert (numbers_of(clip.frames)[0], numbers_of(clip.frames)[-1]) == (24, 45)
    assert check_against_player(end_edit_after(cut(whole, container), 3.33)) in (33, 34)


@pytest.mark.parametrize(
    "kind", ["h264", "h264 open", "hevc", "hevc open", "h264 refresh", "vp8", "vp9", "mjpeg"]
)
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize(("first", "shift"), [(17, 0.0), (17, 1.95), (5, 1.25)])
def test_copies_that_begin_between_keyframes(
    kind: str, container: str, first: int, shift: float
) -> None:
    """Frames without their reference were counted,
    and every later frame was taken for another one."""
    if (kind, container) in (
        ("vp8", "mp4"),
        ("vp8", "mpegts"),
        ("vp9", "mpegts"),
        ("mjpeg", "mpegts"),
    ):
        pytest.skip("no such file")
    data = cut(write_video(kind, container), container, first=first, shift=shift)
    assert check_against_player(data) >= 30


def test_the_picture_begins_late_and_the_sound_ends_late() -> None:
    """The longest stream, or the start of the file, was taken for the length of the pictures."""
    data = write_video(times_ms=range(2000, 6000, 100), sound_seconds=9.0)
    assert check_against_player(data) == 40
    clip = load_clip(data)
    assert len(clip.frames) / clip.sampled_fps == pytest.approx(4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip(write_video(container="matroska", sound_seconds=9.0))


@pytest.mark.parametrize("kind", ["vp8", "vp9"])
def test_frames_that_only_others_refer_to(kind: str) -> None:
    """Packets of VP8 and VP9 that show nothing were counted as frames."""
    data = bytearray(write_video(kind, "webm"))
    with av.open(io.BytesIO(data)) as container:
        body = [bytes(packet) for packet in container.demux(video=0) if packet.size][30]
    at = data.index(body)
    data[at] ^= 0x10 if kind == "vp8" else 0x02  # show_frame
    assert check_against_player(bytes(data)) == 59


def test_seeking_in_hidden_packets_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit list made reading start over, and decode everything."""
    data = cut(write_video(), "mp4", shift=2.4)
    decoded = []
    original = video_file.decode_needed

    def counted(container, stream, targets):  # type: ignore[no-untyped-def]
        for frame in original(container, stream, targets):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_file, "decode_needed", counted)
    file = io.BytesIO(data)
    frames = list(decode_frames(file, read_index(file, "clip"), [0, 34], "clip"))
    assert [number_of(frame) for frame in frames] == [24, 58]
    assert len(decoded) < 15


def test_variable_rates_tell_true_seconds() -> None:
    """Chosen by number, the frames of a fast second stood for most of a slow minute."""
    fast, slow = list(range(0, 2000, 40)), list(range(2000, 22000, 200))
    clip = load_clip(write_video(container="matroska", times_ms=fast + slow), VideoOptions(fps=1))
    times = [(fast + slow)[number] / 1000 for number in numbers_of(clip.frames)]
    assert len(times) == 20
    assert len(times) / clip.sampled_fps == pytest.approx(21.9, rel=0.01)
    for number, time in enumerate(times):
        assert -0.001 <= number * 21.8 / 19 - time <= 0.2


def test_a_constant_rate_with_a_gap_is_chosen_as_the_reference_does() -> None:
    """One frame that a phone dropped moved every other frame."""
    times = [time for time in range(0, 6000, 100) if time != 3000]
    clip = load_clip(write_video(container="matroska", times_ms=times))
    expected = [round(number * 58 / 9) for number in range(10)]
    assert numbers_of(clip.frames) == expected

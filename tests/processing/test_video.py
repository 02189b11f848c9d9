"""Frame choice against qwen-vl-utils' rules, and exact frames out of real files drawn here."""

import io
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from qwen25vl.errors import (
    DependencyError,
    MediaFormatError,
    MediaNotFoundError,
    MediaSizeError,
    OptionError,
    OutOfMemoryError,
    UsageError,
)
from qwen25vl.processing import video_file
from qwen25vl.processing.video import VideoOptions, choose_frames, frame_size, load_clip
from qwen25vl.processing.video_file import decode_frames, read_index

WIDTH, HEIGHT, BITS = 96, 64, 8


def drawn(number: int) -> np.ndarray:
    """A frame that carries its number as eight black or white bars."""
    bars = [(number >> bit & 1) * 255 for bit in range(BITS)]
    return (
        np.array(bars, np.uint8).repeat(WIDTH // BITS)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
    )


def number_of(frame: np.ndarray) -> int:
    bars = frame[..., 0].astype(float).mean(0).reshape(BITS, -1).mean(1)
    return sum(1 << bit for bit in range(BITS) if bars[bit] > 127)


def numbers_of(frames: torch.Tensor) -> list[int]:
    width = frames.shape[-1] // BITS * BITS
    return [number_of(frame.permute(1, 2, 0).numpy()[:, :width]) for frame in frames]


def write_video(
    path: Path,
    *,
    codec: str = "libx264",
    times_ms: Sequence[int] = range(0, 6000, 100),
    fps: int = 10,
    options: dict[str, str] | None = None,
    rotation: int = 0,
    sound: bool = False,
) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(
            codec, rate=fps, options=options or {"g": "12", "x265-params": "log-level=none"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if sound:
            container.add_stream("aac", rate=16000, layout="mono")
        for number, time in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(drawn(number))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            write_sound(container, 6.0)
    return path


def write_sound(container: av.container.OutputContainer, seconds: float) -> None:
    stream = next(s for s in container.streams if s.type == "audio")
    for start in range(0, int(16000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


B_FRAMES = {"g": "12", "bf": "3"}
OPEN_GOPS = {"g": "15", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}
JITTER = [i * 100 + (i * 37) % 90 for i in range(60)]
FILES = {
    "b_frames.mp4": {"options": B_FRAMES},
    "open_gops.mp4": {"options": OPEN_GOPS},
    "open_gops.mkv": {"options": OPEN_GOPS},
    "one_keyframe.mp4": {"options": {"g": "1000"}},
    "all_keyframes.mov": {"options": {"g": "1"}},
    "late.mkv": {"times_ms": range(5000, 11000, 100)},
    "late.ts": {"times_ms": range(5000, 11000, 100), "options": B_FRAMES},
    "late.mp4": {"times_ms": range(5000, 11000, 100), "options": B_FRAMES},
    "sound.mp4": {"sound": True},
    "jitter.mkv": {"times_ms": JITTER},
    "jitter.mp4": {"times_ms": JITTER, "options": B_FRAMES},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}},
    "hevc.mp4": {"codec": "libx265"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "raw.h264": {"options": B_FRAMES},
}


@pytest.mark.parametrize("name", FILES)
def test_frames_are_exactly_those_of_decoding_everything(name: str, tmp_path: Path) -> None:
    """Seeking lands on a neighbour: off by the B-frame delay, by the start time,
    or by a whole group."""
    path = write_video(tmp_path / name, **FILES[name])
    with av.open(path) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [number_of(frame) for frame in everything] == list(range(60))
    for wanted in (
        [0],
        [59],
        [0, 59],
        [7, 8, 40],
        [11, 12, 13, 35, 36],
        [30, 30, 31],
        list(range(60)),
    ):
        with path.open("rb") as file:
            index = read_index(file, name)
            frames = list(decode_frames(file, index, wanted, name))
        assert len(index.times) == 60
        assert [number_of(frame) for frame in frames] == wanted
        assert all(
            np.array_equal(frame, everything[i]) for i, frame in zip(wanted, frames, strict=True)
        )


def test_only_the_needed_part_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames of an hour of film took as long as the hour."""
    path = write_video(tmp_path / "long.mp4", times_ms=range(0, 24000, 100))
    packets = []
    original = video_file.decode_needed

    def counted(container, stream, targets):  # type: ignore[no-untyped-def]
        for frame in original(container, stream, targets):
            packets.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_file, "decode_needed", counted)
    with path.open("rb") as file:
        frames = list(decode_frames(file, read_index(file, "long"), [120, 216], "long"))
    assert [number_of(frame) for frame in frames] == [120, 216]
    assert len(packets) <= 4


def test_a_seek_that_misses_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers without a table seek by guessing, and may land behind the frame."""
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(video_file, "bisect_right", lambda keyframes, target: len(keyframes))
    with path.open("rb") as file:
        frames = list(decode_frames(file, read_index(file, "clip"), [5, 20, 33], "clip"))
    assert [number_of(frame) for frame in frames] == [5, 20, 33]


def test_a_clip_carries_its_rate_times_and_sizes(tmp_path: Path) -> None:
    """The rate was lost on the way, or rounded to an integer, and every time id with it."""
    clip = load_clip(write_video(tmp_path / "clip.mp4"))
    expected = torch.linspace(0, 59, 12).round().long().tolist()
    assert numbers_of(clip.frames) == expected
    assert clip.sampled_fps == pytest.approx(12 / 60 * 10)
    assert clip.seconds_per_grid(2) == pytest.approx(1.0)
    assert clip.source_fps == 10
    assert clip.original_size == (HEIGHT, WIDTH)
    assert (
        clip.model_size
        == tuple(clip.frames.shape[-2:])
        == frame_size(HEIGHT, WIDTH, 12, VideoOptions())
    )
    assert clip.frames.dtype == torch.uint8


def test_every_source_gives_the_same_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that cannot be rewound were read twice and came out empty the second time."""
    path = write_video(tmp_path / "clip.mp4")
    data = path.read_bytes()
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(data)}))
    expected = load_clip(path, VideoOptions(nframes=4))
    for source in (str(path), f"file://{path}", data, "-"):
        assert torch.equal(load_clip(source, VideoOptions(nframes=4)).frames, expected.frames)


def test_rotation_of_phones_is_honoured(tmp_path: Path) -> None:
    """Upright videos of phones were watched lying down."""
    path = write_video(tmp_path / "phone.mp4", rotation=-90)  # to be shown turned clockwise
    clip = load_clip(path, VideoOptions(nframes=2, resized_height=WIDTH, resized_width=HEIGHT))
    assert clip.original_size == (WIDTH, HEIGHT)
    with av.open(path) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    with path.open("rb") as file:
        frame = next(decode_frames(file, read_index(file, "phone"), [0], "phone"))
    assert np.array_equal(frame, np.rot90(stored, -1))


def test_variable_rates_use_the_true_mean(tmp_path: Path) -> None:
    """A stated 10 frames per second that are 5 in truth doubles the speed of everything."""
    clip = load_clip(
        write_video(tmp_path / "slow.mkv", times_ms=[i * 200 + (i * 37) % 90 for i in range(60)])
    )
    assert clip.source_fps == pytest.approx(5, rel=0.02)
    assert len(clip.frames) == 24


def times_at(fps: float, total: int) -> list[float]:
    return [i / fps for i in range(total)]


@pytest.mark.parametrize(
    ("total", "fps", "options", "count", "first", "last"),
    [
        (300, 30, {}, 20, 0, 299),
        (300, 30, {"fps": 1}, 10, 0, 299),
        (300, 30, {"fps": 0.01}, 4, 0, 299),
        (300, 30, {"fps": 0.01, "min_frames": 7}, 8, 0, 299),
        (300, 30, {"fps": 100}, 300, 0, 299),
        (300, 30, {"max_frames": 9}, 8, 0, 299),
        (90000, 30, {}, 768, 0, 89999),
        (301, 30, {"nframes": 7}, 8, 0, 300),
        (301, 30, {"nframes": 5}, 4, 0, 300),
        (3, 30, {}, 2, 0, 2),
        (1, 30, {}, 1, 0, 0),
        (300, 30, {"video_start": 2, "video_end": 4}, 4, 60, 120),
        (300, 30, {"video_start": 5.01}, 8, 151, 299),
        (300, 30, {"video_end": 1000}, 20, 0, 299),
    ],
)
def test_frame_choice(
    total: int, fps: float, options: dict[str, float], count: int, first: int, last: int
) -> None:
    """Another count or another first and last frame than the model was trained with."""
    numbers, sampled_fps = choose_frames(times_at(fps, total), fps, VideoOptions(**options))
    assert (len(numbers), numbers[0], numbers[-1]) == (count, first, last)
    assert numbers == torch.linspace(first, last, count).round().long().tolist()
    assert sampled_fps == count / (last - first + 1) * fps


@pytest.mark.parametrize(
    ("options", "num_frames", "expected"),
    [
        ({}, 4, (616, 924)),
        ({}, 768, (392, 588)),
        ({"max_pixels": 50176}, 4, (168, 252)),
        ({"total_pixels": 20 * 100352}, 40, (252, 392)),
        ({"min_pixels": 3136, "total_pixels": 28 * 28 * 100}, 20, (56, 84)),
        ({"resized_height": 100, "resized_width": 200}, 4, (112, 196)),
        ({"min_pixels": 700000}, 4, (672, 1036)),
    ],
)
def test_frame_size(options: dict[str, int], num_frames: int, expected: tuple[int, int]) -> None:
    """The budgets per frame and per clip:
    too large runs out of memory, too small blinds the model."""
    assert frame_size(720, 1080, num_frames, VideoOptions(**options)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": float("inf")}, {"fps": "2"},
        {"nframes": 1}, {"nframes": 0}, {"fps": 1, "nframes": 4},
        {"min_frames": 8, "max_frames": 4}, {"min_pixels": 0},
        {"min_pixels": 2000, "max_pixels": 1000}, {"resized_height": 28}, {"video_start": -1},
        {"sample_fps": 0}, {"video_start": 3, "video_end": 2}, {"nframes": 3.7},
        {"max_frames": 2.5}, {"fps": True}, {"max_pixels": "9999"},
        {"resized_height": 56.5, "resized_width": 56},
        {"resized_height": -560, "resized_width": 56}, {"raw_fps": 0},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_options_are_misuse(options: dict[str, float]) -> None:
    """fps 0 divided by zero, a negative one chose frames backwards, NaN reached the positions."""
    assert VideoOptions(fps=np.float32(2), max_pixels=np.int64(5000), nframes=None).fps == 2
    with pytest.raises(UsageError):
        VideoOptions(**options)


def test_options_of_the_item_win_over_those_of_the_call() -> None:
    """nframes of one video met the fps of the call and was refused, or ignored."""
    call = VideoOptions(fps=1, max_pixels=200704, min_pixels=100352)
    assert call.override({"nframes": 8}) == VideoOptions(
        nframes=8, max_pixels=200704, min_pixels=100352
    )
    assert call.override({"fps": 4, "nframes": None}).fps == 4
    assert call.override({"max_pixels": 50176}) == VideoOptions(fps=1, max_pixels=50176)
    assert call.override({"min_pixels": 300000}) == VideoOptions(fps=1, min_pixels=300000)
    with pytest.raises(UsageError):
        call.override({"fps": 1, "nframes": 4})
    with pytest.raises(OptionError, match="frames_per_second"):
        call.override({"frames_per_second": 1})


def test_what_the_video_does_not_hold_is_misuse(tmp_path: Path) -> None:
    """More frames than there are, or a part behind the end: index errors deep in the decoder."""
    path = write_video(tmp_path / "clip.mp4")
    with pytest.raises(UsageError, match=r"nframes 100 is more than the 60 frames of .*clip\.mp4"):
        load_clip(path, VideoOptions(nframes=100))
    with pytest.raises(
        UsageError, match=r"fewer than two frames of .*clip\.mp4, which lasts 6\.00 seconds"
    ):
        load_clip(path, VideoOptions(video_start=7))


def test_a_list_of_pictures_is_a_video() -> None:
    """Frames given one by one were sampled again, or lost the rate that was stated."""
    pictures = [Image.fromarray(drawn(i)) for i in (3, 1, 200)]
    clip = load_clip(pictures)
    assert numbers_of(clip.frames) == [3, 1, 200]
    assert (clip.sampled_fps, clip.original_size) == (2.0, (HEIGHT, WIDTH))
    assert load_clip(pictures, VideoOptions(fps=4)).sampled_fps == 4
    assert load_clip(pictures, VideoOptions(fps=4, sample_fps=0.5)).sampled_fps == 0.5
    chosen = load_clip(pictures, VideoOptions(nframes=2))
    assert (numbers_of(chosen.frames), chosen.sampled_fps) == ([3, 1], 4 / 3)
    for options in (VideoOptions(nframes=4), VideoOptions(video_start=1)):
        with pytest.raises(UsageError):
            load_clip(pictures, options)
    for frames, options in (([], VideoOptions()), (pictures, VideoOptions(max_frames=2))):
        with pytest.raises(MediaSizeError):
            load_clip(frames, options)
    with pytest.raises(MediaSizeError, match="picture 2 of list of 2 pictures has 5×5 pixels"):
        load_clip([pictures[0], Image.new("RGB", (5, 5))])


def test_arrays_are_videos() -> None:
    """Frames that a resizer has already made were resized again, to another size."""
    frames = np.stack([drawn(i) for i in (9, 130, 77, 2)])
    expected = load_clip([Image.fromarray(frame) for frame in frames]).frames
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for array in (frames, frames.transpose(0, 3, 1, 2), tensor, tensor.float(), tensor / 255):
        assert torch.equal(load_clip(array).frames, expected)
    ready = torch.randint(0, 256, (3, 3, 56, 84), dtype=torch.uint8)
    assert torch.equal(load_clip(ready / 255).frames, ready)
    assert torch.equal(load_clip(ready.float()).frames, ready)
    assert load_clip(ready, VideoOptions(max_pixels=3136)).model_size == (28, 56)
    for bad in (ready[0], ready[:, :2], ready[:0], torch.randn(2, 3, 8, 8)):
        with pytest.raises(MediaFormatError):
            load_clip(bad)


def test_files_that_are_no_videos_are_refused(tmp_path: Path) -> None:
    """FFmpeg plays text files as terminals, follows playlists anywhere,
    and finds cover pictures in songs."""
    with av.open(tmp_path / "song.m4a", "w", format="mp4") as container:
        container.add_stream("aac", rate=16000, layout="mono")
        write_sound(container, 1.0)
    coded = write_video(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "future.mp4").write_bytes(coded.replace(b"avc1", b"zzz9"))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("just words\n" * 100)
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n"
    )
    for name, pattern in [
        ("song.m4a", "holds no video, only sound"),
        ("future.mp4", "in a codec that cannot be decoded"),
        ("empty.mp4", r"empty\.mp4 is empty"),
        ("notes.txt", "is not a video"),
        ("list.m3u8", "is not a video"),
    ]:
        with pytest.raises(MediaFormatError, match=pattern) as caught:
            load_clip(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(MediaNotFoundError):
        load_clip(tmp_path / "nothing.mp4")


@pytest.mark.parametrize("name", ["end.mp4", "front.mp4", "clip.mkv", "clip.webm"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_truncated_videos_are_refused(name: str, part: float, tmp_path: Path) -> None:
    """Half a download was answered as if it were the whole film."""
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write_video(tmp_path / name, codec=codec, options={"g": "12"})
    if name == "front.mp4":
        with (
            av.open(path) as old,
            av.open(tmp_path / "new.mp4", "w", options={"movflags": "faststart"}) as new,
        ):
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        path = tmp_path / "new.mp4"
    data = path.read_bytes()
    with pytest.raises(MediaFormatError, match=r"cut\.mp4"):
        load_clip(data[: int(len(data) * part)], name="cut.mp4")


def test_without_pyav_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare ImportError does not say what to install."""
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DependencyError, match=r'pip install "qwen25vl\[video\]"'):
        load_clip(path)
    assert len(load_clip([Image.fromarray(drawn(1))]).frames) == 1


def test_cut_off_animations_are_refused() -> None:
    """A GIF has no length to compare with: half of one was answered as if it were whole."""
    file = io.BytesIO()
    frames = [Image.fromarray(drawn(i)) for i in range(8)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert len(load_clip(file.getvalue() + bytes(9)).frames) == 4
    with pytest.raises(MediaFormatError, match="cut off"):
        load_clip(file.getvalue()[:-1])


def test_clips_that_can_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's killer came instead of an error."""
    monkeypatch.setattr("qwen25vl.memory.available_bytes", lambda _: 10**6)
    pictures = [Image.fromarray(drawn(i)) for i in range(2)]
    with pytest.raises(
        OutOfMemoryError, match=r"needs .* GB of memory on cpu, only 0\.001 GB are free"
    ):
        load_clip(pictures, VideoOptions(resized_height=560, resized_width=560))


def test_frames_tell_the_rate_of_their_video() -> None:
    """qwen-vl-utils writes raw_fps beside sample_fps."""
    clip = load_clip([Image.fromarray(drawn(1))] * 2, VideoOptions(sample_fps=1, raw_fps=30))
    assert (clip.sampled_fps, clip.source_fps) == (1.0, 30)

"""Clips given frame by frame, and options as people and programs write them."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from videos import drawn, numbers_of, write_video

import qwen25vl
from qwen25vl.ecosystem.processor import AutoProcessor, Qwen2_5_VLProcessor
from qwen25vl.errors import MediaError, MediaSizeError, MessageError, UsageError
from qwen25vl.processing.frame_lists import split_frames
from qwen25vl.processing.prompt_videos import list_videos
from qwen25vl.processing.video import VideoOptions, load_clip

NUMBERS = [3, 1, 200, 77]
PICTURES = [Image.fromarray(drawn(number)) for number in NUMBERS]


def encode(picture: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def encode_text(picture: Image.Image, kind: str = "JPEG") -> str:
    return base64.b64encode(encode(picture, kind)).decode()


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


def prepare(processor: Qwen2_5_VLProcessor, **part: Any) -> Any:
    messages = [{"role": "user", "content": [part]}]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True).media[0]


@pytest.mark.parametrize(
    "head",
    ["data:video/jpeg;base64", "data:image/jpeg;base64", "DATA:VIDEO/JPEG;BASE64", " data:;base64"],
)
def test_frames_in_one_data_uri(head: str) -> None:
    """All but the first frame were taken for broken base64."""
    uri = f"{head}," + ",".join(map(encode_text, PICTURES))
    clip = load_clip(uri)
    assert numbers_of(clip.frames) == NUMBERS
    assert clip.sampled_fps == 2
    assert load_clip(uri, VideoOptions(fps=0.5)).sampled_fps == 0.5


def test_one_frame_in_a_data_uri() -> None:
    assert numbers_of(load_clip("data:video/jpeg;base64," + encode_text(PICTURES[3])).frames) == [
        77
    ]


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (",".join(["QUJD"] * 769), "769 frames"),
        (f"{encode_text(PICTURES[0])},,", "picture 2 of .* is empty"),
        (f"{encode_text(PICTURES[0])},QUJD", "picture 2 of"),
        (
            ",".join(map(encode_text, [PICTURES[0], PICTURES[1].resize((40, 30))])),
            "40×30 pixels, the first one 96×64",
        ),
    ],
)
def test_bad_frames_in_a_data_uri(payload: str, error: str) -> None:
    """One line that names the frame, and no more frames than a clip may have."""
    with pytest.raises(MediaError, match=error) as caught:
        load_clip(f"data:video/jpeg;base64,{payload}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_every_kind_of_frame(tmp_path: Path) -> None:
    """Lists of anything that is a picture, also mixed."""
    paths = []
    for number, picture in zip(NUMBERS, PICTURES, strict=True):
        picture.save(path := tmp_path / f"{number}.png")
        paths.append(path)
    arrays = [np.array(picture) for picture in PICTURES]
    lists: list[list[Any]] = [
        paths,
        list(map(str, paths)),
        [encode(picture) for picture in PICTURES],
        [f"data:image/png;base64,{encode_text(picture, 'PNG')}" for picture in PICTURES],
        arrays,
        [torch.from_numpy(array).permute(2, 0, 1) for array in arrays],
        [io.BytesIO(encode(picture, "WEBP")) for picture in PICTURES],
        [paths[0], PICTURES[1], encode(PICTURES[2]), arrays[3]],
    ]
    for frames in lists:
        assert numbers_of(load_clip(frames).frames) == NUMBERS
        assert list_videos(frames) == [frames]
    vlm = qwen25vl.load()
    for frames in lists:
        media = vlm.ask("?", videos=frames, max_new_tokens=1).media
        assert [(item.kind, item.num_frames, item.seconds_per_grid) for item in media] == [
            ("video", 4, 1.0)
        ]


def test_files_in_a_list_stay_separate_videos(tmp_path: Path) -> None:
    """A list of films, animations or what can not be read is no list of frames."""
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(write_video())
    moving = io.BytesIO()
    PICTURES[0].save(moving, "WEBP", save_all=True, append_images=PICTURES[1:], duration=500)
    for videos in ([clip, clip], [clip, encode(PICTURES[0])], [moving.getvalue()] * 2,
                   ["none.mp4", "no.png"],
                   ["https://example.com/a.mp4?x=.png"], [PICTURES, PICTURES], ["-"]):  # fmt: skip
        assert list_videos(videos) == videos
    frames = ["https://example.com/1.jpg?size=2", "http://example.com/b.PNG"]
    assert list_videos(frames) == [frames]


def test_open_files_are_videos(tmp_path: Path) -> None:
    """A file that was uploaded, or is open, had to be written to disk first."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(data := write_video())
    expected = load_clip(path).frames
    read = io.BytesIO(data)
    read.seek(0, io.SEEK_END)
    with path.open("rb") as file:
        for source in (io.BytesIO(data), read, file, bytearray(data), memoryview(data)):
            assert torch.equal(load_clip(source).frames, expected)
    with pytest.raises(UsageError, match="open file"):
        load_clip(object())


def test_the_processor_takes_them_too(processor: Qwen2_5_VLProcessor) -> None:
    slot = "<|vision_start|><|video_pad|><|vision_end|>"
    uri = "data:video/jpeg;base64," + ",".join(map(encode_text, PICTURES))
    for videos in (uri, [uri], PICTURES, [PICTURES]):
        inputs = processor(text=slot, videos=videos, do_sample_frames=False, fps=1.0)
        assert inputs.video_grid_thw[0, 0] == 2
        assert inputs.second_per_grid_ts.tolist() == [2.0]
    data = write_video()
    for source in (data, io.BytesIO(data)):
        assert (
            processor(text=slot, videos=[source], do_sample_frames=True).video_grid_thw[0, 0] == 6
        )


def test_lists_inside_a_video_url(processor: Qwen2_5_VLProcessor) -> None:
    """OpenAI's shape with the frames where the address is."""
    uris = [f"data:image/jpeg;base64,{encode_text(picture)}" for picture in PICTURES]
    for frames in (PICTURES, uris, tuple(uris)):
        item = prepare(processor, type="video_url", video_url={"url": frames}, fps=4)
        assert (item.num_frames, item.seconds_per_grid) == (4, 0.5)
    with pytest.raises(MediaSizeError, match="all must be equal"):
        prepare(processor, type="video", video=[PICTURES[0], PICTURES[1].resize((50, 50))])


@pytest.mark.parametrize(
    "two",
    ["2", "2.0", " 2 ", "2e0", 2, 2.0, np.float32(2), np.int64(2), np.array(2), torch.tensor(2)],
)
def test_numbers_as_they_come(two: Any, processor: Qwen2_5_VLProcessor) -> None:
    """JSON from forms has texts where numbers were meant, and data frames have numpy's."""
    data = write_video()
    assert prepare(processor, type="video", video=PICTURES, sample_fps=two).seconds_per_grid == 1.0
    assert prepare(processor, type="video", video=data, fps=two).num_frames == 12
    assert prepare(processor, type="video", video=data, nframes=two).num_frames == 2
    assert prepare(processor, type="video", video=data, video_end=two).num_frames == 4
    assert (
        prepare(processor, type="video", video=data, max_frames=two, min_frames=two).num_frames == 2
    )


def test_sizes_as_text(processor: Qwen2_5_VLProcessor) -> None:
    for part in ({"type": "video", "video": PICTURES}, {"type": "image", "image": PICTURES[0]}):
        for text, number in (({"max_pixels": "3136"}, {"max_pixels": 3136}),
                             ({"min_pixels": " 50000.0 "}, {"min_pixels": 50000}),
                             ({"resized_height": "56", "resized_width": "84"},
                              {"resized_height": 56, "resized_width": 84})):  # fmt: skip
            assert prepare(processor, **part, **text) == prepare(processor, **part, **number)


@pytest.mark.parametrize(
    "value", ["fast", "", "2fps", "1,5", "nan", "inf", "-1", "0", True, [2], {}]
)
def test_nonsense_is_refused(value: Any, processor: Qwen2_5_VLProcessor) -> None:
    """In one line that names the option and the value."""
    for name in ("fps", "max_pixels", "nframes", "sample_fps"):
        with pytest.raises(UsageError, match=name) as caught:
            prepare(
                processor,
                type="video",
                video=write_video(times_ms=range(0, 800, 100)),
                **{name: value},
            )
        assert "\n" not in str(caught.value)


def test_null_options_are_absent(processor: Qwen2_5_VLProcessor) -> None:
    """Data sets fill in null for every key that any row has."""
    names = ("fps", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels",
             "total_pixels", "raw_fps", "resized_height", "resized_width", "video_start",
             "video_end", "sample_fps",
             "strict")  # fmt: skip
    nulls = dict.fromkeys(names)
    for source in (write_video(), PICTURES):
        assert prepare(processor, type="video", video=source, **nulls) == prepare(
            processor, type="video", video=source
        )
    with pytest.raises(MessageError):
        prepare(processor, type="video", video=PICTURES, frames_per_second=None, speed=2)


@pytest.mark.parametrize("uri", [
    "data:video/jpeg;base64,F1,F2,",
    "data:video/jpeg;base64,F1,F2 ,\n",
    "data:video/jpeg;base64,F1,data:image/jpeg;base64,F2",
    "data:image/jpeg;base64,F1,data:image/jpeg;base64,F2",
    '"data:video/jpeg;base64,F1,F2"',
])  # fmt: skip
def test_frames_of_a_uri_as_people_join_them(uri: str) -> None:
    """A comma at the end was one more frame, a beginning of its own a damaged one."""
    for source in (uri, uri.encode()):
        frames = split_frames(source)
        assert frames is not None
        assert [frame.partition(",")[2].strip() for frame in frames] == ["F1", "F2"]

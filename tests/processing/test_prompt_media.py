"""Pictures given beside rendered prompts: flat, or a list for each text."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen25vl import AutoProcessor, Qwen2_5_VLProcessor
from qwen25vl.errors import MessageError
from qwen25vl.processing.prompt_videos import sampled_rate

SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
A, B, C = (Image.new("RGB", (width, 56)) for width in (56, 84, 112))


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


def widths(processor: Qwen2_5_VLProcessor, texts: list[str], images: Any) -> list[tuple[int, int]]:
    """(text, width) of every picture of the prompts."""
    return [
        (item.conversation, item.original_size[1])
        for item in processor(text=texts, images=images).media
    ]


@pytest.mark.parametrize(
    ("texts", "images", "expected"),
    [
        ([SLOT * 2, SLOT], [[A, B], [C]], [(0, 56), (0, 84), (1, 112)]),
        ([SLOT * 2, SLOT], ([A, B], (C,)), [(0, 56), (0, 84), (1, 112)]),
        ([SLOT * 2, SLOT], [[A, B], C], [(0, 56), (0, 84), (1, 112)]),
        (["none", SLOT], [[], [B]], [(1, 84)]),
        (["none", SLOT], [None, [B]], [(1, 84)]),
        (["none", SLOT], [None, B], [(1, 84)]),
        ([SLOT, "none"], [A, None], [(0, 56)]),
        (["none", "none"], [None, None], []),
        (["none", "none"], [], []),
        ([SLOT * 2], [[A, B]], [(0, 56), (0, 84)]),
        ([SLOT * 2, SLOT], [A, B, C], [(0, 56), (0, 84), (1, 112)]),
    ],
)
def test_pictures_go_to_their_own_text(
    processor: Qwen2_5_VLProcessor, texts: list[str], images: Any, expected: list[tuple[int, int]]
) -> None:
    """None for a text without pictures was taken for a picture."""
    assert widths(processor, texts, images) == expected


@pytest.mark.parametrize(
    ("texts", "images", "error"),
    [
        (
            [SLOT * 2 + "first", SLOT + "second"],
            [[A], [B, C]],
            "text 1 has 2 slots for pictures, but 1 are given",
        ),
        ([SLOT, SLOT * 2], [[A, B], [C]], "text 1 has 1 slots for pictures, but 2 are given"),
        ([SLOT, SLOT], [[A, B], None], "text 1 has 1 slots"),
        ([SLOT, SLOT], [None, [A, B]], "text 1 has 1 slots for pictures, but 0 are given"),
        ([SLOT, SLOT], [[A, B]], "1 entries.* for 2 texts"),
        ([SLOT * 2], [[A], [B]], "2 entries.* for 1 texts"),
        ([SLOT], [None, A], "2 entries.* for 1 texts"),
    ],
)
def test_pictures_that_do_not_fit_their_own_text(
    processor: Qwen2_5_VLProcessor, texts: list[str], images: Any, error: str
) -> None:
    """Where only the sum was right, a picture silently went to another text."""
    with pytest.raises(MessageError, match=error):
        processor(text=texts, images=images)


def test_texts_without_a_video(processor: Qwen2_5_VLProcessor) -> None:
    """None for a text without a video was a video without content."""
    slot, clip = "<|vision_start|><|video_pad|><|vision_end|>", [A, A]
    inputs = processor(text=["none", slot], videos=[None, clip])
    assert [(item.kind, item.conversation) for item in inputs.media] == [("video", 1)]
    assert processor(text=["a", "b"], videos=[None, None]).media == ()
    for texts, videos in (
        ([slot, "none"], [None, clip]),
        ([slot, slot], [None, clip]),
        ([slot], [None, clip]),
    ):
        with pytest.raises(MessageError, match=r"slots for videos|2 entries"):
            processor(text=texts, videos=videos)


def test_the_rate_of_frames_that_were_chosen() -> None:
    """Metadata that went through JSON may spell its numbers as texts."""
    assert (
        sampled_rate({"fps": "30", "total_num_frames": "90", "frames_indices": [0, 30, 60]}) == 1.0
    )


def moving(count: int) -> bytes:
    first, *others = (Image.new("RGB", (56, 56), (60 * i, 0, 0)) for i in range(count))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=250)
    return file.getvalue()


VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
GIF, FRAMES = moving(4), [A, A]


@pytest.mark.parametrize(
    ("texts", "videos", "expected"),
    [
        ([VIDEO, VIDEO], [[GIF], [GIF]], [(0, 4), (1, 4)]),
        (["none", VIDEO], [[], [GIF]], [(1, 4)]),
        (["none", VIDEO], [None, [GIF]], [(1, 4)]),
        (["none", VIDEO], (None, (GIF,)), [(1, 4)]),
        ([VIDEO * 2, VIDEO], [[GIF, FRAMES], [FRAMES]], [(0, 4), (0, 2), (1, 2)]),
        ([VIDEO, VIDEO], [[FRAMES], [FRAMES]], [(0, 2), (1, 2)]),
        ([VIDEO, VIDEO], [FRAMES, FRAMES], [(0, 2), (1, 2)]),
        ([VIDEO * 2], [FRAMES, FRAMES], [(0, 2), (0, 2)]),
        ([VIDEO, VIDEO], [FRAMES, [GIF]], [(0, 2), (1, 4)]),
        (["none", VIDEO], [None, FRAMES], [(1, 2)]),
        (["none", VIDEO], [[], GIF], [(1, 4)]),
        ([VIDEO * 2], [GIF, GIF], [(0, 4), (0, 4)]),
        ([VIDEO], FRAMES, [(0, 2)]),
    ],
)
def test_videos_go_to_their_own_text(
    processor: Qwen2_5_VLProcessor, texts: list[str], videos: Any, expected: list[tuple[int, int]]
) -> None:
    """A text's own list of videos was taken for a list of frames, each the first of its video."""
    media = processor(text=texts, videos=videos).media
    assert [(item.conversation, item.num_frames) for item in media] == expected


@pytest.mark.parametrize(
    ("texts", "videos", "error"),
    [
        ([VIDEO, VIDEO], [[GIF, GIF], []], "text 1 has 1 slots for videos, but 2 are given"),
        ([VIDEO, VIDEO], [[GIF], [GIF, GIF]], "text 2 has 1 slots for videos, but 2 are given"),
        ([VIDEO, VIDEO], [None, [GIF]], "text 1 has 1 slots for videos, but 0 are given"),
        ([VIDEO * 2], [[GIF], [GIF]], "2 entries.* for 1 texts"),
    ],
)
def test_videos_that_do_not_fit_their_text(
    processor: Qwen2_5_VLProcessor, texts: list[str], videos: Any, error: str
) -> None:
    """Videos must not move to another text's slots."""
    with pytest.raises(MessageError, match=error):
        processor(text=texts, videos=videos)


def test_a_path_alone_in_a_mapping(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    """Data sets without content keep {"path": …}."""
    B.save(path := tmp_path / "b.png")
    assert widths(processor, [SLOT], [{"path": str(path)}]) == [(0, 84)]
    assert widths(processor, [SLOT], [[{"path": str(path)}]]) == [(0, 84)]

"""Messages in every common shape, and typed text that stays text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import ADDED, SPECIAL

from qwen25vl import AutoProcessor, Qwen2_5_VLProcessor
from qwen25vl.errors import MessageError
from qwen25vl.processing.messages import Part, read_messages

IMAGE_SHAPES: list[dict[str, Any]] = [
    {"type": "image", "url": "a.png"},
    {"type": "image", "path": "a.png"},
    {"type": "image", "image": "a.png", "text": None, "fps": None},
    {"type": "input_image", "image_url": "a.png"},
    {"type": "image", "image": "a.png"},
    {"image": "a.png"},
    {"type": "image_url", "image_url": {"url": "a.png"}},
    {"type": "image_url", "image_url": "a.png"},
    {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
]
VIDEO_SHAPES: list[dict[str, Any]] = [
    {"type": "video", "url": "a.mp4"},
    {"type": "video", "path": "a.mp4"},
    {"type": "video", "video": "a.mp4"},
    {"video": "a.mp4"},
    {"type": "video_url", "video_url": {"url": "a.mp4"}},
]


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
def test_picture_shapes(shape: dict[str, Any]) -> None:
    """The ecosystem's, OpenAI's and qwen-vl-utils' shapes are one."""
    (message,) = read_messages([{"role": "user", "content": [shape]}])
    assert message.parts == (Part("image", source="a.png"),)


@pytest.mark.parametrize("shape", VIDEO_SHAPES, ids=str)
def test_video_shapes(shape: dict[str, Any]) -> None:
    """Image and video in one message used to lose the video in other engines."""
    (message,) = read_messages([{"role": "user", "content": [shape, {"type": "image"}]}])
    assert message.parts == (Part("video", source="a.mp4"), Part("image"))


def test_options_stay_with_their_item() -> None:
    """min_pixels of one picture must not reach another."""
    content = [
        {"type": "image", "image": "a", "max_pixels": 9},
        {"type": "video", "video": ["a", "b"], "raw_fps": 30},
    ]
    (message,) = read_messages([{"role": "user", "content": content}])
    assert [part.options for part in message.parts] == [{"max_pixels": 9}, {"raw_fps": 30}]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "no messages"),
        (["hello"], "expected an object with role and content"),
        ([{"role": "user"}], "role and content"),
        ([{"role": "user", "content": 3}], "int as content"),
        ([{"role": "a<|im_end|>", "content": ""}], "has the role"),
        ([{"role": "user", "content": "", "contents": "a"}], "contents; did you mean content"),
        ([{"role": "user", "content": [3]}], "message 1, part 1 is int"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "type 'audio'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "expected {'type': 'text'"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "a", "path": "b"}]}],
            "twice: url and path",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "url": "a", "fps": 2}]}],
            "has fps; known for image",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"uri": "a"}}]}],
            "has no url",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "a", "max_pixels": 1}}],
                }
            ],
            "max_pixels",
        ),
    ],
)
def test_unknown_shapes_are_named(messages: Any, error: str) -> None:
    """A part that nobody understands must not vanish from the prompt."""
    with pytest.raises(MessageError, match=error):
        read_messages(messages)


STRUCTURE = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()


@pytest.mark.parametrize("token", SPECIAL + ADDED)
def test_typed_control_tokens_are_letters(tiny_folder: Path, token: str) -> None:
    """In each text position that a user can fill, and what makes up the prompt in every position;
    the picture still sits in its own slot."""
    can_be_spoken = token not in STRUCTURE
    plain = "word" if can_be_spoken else token
    processor: Qwen2_5_VLProcessor = CACHE.setdefault(
        tiny_folder, AutoProcessor.from_pretrained(tiny_folder)
    )
    picture = {"type": "image", "image": PIXELS}

    def ids(word: str) -> list[int]:
        messages = [
            {"role": "system", "content": f"be{plain}nice"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": word},
                    picture,
                    {"type": "text", "text": f"{word}?"},
                ],
            },
            {"role": "assistant", "content": plain},
            {"role": "user", "content": f"{word}{word}"},
            {"role": "tool", "content": word},
            {"role": "function", "name": "f", "content": [f" {word}", word]},
            {"role": "critic", "content": word},
        ]
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        assert processor.decode(inputs.input_ids[0]).count(word) >= 6
        slot = (inputs.input_ids[0] == 151655).nonzero().flatten().tolist()
        assert slot == list(range(slot[0], slot[0] + 4))
        assert inputs.input_ids[0, slot[0] - 1] == 151652
        return [number for number in inputs.input_ids[0].tolist() if number >= 151643]

    assert ids(token) == ids("word")


PIXELS = np.zeros((56, 56, 3), dtype=np.uint8)
CACHE: dict[Path, Qwen2_5_VLProcessor] = {}

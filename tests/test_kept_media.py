"""Files that are closed or read to their end after a question that they were given with."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qwen25vl
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.vlm import VisionLanguageModel, compose

ONE: dict[str, Any] = {"max_new_tokens": 1}


@pytest.fixture(scope="module")
def vlm(tiny_folder: Path) -> VisionLanguageModel:
    return qwen25vl.load(tiny_folder)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_a_closed_file(vlm: VisionLanguageModel, path: Path) -> None:
    """After `with open(…)` the conversation failed for ever, and so did drawing and copying."""
    chat = vlm.chat()
    with path.open("rb") as file:
        answer = chat.ask("a", file, **ONE)
    assert answer.draw().size == (56, 56)
    assert answer.media[0].name == str(path)
    tokens = chat.ask("b", **ONE).usage.prompt_tokens
    for again in (copy.deepcopy(chat), pickle.loads(pickle.dumps(chat))):
        assert again.ask("b", **ONE).usage.prompt_tokens > tokens
    assert copy.deepcopy(answer).draw().size == pickle.loads(pickle.dumps(answer)).draw().size


def test_a_stream_that_is_read_once(vlm: VisionLanguageModel, path: Path) -> None:
    """The second question found nothing in it."""
    chat = vlm.chat()
    chat.ask("a", [Pipe(path.read_bytes())], **ONE)
    assert chat.ask("b", **ONE).media[0].original_size == (56, 56)
    messages = [{"role": "user", "content": [{"type": "image", "image": Pipe(path.read_bytes())}]}]
    assert vlm.ask(messages, **ONE).draw().size == (56, 56)


def test_open_frames_are_one_video(path: Path) -> None:
    """Bytes in place of open files must not turn a video's frames into videos."""
    with path.open("rb") as one, path.open("rb") as two:
        ((part, _),) = [message["content"] for message in compose("?", (), [one, two], None)]
    assert part["video"] == [{"bytes": path.read_bytes(), "path": str(path)}] * 2


def test_messages_that_are_read_once(vlm: VisionLanguageModel) -> None:
    """A generator was a TypeError of Python, and a row of objects too."""
    messages = [{"role": "user", "content": "hi"}]
    wanted = vlm.ask(messages, **ONE).usage.prompt_tokens
    row = np.array(messages, dtype=object)
    for given in ((m for m in messages), row, tuple(messages), map(dict, messages)):
        assert vlm.ask(given, **ONE).usage.prompt_tokens == wanted
    for wrong in (io.BytesIO(b"x"), {1, 2}, np.zeros((4, 4, 3))):
        with pytest.raises(UsageError, match=f"the question is {type(wrong).__name__}"):
            vlm.ask(wrong, **ONE)


def test_options_that_ask_for_nothing(vlm: VisionLanguageModel) -> None:
    """numpy's True was no bool, and an argument of transformers that is None an unknown option."""
    assert vlm.ask("hi", do_sample=np.bool_(False), **ONE).usage.completion_tokens == 1
    assert vlm.ask("hi", do_sample=np.bool_(True), seed=1, **ONE).usage.completion_tokens == 1
    with pytest.raises(UsageError, match="it must be True or False"):
        vlm.ask("hi", do_sample=np.int64(1), **ONE)
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=True, return_dict=True
    )
    vlm.model.generate(**inputs, logits_processor=None, stopping_criteria=None, **ONE)
    with pytest.raises(UsageError, match="a logits processor returned NoneType"):
        vlm.model.generate(**inputs, logits_processor=[print], **ONE)
    with pytest.raises(OptionError, match="temprature"):
        vlm.model.generate(**inputs, temprature=None, **ONE)

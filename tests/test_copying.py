"""Models, chats and streams in copies, pickles and other processes; and their short reprs."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import qwen25vl
from qwen25vl import VisionLanguageModel, load
from qwen25vl.errors import UsageError

SCENE = str(Path(__file__).parents[1] / "examples" / "scene.png")
QUESTION = "Describe the picture."
WAYS: list[Callable[[Any], Any]] = [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    vlm = load()
    vlm.ask(QUESTION, [SCENE], max_new_tokens=3)  # its visual cache holds something
    return vlm


@pytest.mark.parametrize("way", WAYS, ids=["deepcopy", "pickle"])
def test_a_model_is_copied(vlm: VisionLanguageModel, way: Callable[[Any], Any]) -> None:
    """The lock of its visual cache could not be;
    the copy's cache is empty, as large, and its own."""
    assert vlm.visual_cache.items
    other = way(vlm)
    assert not other.visual_cache.items
    assert other.visual_cache.max_bytes == vlm.visual_cache.max_bytes
    assert other.ask(QUESTION, [SCENE]).text == vlm.ask(QUESTION, [SCENE]).text
    assert other.visual_cache is not vlm.visual_cache
    assert other.model.generation_config == vlm.model.generation_config


@pytest.mark.parametrize("way", WAYS, ids=["deepcopy", "pickle"])
def test_a_conversation_is_copied(vlm: VisionLanguageModel, way: Callable[[Any], Any]) -> None:
    """Its turns hold generators; both go on from the same turns, and apart."""
    chat = vlm.chat(system="Answer.")
    chat.ask(QUESTION, [SCENE])
    other = way(chat)
    assert other.messages == chat.messages
    assert other.ask("What colour is the star?").text == chat.ask("What colour is the star?").text
    other.ask("And?", max_new_tokens=1)
    assert len(other.turns) == len(chat.turns) + 1


@pytest.mark.parametrize("way", WAYS, ids=["deepcopy", "pickle"])
def test_a_stream_is_copied_as_far_as_it_is(
    vlm: VisionLanguageModel, way: Callable[[Any], Any]
) -> None:
    """The copy has what was written and writes nothing; the original writes on to the same end."""
    stream = vlm.stream(QUESTION, [SCENE])
    next(stream), next(stream)
    other = way(stream)
    assert (list(other), other.text) == ([], stream.text)
    assert other.answer.usage.completion_tokens == 2
    for _ in stream:
        pass
    assert stream.answer.text == vlm.ask(QUESTION, [SCENE]).text
    assert way(stream.answer).text == stream.answer.text


def answer(vlm: VisionLanguageModel, picture: str) -> str:
    return vlm.ask(QUESTION, [picture]).text


def test_a_spawned_worker_answers_the_same(vlm: VisionLanguageModel) -> None:
    """The way out of fork: it got a TypeError instead of the model."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply_async(answer, (vlm, SCENE)).get(timeout=120)
    assert there == answer(vlm, SCENE)


@pytest.mark.parametrize("size", [-1, 1.5, "1G", None, True])
def test_an_impossible_cache_size_is_refused(size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """-1 was a KeyError at the first picture; it is told before anything is loaded."""
    monkeypatch.setattr(
        "qwen25vl.ecosystem.auto.load_model", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(UsageError, match=f"visual_cache_bytes is {size!r}"):
        load(visual_cache_bytes=size)


def test_reprs_are_short_and_telling(vlm: VisionLanguageModel) -> None:
    """In a notebook each was pages of tensors, or an address in memory."""
    chat = vlm.chat("Be brief.")
    said = chat.ask(QUESTION, [SCENE] * 5)
    messages = [{"role": "user", "content": [{"type": "image", "image": SCENE}]}]
    inputs = vlm.processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    written = vlm.model.generate(
        **inputs, max_new_tokens=2, return_dict_in_generate=True, output_logits=True
    )
    with torch.no_grad():
        logits = vlm.model(**inputs)
    pipe = qwen25vl.pipeline(model=vlm.model, processor=vlm.processor)
    for value, words in (
        (vlm, ["MB of weights", "bfloat16 on cpu", "demo"]),
        (said, [said.text, "stop", "scene.png", "2 more"]),
        (chat, ["1 turns", "Be brief."]),
        (chat.turns[0][1], ["AnswerStream", said.text]),
        (vlm.processor, ["max_pixels", "demo"]),
        (vlm.processor.tokenizer, ["control tokens"]),
        (inputs, ["int64 [1, ", "pixel_values=float32 [", "scene.png"]),
        (written, ["sequences=int64", "logits=2 × float32 [1, 1046]"]),
        (logits, ["logits=bfloat16 [1, "]),
        (vlm.model.config, ["num_hidden_layers=6", "depth=6"]),
        (vlm.model.generation_config, ["eos_token_id"]),
        (vlm.visual_cache, ["items", "bytes"]),
        (pipe, ["bfloat16 on cpu"]),
    ):
        shown = repr(value)
        assert len(shown) < 500, shown
        assert "tensor(" not in shown
        for word in words:
            assert word in shown, (word, shown)
    long = copy.copy(said)
    object.__setattr__(long, "text", "word " * 1000)
    assert len(repr(long)) < 500

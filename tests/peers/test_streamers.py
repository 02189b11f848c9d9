"""Streamers: what peers' tests assert of them (tests/generation/test_streamers.py of transformers),
with the built-in model and its tokenizer, and with transformers' tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from threading import Thread
from typing import Any

import pytest
import torch

import qwen25vl
from qwen25vl import TextIteratorStreamer, TextStreamer, VisionLanguageModel
from qwen25vl.errors import UsageError

QUESTION = [{"role": "user", "content": "Describe a dog and a cat."}]
NEW = {"max_new_tokens": 10, "do_sample": False}


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture(scope="module")
def inputs(vlm: VisionLanguageModel) -> Any:
    return vlm.processor.apply_chat_template(
        QUESTION, add_generation_prompt=True, tokenize=True, return_dict=True
    )


@pytest.fixture(scope="module", params=["ours", "theirs", "processor"])
def tokenizer(request: pytest.FixtureRequest, vlm: VisionLanguageModel) -> Any:
    if request.param == "theirs":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(Path(qwen25vl.__file__).parent / "demo"))
    return vlm.processor if request.param == "processor" else vlm.processor.tokenizer


def texts(vlm: VisionLanguageModel, inputs: Any, **options: Any) -> tuple[str, str]:
    """The prompt and the answer of one call, decoded as a whole."""
    (ids,) = vlm.model.generate(**inputs, **NEW)
    start, decode = inputs.input_ids.shape[1], vlm.processor.tokenizer.decode
    return decode(ids[:start], **options), decode(ids[start:], **options)


def test_the_printed_text_is_the_answers(
    vlm: VisionLanguageModel, inputs: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """StreamerTester::test_text_streamer_matches_non_streaming."""
    streamer = TextStreamer(tokenizer)
    vlm.model.generate(**inputs, **NEW, streamer=streamer)
    assert capsys.readouterr().out == "".join(texts(vlm, inputs)) + "\n"


def test_without_the_prompt(
    vlm: VisionLanguageModel, inputs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """StreamerTester::test_text_streamer_skip_prompt; the same streamer serves again."""
    streamer = TextStreamer(vlm.processor.tokenizer, skip_prompt=True)
    for _ in range(2):
        vlm.model.generate(**inputs, **NEW, streamer=streamer)
        assert capsys.readouterr().out == texts(vlm, inputs)[1] + "\n"


def test_options_of_decode(
    vlm: VisionLanguageModel, inputs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """StreamerTester::test_text_streamer_decode_kwargs: special tokens are left out."""
    end = vlm.processor.tokenizer.eos_token_id
    streamer = TextStreamer(vlm.processor.tokenizer, skip_special_tokens=True)
    streamer.put(torch.tensor([[end]]))
    streamer.end()
    assert capsys.readouterr().out == "\n"


def in_a_thread(vlm: VisionLanguageModel, inputs: Any, streamer: Any, **options: Any) -> Thread:
    given = {**inputs, **NEW, **options, "streamer": streamer}
    thread = Thread(target=vlm.model.generate, kwargs=given)
    thread.start()
    return thread


def test_pieces_join_to_the_answer(vlm: VisionLanguageModel, inputs: Any, tokenizer: Any) -> None:
    """StreamerTester::test_iterator_streamer_matches_non_streaming."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = in_a_thread(vlm, inputs, streamer)
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == texts(vlm, inputs, skip_special_tokens=True)[1]
    assert len(pieces) > 3
    assert "" not in pieces


def test_waiting_has_an_end(vlm: VisionLanguageModel, inputs: Any) -> None:
    """StreamerTester::test_iterator_streamer_timeout."""
    streamer = TextIteratorStreamer(vlm.processor.tokenizer, timeout=0.001)
    with pytest.raises(Empty):
        next(streamer)


def test_a_streamer_ends_with_an_error(vlm: VisionLanguageModel, inputs: Any) -> None:
    """Whoever iterates would wait for ever: options that do not exist, prompts that do not fit, and
    processors that fail all end the streamer."""

    def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("mine")

    for options, error in (
        ({"no_such_option": 1}, TypeError),
        ({"num_beams": 2}, UsageError),
        ({"max_length": 3}, UsageError),
        ({"logits_processor": [broken]}, ArithmeticError),
    ):
        streamer = TextIteratorStreamer(vlm.processor.tokenizer, skip_prompt=True, timeout=5)
        with pytest.raises(error):
            vlm.model.generate(**inputs, streamer=streamer, **options)
        assert list(streamer) == []


def test_one_answer_only(vlm: VisionLanguageModel, inputs: Any) -> None:
    """TextStreamer.put of transformers: several answers are a ValueError."""
    for shape in ((2, 3), (2, 1)):
        with pytest.raises(ValueError, match="writes one answer, the batch has 2"):
            TextStreamer(vlm.processor.tokenizer).put(torch.zeros(shape, dtype=torch.int64))
    streamer = TextStreamer(vlm.processor.tokenizer, skip_prompt=True)
    with pytest.raises(UsageError, match="the batch has 2"):
        vlm.model.generate(**inputs, **NEW, num_return_sequences=2, streamer=streamer)


def pieces_of(text: str, vlm: VisionLanguageModel) -> Iterator[str]:
    """What is handed out for a text, token by token."""
    streamer = TextIteratorStreamer(vlm.processor.tokenizer)
    for token in vlm.processor.tokenizer.encode(text):
        streamer.put(torch.tensor([token]))
        while not streamer.text_queue.empty():
            yield next(streamer)
    streamer.end()
    yield from streamer


def test_characters_come_whole(vlm: VisionLanguageModel) -> None:
    """A character of several tokens would be shown as U+FFFD first; lines that end begin anew."""
    for text in ("a 🦕 eats\n\nrice 饭 and", "Ω\n", "\U0001f9ff", "one\ntwo\nthree"):
        pieces = list(pieces_of(text, vlm))
        assert "".join(pieces) == text
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_pieces_of_ones_own(vlm: VisionLanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers' guide to streaming: `on_finalized_text` may also be called from outside."""
    TextStreamer(vlm.processor.tokenizer).on_finalized_text("a", stream_end=True)
    streamer = TextIteratorStreamer(vlm.processor.tokenizer)
    streamer.on_finalized_text("b", stream_end=True)
    assert (capsys.readouterr().out, list(streamer)) == ("a\n", ["b"])


def test_a_subclass_does_something_else(vlm: VisionLanguageModel, inputs: Any) -> None:
    """transformers' guide to streaming: `on_finalized_text` is overridden, as TextIteratorStreamer
    does."""
    seen: list[tuple[str, bool]] = []

    class Collects(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            seen.append((text, stream_end))

    vlm.model.generate(
        **inputs, **NEW, streamer=Collects(vlm.processor.tokenizer, skip_prompt=True)
    )
    assert [is_end for _, is_end in seen] == [False] * (len(seen) - 1) + [True]
    assert "".join(text for text, _ in seen) == texts(vlm, inputs)[1]


def test_streamers_of_transformers(vlm: VisionLanguageModel, inputs: Any) -> None:
    """The docs page image_text_to_text: theirs work with the tokenizer of this package."""
    from transformers import TextIteratorStreamer as Theirs

    streamer = Theirs(vlm.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = in_a_thread(vlm, inputs, streamer)
    text = "".join(streamer)
    thread.join()
    assert text == texts(vlm, inputs, skip_special_tokens=True)[1]

"""The times of an answer, from a clock that the test holds: no machine is fast or slow here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

import qwen25vl
from qwen25vl.engine.outbox import Chunk


class Clock:
    """A clock that stands still until it is told that something took a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def timed_vlm(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> qwen25vl.VisionLanguageModel:
    """The built-in model with everything it does replaced by known times, all powers of two."""
    vlm = qwen25vl.load()
    prepare = vlm.processor.apply_chat_template

    def prepare_slowly(*arguments: Any, **options: Any) -> Any:
        clock.work(0.5)
        return prepare(*arguments, **options)

    def write(inputs: Any, tokenizer: Any, *, progress: Any, **options: Any) -> Iterator[Chunk]:
        for stage, seconds in (("images", 2.0), ("videos", 1.0), ("prefill", 4.0)):
            clock.work(seconds)
            progress(stage, 1, 1)
        for done in range(1, num_tokens + 1):
            clock.work(0.25)
            progress("decode", done, num_tokens)
            is_last = done == num_tokens
            yield Chunk("A", 65, -1.0, 0, "stop" if is_last else None)

    monkeypatch.setattr(vlm.processor, "apply_chat_template", prepare_slowly)
    monkeypatch.setattr(vlm.model, "stream", write)
    return vlm


@pytest.mark.parametrize("num_tokens", [2, 3, 17])
def test_the_first_token_belongs_to_the_prompt(
    num_tokens: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token comes out of the pass over the prompt. An answer of 3 tokens was said to be
    written at one and a half times its speed where all 3 were divided by the time of 2."""
    timings = timed_vlm(clock, monkeypatch, num_tokens).ask("Hello?").timings
    assert timings.preprocess == 0.5
    assert timings.vision == 2.0 + 1.0
    assert timings.prefill == 4.0 + 0.25
    assert timings.decode == 0.25 * (num_tokens - 1)
    assert timings.tokens_per_second == 4.0


def test_one_token_has_no_speed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of a single token divided by no time at all."""
    timings = timed_vlm(clock, monkeypatch, 1).ask("Hello?").timings
    assert (timings.decode, timings.tokens_per_second) == (0.0, 0.0)
    assert timings.prefill == 4.25


def test_the_callers_time_is_not_the_models(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who prints slowly between two chunks made the model look slow."""
    stream = timed_vlm(clock, monkeypatch, 5).stream("Hello?")
    clock.work(64.0)
    for _ in stream:
        clock.work(8.0)
    timings = stream.answer.timings
    assert (timings.preprocess, timings.vision, timings.prefill) == (0.5, 3.0, 4.25)
    assert timings.tokens_per_second == 4.0


def test_half_an_answer_has_the_same_speed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """`answer` may be asked for at any time; tokens not yet written do not count."""
    stream = timed_vlm(clock, monkeypatch, 9).stream("Hello?")
    for _ in range(5):
        next(stream)
    assert stream.answer.usage.completion_tokens == 5
    assert stream.answer.timings.tokens_per_second == 4.0

"""Several threads at once, as in a server: the same results as one, and nothing left behind."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile
from processing.picture_files import encoded

import qwen25vl
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import MediaFormatError
from qwen25vl.processing import pillow
from qwen25vl.processing.media import load_picture

NUM_THREADS = 4


@pytest.fixture(autouse=True)
def _switching_all_the_time() -> Iterator[None]:
    """Python changes threads every 5 ms by default; a race may need thousands of changes."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def at_once(work: Callable[[int], Any], num_threads: int = NUM_THREADS) -> list[Any]:
    """What each thread's work gives; all of them start together."""
    start = threading.Barrier(num_threads)

    def run(number: int) -> Any:
        start.wait(10)
        return work(number)

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(run, range(num_threads)))


def check_bytes(cache: VisualCache) -> None:
    with cache.lock:
        stored = sum(item.nbytes for item in cache.items.values())
        assert cache.num_bytes == stored <= cache.max_bytes


def test_storing_at_once() -> None:
    """Room for ten of forty items: every thread throws out what the others look for. The number of
    bytes was right only as long as one thread stored at a time."""
    cache = VisualCache(10 * 64)
    tokens = [torch.full((16,), float(key)) for key in range(40)]

    def store(number: int) -> None:
        order = random.Random(number)
        for turn in range(1000):
            key = order.randrange(40)
            found = cache.find(key)
            assert found is None or torch.equal(found, tokens[key])
            cache.keep(key, tokens[key])
            check_bytes(cache)
            if turn % 400 == 399:
                cache.clear()

    at_once(store)
    check_bytes(cache)
    for key in range(40):
        cache.keep(key, tokens[key])
    assert (list(cache.items), cache.num_bytes) == (list(range(30, 40)), 640)


def test_a_shared_cache_gives_each_question_its_own_picture() -> None:
    """Four threads ask about four pictures through a cache with room for two and a half."""
    vlm = qwen25vl.load(visual_cache_bytes=0, prefix_cache_bytes=0)
    pictures = [Image.new("RGB", (56, 56), colour) for colour in ("red", "blue", "white", "black")]

    def logprob(number: int) -> float:
        question = "Describe the picture."
        stream = vlm.stream(question, images=[pictures[number]], max_new_tokens=5)
        return sum(chunk.logprob for chunk in stream)

    expected = [logprob(number) for number in range(4)]
    assert min(abs(a - b) for a, b in combinations(expected, 2)) > 0.02
    vlm.visual_cache = VisualCache(2**20)
    logprob(0)
    cache = VisualCache(vlm.visual_cache.num_bytes * 5 // 2)
    vlm.visual_cache = cache

    def ask(number: int) -> None:
        for turn in (number, number + 1, number + 3, number):
            assert logprob(turn % 4) == pytest.approx(expected[turn % 4], abs=0.005)
            check_bytes(cache)

    at_once(ask)
    assert len(cache.items) == 2


def test_pictures_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's switches hold for all threads. While a program accepts half pictures and refuses
    large ones, every thread here decodes the whole picture and refuses the half one, and the
    program's values are back at the end."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    wholes = [encoded(picture, kind) for kind in ("PNG", "BMP", "TIFF", "WEBP")]
    half = encoded(picture, "JPEG")[:-400]
    expected = [load_picture(data).tobytes() for data in wholes]

    def decode(number: int) -> None:
        for turn in range(12):
            which = (number + turn) % 4
            assert load_picture(wholes[which]).tobytes() == expected[which]
            with pytest.raises(MediaFormatError):
                load_picture(half)

    at_once(decode)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert Image.MAX_IMAGE_PIXELS == 50


def test_nobody_puts_the_switches_back_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread is about to put Pillow's switches back when the next one comes: it has to wait.
    Writing to Pillow's modules is made slow here, so that the two always meet."""

    class SlowModule(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            time.sleep(0.001)
            super().__setattr__(name, value)

    slow = SlowModule("ImageFile")
    slow.LOAD_TRUNCATED_IMAGES = True
    monkeypatch.setattr(pillow, "ImageFile", slow)

    def decode(number: int) -> None:
        for turn in range(40):
            with pillow.pillow_switches():
                for _ in range(3):
                    assert not slow.LOAD_TRUNCATED_IMAGES
                    time.sleep(0.0005)
            time.sleep(0.0005 * (turn % 4) * number)

    at_once(decode, 2)
    assert slow.LOAD_TRUNCATED_IMAGES is True


def test_two_models_are_loaded_at_once() -> None:
    """Loading replaces torch's functions for a while; a second load in between must not see, or
    leave behind, anything of that."""
    expected = qwen25vl.load().ask("Describe a dog.", max_new_tokens=6).text
    models = at_once(lambda _: qwen25vl.load(), 2)
    for vlm in models:
        assert vlm.ask("Describe a dog.", max_new_tokens=6).text == expected
        assert not any(parameter.is_meta for parameter in vlm.model.parameters())
    assert torch.nn.Linear(64, 64).weight.std() > 0.01  # initialised as ever
    assert torch.empty(1).device.type == "cpu"


def test_one_model_answers_several_at_once() -> None:
    """No module keeps anything of a request: four questions at once are answered as one by one."""
    vlm = qwen25vl.load()
    picture = Image.effect_noise((56, 84), 70).convert("RGB")
    questions = ["Describe the picture.", "What is red?", "How many?", "Where is the dog?"]

    def ask(number: int) -> tuple[str, str]:
        options: Any = {"max_new_tokens": 8, "min_new_tokens": 8, "seed": number}
        sampled = vlm.ask(questions[number], temperature=1.0, do_sample=True, **options)
        return vlm.ask(questions[number], images=[picture], **options).marked_text, sampled.text

    expected = [ask(number) for number in range(NUM_THREADS)]
    assert at_once(ask) == expected

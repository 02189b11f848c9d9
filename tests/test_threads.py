"""Several threads at once, as in a server: the same results as one, and nothing left behind."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile
from processing.picture_files import encoded

import qwen25vl
from qwen25vl import Qwen2_5_VLVisionConfig
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import MediaFormatError
from qwen25vl.model.vision import Qwen2_5_VLVisionModel
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


def test_a_shared_cache_counts_its_bytes() -> None:
    """Room for two and a half of six pictures: every thread throws out what the others need. The
    number of bytes was right only as long as one thread stored at a time."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(1, 16, 8, 2, out_hidden_size=16, fullatt_block_indexes=(0,))
    visual = Qwen2_5_VLVisionModel(config).requires_grad_(False)
    pictures = [torch.randn(16, 1176) for _ in range(6)]
    grid = [(1, 4, 4)]
    expected = [visual(picture, grid) for picture in pictures]
    cache = VisualCache(expected[0].nbytes * 5 // 2)

    def ask(number: int) -> None:
        order = random.Random(number)
        for turn in range(60):
            chosen = order.sample(range(6), 2)
            patches = torch.cat([pictures[i] for i in chosen])
            tokens = cache.encode(visual, patches, grid * 2)
            assert torch.equal(tokens, torch.cat([expected[i] for i in chosen]))
            with cache.lock:
                stored = sum(item.nbytes for item in cache.items.values())
                assert cache.num_bytes == stored <= cache.max_bytes
            if turn % 20 == 19:
                cache.clear()

    at_once(ask)
    assert cache.num_bytes == sum(item.nbytes for item in cache.items.values())


def test_storing_at_once() -> None:
    """The same without an encoder between two stores: nothing but the cache's own work."""
    cache = VisualCache(10 * 64)
    tokens = [torch.zeros(16) for _ in range(40)]

    def store(number: int) -> None:
        order = random.Random(number)
        for _ in range(400):
            cache.keep({key: tokens[key] for key in order.sample(range(40), 3)})

    at_once(store)
    assert (len(cache.items), cache.num_bytes) == (10, 640)


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

"""The engine under random use: from one thread and from four, with cancellations and faults."""

import gc
import random
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.errors import DeadlineError, NumericsError, OutOfMemoryError, UsageError
from qwen25vl.kernels import library
from qwen25vl.model.cache import KVCache
from qwen25vl.model.layers import has_compiled_layers

EXAMPLES = Path(__file__).parents[2] / "examples"
SCENE = EXAMPLES / "scene.png"
QUESTIONS = ["What is red?", "Describe the picture.", "How many things are there?", "Is it a dog?"]


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    vlm = qwen25vl.load()
    if not has_compiled_layers(vlm.model.dtype, vlm.model.device):
        pytest.skip(
            f"bits do not depend on company with kernels only, not with {library.describe()}"
        )
    return vlm


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> "weakref.WeakSet[KVCache]":
    """The caches that are alive."""
    alive: weakref.WeakSet[KVCache] = weakref.WeakSet()
    start = KVCache.__init__
    monkeypatch.setattr(
        KVCache, "__init__", lambda self, *given: (alive.add(self), start(self, *given))[1]
    )
    return alive


def request(vlm: VisionLanguageModel, number: int, **options: Any) -> Iterator[Any]:
    """One of eight requests: four questions, with and without a picture; greedy or sampled."""
    images = [SCENE] if number % 2 else []
    shape = {"temperature": 1.0, "seed": number} if number % 3 == 0 else {}
    return vlm.stream(QUESTIONS[number // 2], images, max_new_tokens=3 + number, **shape, **options)


class FaultError(Exception):
    pass


def use(vlm: VisionLanguageModel, wanted: list[list[int]], rng: random.Random) -> None:
    """Ask one request; take all of it, leave in the middle, or fail in the middle."""
    number, fate = rng.randrange(8), rng.random()
    seen: list[int] = []

    def report(stage: str, done: int, total: int) -> None:
        if fate < 0.1 and stage == "decode" and done == 3:
            raise FaultError

    vlm = VisionLanguageModel(vlm.model, vlm.processor, report, vlm.visual_cache, vlm.prefix_cache)
    stream = request(vlm, number)
    try:
        for chunk in stream:
            seen.append(chunk.token)
            if 0.1 <= fate < 0.3 and len(seen) == 2:
                break
    except FaultError:
        pass
    stream.close()
    assert seen == wanted[number][: len(seen)]
    assert fate < 0.3 or seen == wanted[number]


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("num_requests", [120, pytest.param(1000, marks=pytest.mark.slow)], ids=str)
def test_random_use(
    vlm: VisionLanguageModel,
    caches: "weakref.WeakSet[KVCache]",
    num_threads: int,
    num_requests: int,
) -> None:
    """Every answer is the one of its lone run, and nothing is left behind: a cancelled stream used
    to be the only one, and state on the model would mix them."""
    plain = VisionLanguageModel(vlm.model, vlm.processor)
    wanted = [[chunk.token for chunk in request(plain, number)] for number in range(8)]
    vlm.prefix_cache = PrefixCache(2**20)
    scheduler = vlm.model.engine.scheduler
    random_numbers = [random.Random(seed) for seed in range(num_requests)]
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(lambda rng: use(vlm, wanted, rng), random_numbers):
            pass
    assert (scheduler.running, scheduler.waiting, list(scheduler.arrivals)) == ([], [], [])
    assert scheduler.encoder.work is None
    vlm.prefix_cache.clear()
    gc.collect()
    assert len(caches) == 0


def test_threads_share_the_steps(vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight questions at once are written together, not one after another."""
    sizes: list[int] = []
    run = vlm.model.model.language_model.run
    monkeypatch.setattr(
        vlm.model.model.language_model, "run", lambda *a: sizes.append(len(a[2])) or run(*a)
    )
    barrier = threading.Barrier(8)

    def ask(number: int) -> str:
        barrier.wait()
        return str(vlm.ask(QUESTIONS[number % 4], [SCENE], max_new_tokens=40))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert max(sizes) > 4
    assert together == [str(vlm.ask(q, [SCENE], max_new_tokens=40)) for q in QUESTIONS] * 2


def test_a_fault_ends_one_answer_only(vlm: VisionLanguageModel) -> None:
    """A row that is not finite, and lack of memory in a shared step, belong to one request."""
    engine, core = vlm.model.engine, vlm.model.model.language_model
    embed = core.embed_tokens.forward
    poison = 77

    def poisoned(ids: torch.Tensor) -> torch.Tensor:
        rows = embed(ids)
        return rows.masked_fill((ids == poison)[:, None], torch.nan)

    def starved(embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        if embeds.isnan().any():
            raise RuntimeError(
                "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
            )
        return run(embeds, *rest)

    wanted = str(vlm.ask(QUESTIONS[0], max_new_tokens=12))
    ids = torch.tensor([[poison, 5, 6]])
    run = core.run
    for patch, error in ((None, NumericsError), (starved, OutOfMemoryError)):
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(core.embed_tokens, "forward", poisoned)
            if patch:
                patches.setattr(core, "run", patch)
            stream = vlm.stream(QUESTIONS[0], max_new_tokens=12)
            next(stream)
            with pytest.raises(error):
                vlm.model.generate(ids, max_new_tokens=4)
            for _ in stream:
                pass
        assert stream.text == wanted
    assert engine.scheduler.running == []


def test_a_progress_function_cannot_ask_the_same_model(vlm: VisionLanguageModel) -> None:
    """It would wait for itself for ever."""
    asker = VisionLanguageModel(
        vlm.model, vlm.processor, lambda *_: vlm.ask("And?", max_new_tokens=2)
    )
    with pytest.raises(UsageError, match="progress function"):
        asker.ask("What?", max_new_tokens=2)
    assert vlm.ask("What is red?", [SCENE]).text


def test_greedy_answers_to_one_prompt_are_equal(vlm: VisionLanguageModel) -> None:
    """They were refused; OpenAI's clients ask for n of them."""
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    one = vlm.model.generate(ids, max_new_tokens=4)
    three = vlm.model.generate(ids, max_new_tokens=4, num_return_sequences=3)
    assert torch.equal(three, one.repeat_interleave(3, dim=0))


def test_followers_survive_their_leader(vlm: VisionLanguageModel) -> None:
    """The second answer reads the prompt on when the first is cancelled before it is read."""
    from qwen25vl.engine.requests import Call, open_sequences
    from qwen25vl.engine.sequence import Outbox
    from qwen25vl.inputs import ModelInputs

    ids = torch.arange(5, 45)[None]
    inputs = ModelInputs(ids, torch.ones_like(ids))
    options = vlm.model.resolve_generation(
        None, {"do_sample": True, "seed": 3, "num_return_sequences": 3, "max_new_tokens": 5}
    )
    wanted = vlm.model.generate(ids, generation_config=options)[:, 40:].tolist()
    (leader,) = open_sequences(vlm.model, inputs, Call(options, Outbox()))
    followers = list(leader.followers)
    engine = vlm.model.engine
    engine.add([leader])
    engine.cancel([leader, followers[1]])
    engine.run_until(lambda: leader.outbox.num_open == 0)
    assert followers[0].tokens == wanted[1][: len(followers[0].tokens)]
    assert followers[0].finish_reason
    assert leader.tokens == followers[1].tokens == []


def test_deadlines(vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer ends with what it has; a prompt that is not even read by then is an error."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = vlm.stream("Describe the picture.", [SCENE], max_time=5.0, max_new_tokens=50)
    next(stream)
    now[0] = 6.0
    assert next(stream).finish_reason == "time"
    assert len(stream.tokens) == 2

    def late(stage: str, done: int, total: int) -> None:
        now[0] += 10.0

    asker = VisionLanguageModel(vlm.model, vlm.processor, late)
    with pytest.raises(DeadlineError):
        asker.ask("Describe the picture.", [SCENE], max_time=5.0)


def test_a_waiting_request_starts_when_there_is_room(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for one of them: the others wait instead of being refused, and kept caches go
    first."""
    from qwen25vl import memory

    wanted = [str(vlm.ask(q, [SCENE], max_new_tokens=10)) for q in QUESTIONS]
    assert vlm.prefix_cache is not None
    assert vlm.prefix_cache.kept
    widest: list[int] = []
    engine = vlm.model.engine
    step = engine.compute
    monkeypatch.setattr(
        engine, "compute", lambda: widest.append(len(engine.scheduler.running)) or step()
    )
    monkeypatch.setattr(memory, "available_bytes", lambda device: 9_500_000)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda q: str(vlm.ask(q, [SCENE], max_new_tokens=10)), QUESTIONS)
        assert list(answers) == wanted
    assert max(widest) < 4
    with pytest.raises(OutOfMemoryError, match=r"of at most 3500 tokens.* only 0.009 GB are free"):
        vlm.ask("Describe the picture.", [SCENE], max_new_tokens=3500)

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
    from qwen25vl.engine.outbox import Outbox
    from qwen25vl.engine.requests import Call, open_sequences
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

    long = {"max_new_tokens": 1500}
    wanted = [str(vlm.ask(q, [SCENE], **long)) for q in QUESTIONS]
    assert vlm.prefix_cache is not None
    assert vlm.prefix_cache.kept
    engine = vlm.model.engine
    needs: list[tuple[int, int]] = []
    arrive, compute = engine.scheduler.arrive, engine.compute
    widest: list[int] = []

    def note(sequences: Any) -> None:
        needs.extend((one.held_bytes, one.transient_bytes) for one in sequences)
        arrive(sequences)

    monkeypatch.setattr(engine.scheduler, "arrive", note)
    monkeypatch.setattr(
        engine, "compute", lambda: widest.append(len(engine.scheduler.running)) or compute()
    )
    vlm.ask(QUESTIONS[0], [SCENE], **long)
    held, transient = needs[0]
    monkeypatch.setattr(memory, "available_bytes", lambda device: transient + held * 3 // 2)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda q: str(vlm.ask(q, [SCENE], **long)), QUESTIONS)
        assert list(answers) == wanted
    assert max(widest) == 1
    with pytest.raises(OutOfMemoryError, match=r"of at most 3500 tokens.* GB are free"):
        vlm.ask("Describe the picture.", [SCENE], max_new_tokens=3500)


def test_options_out_of_range_hurt_nobody_else(vlm: VisionLanguageModel) -> None:
    """A temperature beyond float32 made NaN of excluded tokens; the error left all sequences of the
    step without a row to read, for ever."""
    wanted = str(vlm.ask(QUESTIONS[0], max_new_tokens=12))
    stream = vlm.stream(QUESTIONS[0], max_new_tokens=12)
    next(stream)
    hot = vlm.ask("What?", temperature=1e300, min_new_tokens=2, seed=0, max_new_tokens=3)
    assert hot.usage.completion_tokens == 3
    for _ in stream:
        pass
    assert stream.text == wanted


def test_an_error_while_choosing_is_one_sequences(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen25vl.engine import sampling

    wanted = str(vlm.ask(QUESTIONS[0], max_new_tokens=12))
    stream = vlm.stream(QUESTIONS[0], max_new_tokens=12)
    next(stream)

    def fail(*_: Any) -> int:
        raise FaultError

    monkeypatch.setattr(sampling, "draw", fail)
    with pytest.raises(FaultError):
        vlm.ask("What?", temperature=1.0, seed=0)
    for _ in stream:
        pass
    assert stream.text == wanted


@pytest.mark.parametrize("place", [1, 2, 4])
@pytest.mark.parametrize("name", ["run_rows", "write_tokens"])
def test_ctrl_c_in_the_middle_of_a_step_is_computed_again(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, name: str, place: int
) -> None:
    """Wherever a step is interrupted, the answers of others go on as if nothing had happened."""
    from qwen25vl.engine import engine

    wanted = str(vlm.ask(QUESTIONS[1], [SCENE], max_new_tokens=12))
    stream = vlm.stream(QUESTIONS[1], [SCENE], max_new_tokens=12)
    next(stream)
    real, calls = getattr(engine, name), []

    def interrupt(*given: Any) -> Any:
        """After the model's call, or before tokens are chosen from its logits."""
        calls.append(name)
        result = real(*given) if name == "run_rows" or len(calls) != place else None
        if len(calls) == place:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(engine, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            vlm.ask(QUESTIONS[2], max_new_tokens=20)
    for _ in stream:
        pass
    assert stream.text == wanted
    assert vlm.model.engine.runner is None


def test_a_progress_function_that_raises_ends_its_own_request(vlm: VisionLanguageModel) -> None:
    """At any stage; pictures of several callers are encoded together."""
    pictures = [SCENE, EXAMPLES / "boxes.png"]
    wanted = str(vlm.ask(QUESTIONS[1], pictures[1:], max_new_tokens=12))

    def fail(stage: str, done: int, total: int) -> None:
        if stage == "images":
            raise FaultError

    barrier = threading.Barrier(2)

    def ask(number: int) -> str:
        fresh = VisionLanguageModel(vlm.model, vlm.processor, None if number else fail)
        barrier.wait()
        try:
            return str(fresh.ask(QUESTIONS[1], [pictures[number]], max_new_tokens=12))
        except FaultError:
            return "fault"

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(ask, range(2))) == ["fault", wanted]
    assert vlm.model.engine.scheduler.encoder.work is None


def test_one_of_two_that_are_encoded_together_may_leave(vlm: VisionLanguageModel) -> None:
    """The other one gets its tokens; and a picture that is twice in a prompt is let go of twice."""
    from qwen25vl.engine.outbox import Outbox
    from qwen25vl.engine.requests import Call, open_sequences

    engine = vlm.model.engine
    options = vlm.model.resolve_generation(None, {"max_new_tokens": 4})

    def request(*pictures: Path) -> Any:
        content = [{"type": "image", "image": str(path)} for path in pictures]
        inputs = vlm.processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}],
            tokenize=True,
            return_dict=True,
            patch_dtype=vlm.model.dtype,
        )
        call = Call(options, Outbox(), prefixes=PrefixCache(2**20))
        return open_sequences(vlm.model, inputs, call)[0]

    leaving, staying = request(SCENE, SCENE), request(EXAMPLES / "boxes.png")
    engine.add([leaving, staying])
    engine.pace.step_seconds = 0.0
    engine.step()
    assert len(engine.scheduler.encoder.owners) == 2
    engine.cancel([leaving])
    engine.pace.step_seconds = 0.5
    engine.run_until(lambda: staying.outbox.num_open == 0)
    assert staying.outbox.error is None
    assert len(staying.tokens) == 4
    alone = request(SCENE, SCENE)
    engine.add([alone])
    engine.pace.step_seconds = 0.0
    engine.step()
    engine.cancel([alone])
    engine.pace.step_seconds = 0.5
    assert engine.scheduler.encoder.work is None
    assert not engine.is_busy


def test_a_paused_stream_blocks_nobody(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-read stream that holds all memory, and a question from the same thread: it waited for
    ever for a reader who waited for it."""
    from qwen25vl import memory
    from qwen25vl.engine import outbox

    monkeypatch.setattr(outbox, "MAX_UNREAD", 2)
    stream = vlm.stream("Describe the picture.", [SCENE], max_new_tokens=3000)
    next(stream)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 12_000_000)
    with pytest.raises(OutOfMemoryError):
        vlm.ask("Describe the picture.", [SCENE], max_new_tokens=3000)
    assert next(stream).token is not None


def test_a_model_is_freed_with_its_last_name() -> None:
    """A model and its engine knew each other: two generations of weights stayed in memory."""
    vlm = qwen25vl.load()
    vlm.ask("What is red?", max_new_tokens=2)
    model = weakref.ref(vlm.model)
    gc.disable()
    try:
        del vlm
        assert model() is None
    finally:
        gc.enable()


def test_a_stream_may_be_closed_by_another_thread(vlm: VisionLanguageModel) -> None:
    """A server cancels what another thread waits for."""
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": "Write."}], tokenize=True, return_dict=True
    )
    options = {"max_new_tokens": 3000, "eos_token_id": (), "max_repeated_tokens": 0}
    stream = vlm.model.stream(inputs, None, **options)
    next(stream)
    closer = threading.Timer(0.2, stream.close)
    closer.start()
    count = sum(1 for _ in stream)
    closer.join()
    assert count < 2999
    assert not vlm.model.engine.is_busy


def test_a_replaced_or_watched_encoder_is_used(vlm: VisionLanguageModel) -> None:
    """`generate` and `forward` see the same encoder, hooks on it included, beside others or not."""
    calls: list[Any] = []
    handle = vlm.model.visual.register_forward_hook(lambda *_: calls.append(1))
    plain = VisionLanguageModel(vlm.model, vlm.processor)
    answer = str(plain.ask("What is red?", [SCENE], max_new_tokens=6))
    handle.remove()
    assert calls == [1]
    assert str(plain.ask("What is red?", [SCENE], max_new_tokens=6)) == answer

"""The memory that a request is said to need, against what it takes; and what keeps it small."""

import gc
import json
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.demo import FOLDER
from qwen25vl.engine import footprint
from qwen25vl.engine.admission import needed_bytes, transient_bytes, untouched_bytes
from qwen25vl.engine.footprint import Request, measure
from qwen25vl.engine.need import (
    caches_of,
    describe_execution,
    describe_request,
    returns_caches,
)
from qwen25vl.engine.outbox import Outbox
from qwen25vl.engine.requests import Call, open_sequences
from qwen25vl.engine.scratch import Execution
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.errors import OutOfMemoryError
from qwen25vl.inputs import Patches
from qwen25vl.model.cache import KVCache, cache_bytes
from qwen25vl.model.windows import Run

ROOT = Path(__file__).parents[1]
SCENE = ROOT / "examples" / "scene.png"
CONFIG = Qwen2_5_VLConfig()
# in benchmarks/memory.py
MEASURED = {
    "a picture": 0,
    "a long prompt": 11,
    "answers": 15,
    "logits": 20,
}


def needs_proc() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks of resident memory are read from /proc")


@pytest.mark.parametrize("number", [MEASURED["a picture"], MEASURED["answers"]])
def test_the_stated_memory_is_taken(number: int) -> None:
    """Real bytes of a process of its own: a formula compared with itself says nothing. A cache that
    doubled, patches held to the end or a torn heap took 1.3 to 3 times what was promised."""
    needs_proc()
    check_measured(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(30))
def test_thirty_requests_take_what_is_stated(number: int) -> None:
    """Pictures, clips, batches, answers, precisions: within a tenth above 50 MB."""
    needs_proc()
    check_measured(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", MEASURED.values(), ids=MEASURED)
@pytest.mark.parametrize("shape", ["middle", "7b"])
def test_models_of_other_shapes_take_what_is_stated(number: int, shape: str) -> None:
    """Constants that were fitted to one model are no formula."""
    needs_proc()
    check_measured(number, shape)


def check_measured(number: int, shape: str = "narrow") -> None:
    program = str(ROOT / "benchmarks" / "memory.py")
    command = [sys.executable, program, "--one", str(number), "--shape", shape]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
    assert abs(found["stated"] - found["taken"]) <= max(5e6, 0.1 * found["taken"]), found


def test_every_part_of_a_request_counts() -> None:
    """What is asked for twice takes that much more:
    the check once knew nothing of answers and their length."""
    request = Request(prompts=(1000,), reserved=(100,))
    token = cache_bytes(CONFIG.text_config, 1)
    row = CONFIG.text_config.vocab_size * 4
    answer = measure(CONFIG, request, Execution()).answer

    def more(**changes: Any) -> int:
        return measure(CONFIG, replace(request, **changes), Execution()).answer - answer

    assert more(reserved=(5100,)) == 5000 * token
    assert more(answers=4) >= 3 * 1100 * token
    assert more(prompts=(1000, 500), reserved=(100, 100)) >= 600 * token
    assert more(num_returned=1) == 100 * row
    assert more(drafted=10) >= 10 * row / 2


def test_frames_larger_than_a_pass_and_several_passes() -> None:
    """One picture of 65,536 patches is one pass, whatever the limit; a clip of as many is several,
    each no wider."""
    empty = Request(prompts=(10,), reserved=(1,))
    picture = measure(CONFIG, replace(empty, images=((1, 256, 256),)), Execution()).images
    half = measure(CONFIG, replace(empty, images=((1, 256, 128),)), Execution()).images
    clip = measure(CONFIG, replace(empty, videos=((16, 64, 64),)), Execution()).videos
    assert picture > 1.9 * half
    assert clip < 0.75 * picture
    kept = measure(
        CONFIG,
        replace(empty, images=((1, 256, 256),), keeps_patches=True, patch_bytes=4),
        Execution(),
    )
    assert kept.images - picture >= 65536 * 1176 * 4


def test_a_refusal_counts_answers_and_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 answers, or 7000 tokens, did not count:
    the process was killed in the middle of an answer."""
    vlm = qwen25vl.load()
    inputs = {"input_ids": torch.full((1, 20), 5), "do_sample": True, "seed": 1, "eos_token_id": ()}
    monkeypatch.setattr("qwen25vl.memory.available_bytes", lambda device: 12_000_000)
    vlm.model.generate(**inputs, max_new_tokens=2)
    for options in ({"max_new_tokens": 7000}, {"max_new_tokens": 400, "num_return_sequences": 16}):
        with pytest.raises(
            OutOfMemoryError,
            match=r"of at most \d+ tokens, 20 prompt tokens .*needs .* GB of memory .* GB are free",
        ):
            vlm.model.generate(**inputs, **options)


@pytest.mark.parametrize("num_answers", [1, 6])
def test_what_the_prompt_left_is_given_back(
    num_answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stage needs was judged beside the caches of all answers: those of six were larger than
    a picture's encoding, and what that left on the heap stayed beside them."""
    vlm = qwen25vl.load(dtype="float32")
    released: list[int] = []
    monkeypatch.setattr("qwen25vl.engine.admission.release_free_memory", lambda: released.append(1))
    media = [{"type": "image", "image": Image.new("RGB", (840, 840))}]
    chat = [{"role": "user", "content": [*media, {"type": "text", "text": "What?"}]}]
    inputs = vlm.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    options = {"do_sample": True, "seed": 1, "num_return_sequences": num_answers}
    vlm.model.generate(**inputs, **options, max_new_tokens=2, max_length=None)
    assert len(released) == 3, "after decoding, encoding and reading"
    released.clear()
    vlm.model.generate(torch.full((1, 20), 5), **options, max_new_tokens=2)
    assert not released, "a short prompt leaves nothing that is worth the time"


def test_attention_of_the_encoder_lets_go_before_its_last_product() -> None:
    """Queries, keys and values, five rows of the width for each patch, stayed until it was done."""
    block = qwen25vl.load().model.model.visual.blocks[0]
    kept: list[Any] = []
    split = block.attn.split_heads

    def note(*given: Any) -> Any:
        kept.extend(map(weakref.ref, made := split(*given)))
        return made

    block.attn.split_heads = note
    alive: list[int] = []
    project = block.attn.proj.forward
    block.attn.proj.forward = lambda x: (
        alive.append(sum(one() is not None for one in kept)) or project(x)
    )
    width = block.attn.qkv.in_features
    x = torch.randn(64, width, dtype=torch.bfloat16)
    rotation = (
        torch.ones(64, 1, width // block.attn.num_heads // 2),
        torch.zeros(64, 1, width // block.attn.num_heads // 2),
    )
    with torch.inference_mode():
        block.attn(x, rotation, [Run(0, 1, 64)])
    assert alive == [0]


def test_prompts_that_are_read_together_need_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt's own need was counted, the largest of them, but one step reads all of them."""
    vlm = qwen25vl.load()
    engine, needs = vlm.model.engine, []
    arrive = engine.scheduler.arrive

    def note(sequences: list[Sequence]) -> None:
        own = max(one.transient_bytes for one in sequences)
        needs.append((own, transient_bytes(vlm.model, sequences)))
        arrive(sequences)

    monkeypatch.setattr(engine.scheduler, "arrive", note)
    for num_prompts in (1, 2, 20):
        vlm.model.generate(torch.full((num_prompts, 100), 5), max_new_tokens=2)
    (alone, same), (_, two), (own, twenty) = needs
    assert same == pytest.approx(alone, rel=0.01)
    assert own == alone
    width = vlm.model.config.text_config.hidden_size
    assert two - alone >= 100 * width * 2 * 6  # what attention holds of 100 rows more
    assert twenty - alone >= 19 * 100 * width * 2 * 6


def test_patches_in_memory_are_not_needed_again() -> None:
    """The free bytes were read after the pixels were made: counting these too refuses what fits."""
    model = qwen25vl.load().model
    pixels, grids = torch.zeros(5476, 1176), torch.tensor([[1, 74, 74]])
    inputs = qwen25vl.inputs.ModelInputs(
        torch.full((1, 1369), model.config.image_token_id),
        torch.ones(1, 1369, dtype=torch.long),
        pixels,
        grids,
    )
    options = model.resolve_generation(None, {})
    (sequence,) = open_sequences(model, inputs, Call(options, Outbox()))
    request = describe_request(model.config, inputs, options)
    found = measure(model.config, request, Execution())
    assert sequence.held_bytes + sequence.transient_bytes == found.peak - pixels.nbytes
    assert sequence.held_bytes > 0


def test_a_prompt_alone_is_read_when_its_patches_are_gone() -> None:
    """The step that reads it was counted beside the patches that came with it: of six pictures an
    eighth too much. Beside another sequence the step counts."""
    model = qwen25vl.load().model
    config = model.config
    pictures = [torch.zeros(4900, 1176, dtype=torch.bfloat16) for _ in range(6)]
    ids = torch.full((1, 6 * 1226), config.image_token_id)
    ids[:, ::1226] = config.vision_start_token_id
    grids = torch.tensor([[1, 70, 70]] * 6)
    inputs = qwen25vl.inputs.ModelInputs(ids, torch.ones_like(ids), Patches(pictures), grids)
    options = model.resolve_generation(None, {"max_new_tokens": 8})
    request = describe_request(config, inputs, options)
    peak = measure(config, request, describe_execution(model.dtype, model.device)).peak
    (sequence,) = open_sequences(model, inputs, Call(options, Outbox()))
    assert transient_bytes(model, [sequence]) == sequence.transient_bytes
    assert transient_bytes(model, [sequence, sequence]) > sequence.transient_bytes
    given = sum(part.nbytes for part in pictures)
    stated = given + sequence.held_bytes + sequence.transient_bytes
    assert stated == max(peak, given + sequence.held_bytes)


def test_what_is_returned_is_reserved_once_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of all steps counted as what the first sequence needs for a while: of two calls
    only the larger table counted, and none once the first answer of a call was over."""
    model = qwen25vl.load().model
    options = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    options |= {"eos_token_id": (), "max_new_tokens": 50, "do_sample": True, "seed": 1}
    ids = torch.full((2, 20), 5)
    engine, seen = model.engine, []
    arrive = engine.scheduler.arrive

    def note(sequences: list[Sequence]) -> None:
        seen.append(sequences)
        if len(seen) == 1:
            model.generate(ids, **options)
        arrive(sequences)

    monkeypatch.setattr(engine.scheduler, "arrive", note)
    out = model.generate(ids, **options, num_return_sequences=3)
    assert len(out.logits) == 50
    first, second = seen
    row = 4 * 2 * model.config.text_config.vocab_size  # logits and scores
    outboxes = [sequences[0].outbox for sequences in seen]
    assert [outbox.step_bytes for outbox in outboxes] == [6 * row, 2 * row]
    assert [outbox.bytes_to_come for outbox in outboxes] == [0, 0], "all of it is written"
    for outbox in outboxes:
        outbox.longest = 20
    together = [*first, *second]
    alone = sum(map(untouched_bytes, together)) + transient_bytes(model, together)
    assert needed_bytes(model, together) - alone == 30 * (6 + 2) * row
    assert needed_bytes(model, together[1:]) > 30 * (6 + 2) * row, "the first answer is over"


def test_a_call_waits_for_the_table_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tables fit alone, and not together: the second call begins when the first is over."""
    model = qwen25vl.load().model
    options = {"return_dict_in_generate": True, "output_logits": True, "eos_token_id": ()}
    options |= {"max_new_tokens": 200, "max_repeated_tokens": 0}
    ids = torch.full((1, 20), 5)
    wanted = model.generate(ids, **options).sequences
    engine = model.engine
    table = 4 * 200 * model.config.text_config.vocab_size
    (one,) = open_sequences(
        model, _inputs(ids), Call(model.resolve_generation(None, options), Outbox())
    )
    free = needed_bytes(model, [one]) + table * 3 // 2
    monkeypatch.setattr("qwen25vl.memory.available_bytes", lambda device: free)
    widest: list[int] = []
    compute = engine.compute
    monkeypatch.setattr(
        engine, "compute", lambda: widest.append(len(engine.scheduler.running)) or compute()
    )
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda _: model.generate(ids, **options).sequences, range(2))
        assert all(torch.equal(each, wanted) for each in found)
    assert max(widest[:90]) == 1, "of a table that is half written only the rest counts"


@pytest.mark.parametrize("options", [
    {"num_return_sequences": 3}, {"num_return_sequences": 3, "return_dict_in_generate": True},
    {"num_return_sequences": 3, "return_dict_in_generate": True, "use_cache": False},
    {"num_return_sequences": 3, "do_sample": True}, {"num_beams": 4, "num_return_sequences": 2},
], ids=str)  # fmt: skip
def test_caches_are_counted_alike(options: dict[str, Any]) -> None:
    """info counted one cache for greedy copies that go on apart, and the engine three."""
    model = qwen25vl.load().model
    resolved = model.resolve_generation(None, options)
    inputs = _inputs(torch.full((1, 20), 5))
    call = Call(resolved, Outbox(), keeps_caches=returns_caches(resolved))
    (sequence,) = open_sequences(model, inputs, call)
    request = describe_request(model.config, inputs, resolved)
    assert request.answers == caches_of(sequence)


def test_info_and_the_check_state_one_number(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two formulas part at the first change of one of them."""
    stated: list[int] = []
    count = footprint.measure

    def record(*given: Any) -> Any:
        stated.append(count(*given).peak)
        return count(*given)

    monkeypatch.setattr("qwen25vl.cli.info.measure", record)
    monkeypatch.setattr("qwen25vl.engine.need.measure", record)
    assert main(["info", "-m", str(FOLDER), "What is this?", "-i", str(SCENE)]) == 0
    from_info = stated[-1]
    vlm = qwen25vl.load()
    vlm.visual_cache = None
    next(vlm.stream("What is this?", [SCENE]))
    assert stated[-1] == from_info
    assert "tokens of answer included" in capsys.readouterr().out


@pytest.mark.parametrize("lookup", [0, 8])
def test_a_cache_is_reserved_once(lookup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It doubled by copying behind the back of the check:
    three times its size at the 257th token."""
    caches: list[KVCache] = []
    start = KVCache.__init__
    monkeypatch.setattr(
        KVCache, "__init__", lambda self, *given: (caches.append(self), start(self, *given))[1]
    )
    model = qwen25vl.load().model
    ids = torch.arange(20).repeat(3)[None]
    options = {"max_new_tokens": 300, "eos_token_id": (), "max_repeated_tokens": 0}
    stream = model.stream(_inputs(ids), None, **options)
    assert next(stream).index == 0
    places = [cache.storage.data_ptr() for cache in caches]
    assert [cache.capacity for cache in caches] == [360]
    monkeypatch.setattr(KVCache, "copy_storage", lambda *_: pytest.fail("a cache grew"))
    model.generate(ids, **options, prompt_lookup_num_tokens=lookup)
    assert places[0] == caches[0].storage.data_ptr()
    assert caches[1].length >= 359 - lookup


def test_a_copy_of_a_prefix_has_no_room_to_spare() -> None:
    """What is kept of a cancelled request counts by its tokens, so it must not hold more."""
    cache = KVCache(CONFIG.text_config, torch.bfloat16, capacity=40)
    cache.storage.normal_()
    cache.length, cache.next_position = 9, 12
    copied = cache.copy_of_prefix(4, 5)
    assert (copied.capacity, copied.length, copied.next_position) == (4, 4, 5)
    assert torch.equal(copied.storage, cache.storage[:, :, :, :4])
    assert copied.storage.untyped_storage().nbytes() == copied.storage.nbytes


def test_copies_for_several_answers_have_the_same_room() -> None:
    cache = KVCache(CONFIG.text_config, torch.bfloat16, capacity=40)
    cache.length, cache.next_position = 3, 7
    cache.storage[:, :, :, :3] = 1.5
    twin = cache.clone()
    assert (twin.capacity, twin.length, twin.next_position) == (40, 3, 7)
    assert torch.equal(twin.storage[:, :, :, :3], cache.storage[:, :, :, :3])
    cache.reserve(41)
    assert cache.capacity == 45  # a caller of forward grows it by an eighth, not to twice its size
    assert torch.equal(cache.storage[:, :, :, :3], twin.storage[:, :, :, :3])


def _inputs(ids: torch.Tensor) -> Any:
    return qwen25vl.inputs.ModelInputs(ids, torch.ones_like(ids))


def test_patches_in_bfloat16_give_the_bits_of_float32() -> None:
    """The package's own way makes half the bytes;
    the encoder rounds float32 patches to the same numbers."""
    vlm = qwen25vl.load()
    picture, clip = (
        Image.open(SCENE).convert("RGB"),
        torch.randint(256, (5, 3, 56, 84), dtype=torch.uint8),
    )
    media = [
        {"type": "image", "image": picture},
        {"type": "video", "video": clip, "sample_fps": 2.0},
    ]
    media.append({"type": "image", "image": picture.resize((300, 200))})
    chat = [{"role": "user", "content": [*media, {"type": "text", "text": "What?"}]}]
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}

    def logits(patch_dtype: torch.dtype | None, cache: VisualCache | None = None) -> torch.Tensor:
        inputs = vlm.processor.apply_chat_template(
            chat,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            patch_dtype=patch_dtype,
        )
        assert isinstance(inputs.pixel_values, torch.Tensor) == (patch_dtype is None)
        assert inputs.pixel_values.shape[1] == 1176
        return torch.stack(vlm.model.generate(**inputs, visual_cache=cache, **options).logits)

    expected = logits(None)
    assert torch.equal(logits(torch.bfloat16), expected)
    assert torch.equal(logits(torch.float32), expected)
    cache = VisualCache(2**26)
    assert torch.equal(logits(torch.bfloat16, cache), expected)
    assert torch.equal(logits(torch.bfloat16, cache), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_cut_rounds_once(dtype: torch.dtype, frames: int) -> None:
    """float16 has no kernel of its own:
    it is float32's result rounded, not another rounding on the way."""
    from qwen25vl.processing.image import ImageSettings, patchify

    pixels = torch.randint(256, (frames, 3, 100, 75), dtype=torch.uint8)
    whole, _ = patchify(pixels, ImageSettings(), (112, 84))
    assert torch.equal(patchify(pixels, ImageSettings(), (112, 84), dtype)[0], whole.to(dtype))


@pytest.mark.parametrize("cached", [False, True])
def test_pixels_are_gone_before_the_prompt_is_read(
    cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full-size photo's patches are hundreds of megabytes,
    and were kept until the answer was written."""
    vlm = qwen25vl.load()
    vlm.visual_cache = VisualCache(2**26) if cached else None
    made: list[weakref.ref[torch.Tensor]] = []
    left: list[int] = []
    patchify = qwen25vl.processing.prepare.patchify

    def watch(*given: Any, **named: Any) -> Any:
        patches, grid = patchify(*given, **named)
        made.append(weakref.ref(patches))
        return patches, grid

    run = vlm.model.model.language_model.run

    def count(*given: Any) -> torch.Tensor:
        gc.collect()
        left.append(sum(patches() is not None for patches in made))
        return run(*given)

    monkeypatch.setattr("qwen25vl.processing.prepare.patchify", watch)
    monkeypatch.setattr(vlm.model.model.language_model, "run", count)
    clip = torch.randint(256, (4, 3, 56, 84), dtype=torch.uint8)
    vlm.ask("What?", [SCENE, SCENE], [clip], max_new_tokens=2)
    assert len(made) == 3
    assert set(left) == {0}


def test_patches_are_handed_over() -> None:
    """Views across parts; what was taken is not held;
    a number that is not there is no endless loop."""
    parts = [torch.arange(12.0).view(6, 2), torch.arange(8.0).view(4, 2)]
    patches = Patches(list(parts))
    assert patches.shape == (10, 2)
    first = patches.take(4)
    assert [len(part) for part in first] == [4]
    assert [len(part) for part in patches.take(5)] == [2, 3]
    assert len(patches) == 1
    assert torch.equal(patches.to(dtype=torch.bfloat16).take(1)[0], parts[1][3:].bfloat16())
    assert len(patches) == 0
    with pytest.raises(IndexError):
        patches.take(1)

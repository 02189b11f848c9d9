"""A request has the same bits alone, in a batch, read in chunks and with its pictures encoded one
by one.

This is what lets a server group requests as it likes, and a repeated job give equal bytes. torch's
own products do not: they choose their order of sums by the number of rows.
"""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from instruction_sets import sets_here
from PIL import Image

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.engine.engine import Engine
from qwen25vl.engine.outbox import Outbox
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.requests import Call, open_sequences
from qwen25vl.engine.sequence import Sequence
from qwen25vl.inputs import ModelInputs
from qwen25vl.kernels import library

WEIGHTS = [None, "int8", "int4", "int4+vision"]


def picture(width: int, height: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(
        torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy()
    )


def user(text: str, *media: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


CONVERSATIONS = [
    user("Name three colours and say which of them is the warmest."),
    user("What is this?", {"type": "image", "image": picture(150, 90, 1)}),
    user(
        "Compare.",
        *({"type": "image", "image": picture(w, h, 2)} for w, h in ((280, 120), (57, 113))),
    ),
    user(
        "When?",
        {"type": "video", "video": [picture(84, 84, seed) for seed in range(4)], "fps": 2.0},
    ),
]
LONGEST = 6


@pytest.fixture(
    scope="module", params=[(isa, weights) for isa in sets_here() for weights in WEIGHTS], ids=str
)
def vlm(request: pytest.FixtureRequest) -> Iterator[VisionLanguageModel]:
    """The built-in model in each precision, by the kernels of each instruction set that this
    machine has."""
    isa, weights = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWEN25VL_KERNELS", isa)
        library.choose.cache_clear()
        yield qwen25vl.load(quantize=weights)
    library.choose.cache_clear()


def prepare(vlm: VisionLanguageModel, *numbers: int) -> ModelInputs:
    chosen = [CONVERSATIONS[number] for number in numbers]
    return vlm.processor.apply_chat_template(
        chosen,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )


def answer(
    vlm: VisionLanguageModel, *numbers: int, **options: Any
) -> list[tuple[list[int], torch.Tensor]]:
    """For each conversation its answer's tokens and their raw logits [tokens, V]."""
    output = vlm.model.generate(
        **prepare(vlm, *numbers), max_new_tokens=LONGEST, min_new_tokens=LONGEST,
        output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    logits = torch.stack(output.logits, dim=1)
    return list(zip(output.sequences[:, -LONGEST:].tolist(), logits, strict=True))


def assert_same(
    got: tuple[list[int], torch.Tensor], wanted: tuple[list[int], torch.Tensor]
) -> None:
    assert got[0] == wanted[0]
    assert torch.equal(got[1], wanted[1])


def test_alone_in_company_and_in_chunks(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four requests alone, together and in another order; read 1, 7 or 64 tokens at a time; with
    drafts; with another number of threads."""
    every = range(len(CONVERSATIONS))
    alone = [answer(vlm, number)[0] for number in every]
    for order in ((0, 1, 2, 3), (3, 1), (2, 0, 2)):
        for number, got in zip(order, answer(vlm, *order), strict=True):
            assert_same(got, alone[number])
    for size in (7, 64):
        monkeypatch.setattr("qwen25vl.engine.engine.MAX_TOKENS_PER_STEP", size)
        for number, got in zip(every, answer(vlm, *every), strict=True):
            assert_same(got, alone[number])
    monkeypatch.setattr("qwen25vl.engine.engine.MAX_TOKENS_PER_STEP", 1)
    assert_same(answer(vlm, 1)[0], alone[1])
    monkeypatch.undo()
    assert_same(answer(vlm, 2, prompt_lookup_num_tokens=4)[0], alone[2])
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        for number, got in zip((2, 3), answer(vlm, 2, 3), strict=True):
            assert_same(got, alone[number])
    finally:
        torch.set_num_threads(before)


def test_pictures_alone_and_together(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder sees all pictures of a batch in one pass, or parts of it in several."""
    inputs = prepare(vlm, 1, 2)
    assert inputs.pixel_values is not None
    assert inputs.image_grid_thw is not None
    sizes = inputs.image_grid_thw.prod(1).tolist()
    with torch.inference_mode():
        together = vlm.model.visual(inputs.pixel_values, inputs.image_grid_thw)
        parts = zip(inputs.pixel_values.split(sizes), inputs.image_grid_thw.split(1), strict=True)
        alone = torch.cat([vlm.model.visual(patches, grid) for patches, grid in parts])
        assert torch.equal(alone, together)
        monkeypatch.setattr("qwen25vl.model.vision.MAX_PATCHES_PER_PASS", 100)
        assert torch.equal(vlm.model.visual(inputs.pixel_values, inputs.image_grid_thw), together)


def open_request(
    vlm: VisionLanguageModel, number: int, prefixes: PrefixCache | None = None
) -> Sequence:
    options = vlm.model.resolve_generation(
        None, {"max_new_tokens": LONGEST, "min_new_tokens": LONGEST}
    )
    call = Call(options, Outbox(keeps_logits=True), prefixes=prefixes)
    (sequence,) = open_sequences(vlm.model, prepare(vlm, number), call)
    return sequence


def take(sequence: Sequence) -> tuple[list[int], torch.Tensor]:
    """What a finished sequence wrote."""
    assert sequence.outbox.error is None
    assert sequence.finish_reason == "length"
    return sequence.tokens, torch.stack([one.logits for one in sequence.outbox.chunks])


@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_the_engine_does(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Requests join and leave at random steps; prompts are read in chunks of 1 to 512 tokens beside
    writing answers, and the encoder is cut at every part; some are cancelled on the way; some begin
    with what a kept cache has. Tokens and logits are those of a request alone in a fresh engine."""
    rng = random.Random(seed)
    alone = [answer(vlm, number)[0] for number in range(len(CONVERSATIONS))]
    engine, prefixes = Engine(vlm.model), PrefixCache(2**24)
    monkeypatch.setattr(engine.pace, "time_left", lambda: 0.0)  # one part of the encoder a step
    monkeypatch.setattr("qwen25vl.model.vision.ROWS_IN_A_PART", rng.choice([24, 72, 136]))
    monkeypatch.setattr(engine.pace, "num_tokens", lambda: rng.choice([1, 7, 7, 19, 64, 128, 512]))
    numbers = [1, 0, 3, 2, 1, 2]
    doomed = {2, 4}
    sequences: list[Sequence] = []
    num_reused = 0
    while len(sequences) < len(numbers) or engine.is_busy:
        if len(sequences) < len(numbers) and rng.random() < 0.3:
            place = len(sequences)
            store = prefixes if place in (0, 4, 5) else None
            sequences.append(open_request(vlm, numbers[place], store))
            engine.add([sequences[-1]])
        engine.step()
        for place in doomed & set(range(len(sequences))):
            if rng.random() < 0.05:
                engine.cancel([sequences[place]])
    for place, sequence in enumerate(sequences):
        num_reused += sequence.num_reused
        if sequence.finish_reason or place not in doomed:
            assert_same(take(sequence), alone[numbers[place]])
    again = open_request(vlm, 1, prefixes)
    engine.add([again])
    engine.run_until(lambda: again.outbox.num_open == 0)
    assert again.num_reused == again.num_prompt - 1
    assert_same(take(again), alone[1])

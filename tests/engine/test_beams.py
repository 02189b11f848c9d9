"""Beam search in the engine's company: other requests change nothing, faults end one search alone,
an interrupted step is computed again, and its memory is counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import mixed_prompts, model_inputs

import qwen25vl
from qwen25vl import GenerationConfig, Qwen2_5_VLForConditionalGeneration, VisionLanguageModel
from qwen25vl.engine.beams import BeamSearch, copy_tail
from qwen25vl.engine.generate import stream
from qwen25vl.engine.outbox import Outbox
from qwen25vl.engine.requests import Call, open_sequences
from qwen25vl.engine.sampling import SamplerState
from qwen25vl.errors import NumericsError
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.cache import KVCache

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
BEAMS: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 10, "do_sample": False}


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture(scope="module")
def model(vlm: VisionLanguageModel) -> Qwen2_5_VLForConditionalGeneration:
    return vlm.model


def prepare(vlm: VisionLanguageModel, question: str = "Describe the picture.") -> ModelInputs:
    content = [{"type": "image", "image": str(SCENE)}, {"type": "text", "text": question}]
    return vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )


def open_search(vlm: VisionLanguageModel, **options: Any) -> Any:
    config = vlm.model.resolve_generation(None, {**BEAMS, **options})
    (sequence,) = open_sequences(vlm.model, prepare(vlm), Call(config, Outbox()))
    return sequence


def test_a_search_beside_others(vlm: VisionLanguageModel) -> None:
    """Searches of other widths, greedy answers and samples in the same steps: the answers and their
    caches are those of each alone, bit for bit."""
    engine = vlm.model.engine
    kinds: list[dict[str, Any]] = [{}, {"num_beams": 5}, {"num_beams": 1}, {"num_beams": 2}]
    alone = [run(vlm, open_search(vlm, **kind)) for kind in kinds]
    together = [open_search(vlm, **kind) for kind in kinds]
    engine.add(together[:2])
    for _ in range(3):
        engine.step()
    engine.add(together[2:])
    while engine.is_busy:
        engine.step()
    assert [written(one) for one in together] == alone


def run(vlm: VisionLanguageModel, sequence: Any) -> list[Any]:
    vlm.model.engine.add([sequence])
    while vlm.model.engine.is_busy:
        vlm.model.engine.step()
    return written(sequence)


def written(sequence: Any) -> list[Any]:
    return [(one.chunk.token, one.chunk.logprob) for one in sequence.outbox.chunks]


def test_rows_of_a_batch(vlm: VisionLanguageModel) -> None:
    """In a padded batch, with several answers to each: those of each prompt alone."""
    rows = [[300, 301, 302], [*range(400, 420)]]
    ids = torch.tensor([[0] * (20 - len(row)) + row for row in rows])
    options = {**BEAMS, "num_return_sequences": 2, "eos_token_id": -1}
    together = vlm.model.generate(ids, (ids > 0).long(), **options)[:, -10:]
    for row, alone_ids in enumerate(rows):
        alone = vlm.model.generate(torch.tensor([alone_ids]), **options)[:, -10:]
        assert torch.equal(together[2 * row : 2 * row + 2], alone)


def test_an_interrupted_step_is_computed_again(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while caches change hands: a cache that was half overwritten would be read as
    whole."""
    expected = run(vlm, open_search(vlm, eos_token_id=-1))
    calls: list[int] = []
    cut: list[bool] = []

    def interrupted(cache: KVCache, source: KVCache, start: int) -> None:
        calls.append(1)
        cut.append(cache.length == start)
        if len(calls) % 3 == 1:
            raise KeyboardInterrupt
        copy_tail(cache, source, start)

    monkeypatch.setattr("qwen25vl.engine.beams.copy_tail", interrupted)
    sequence = open_search(vlm, eos_token_id=-1)
    engine = vlm.model.engine
    engine.add([sequence])
    while engine.is_busy:
        try:
            engine.step()
        except KeyboardInterrupt:
            continue
    assert len(calls) > 3
    assert all(cut), "what a cache no longer has in common with its beam is gone before"
    assert [token for token, _ in written(sequence)] == [token for token, _ in expected]


def test_an_interrupted_first_step(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt's last token is read again, and its beams are opened again."""
    expected = run(vlm, open_search(vlm))
    settle = BeamSearch.settle
    calls: list[int] = []

    def interrupted(self: BeamSearch, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        settle(self, *arguments)

    monkeypatch.setattr(BeamSearch, "settle", interrupted)
    sequence = open_search(vlm)
    with pytest.raises(KeyboardInterrupt):
        run(vlm, sequence)
    while vlm.model.engine.is_busy:
        vlm.model.engine.step()
    assert written(sequence) == expected


def test_a_fault_ends_one_search(vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in a shared step is traced to its search, whose rows stay together."""
    expected = run(vlm, open_search(vlm))
    good, bad = open_search(vlm), open_search(vlm, num_beams=2)
    language_model = vlm.model.model.language_model
    compute = language_model.run

    def fail(embeds: Any, positions: Any, lengths: Any, caches: Any, *rest: Any) -> Any:
        if any(cache in bad.caches for cache in caches) and len(bad.tokens) > 2:
            raise RuntimeError("of this search")
        return compute(embeds, positions, lengths, caches, *rest)

    monkeypatch.setattr(language_model, "run", fail)
    vlm.model.engine.add([good, bad])
    while vlm.model.engine.is_busy:
        vlm.model.engine.step()
    assert written(good) == expected
    assert "of this search" in str(bad.outbox.error)
    assert not bad.outbox.chunks


def test_numbers_that_are_not_finite(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """They would win every search."""
    search = BeamSearch(GenerationConfig(num_beams=2), 5)
    search.begin(SamplerState(GenerationConfig()), KVCache(model.config.text_config, model.dtype))
    with pytest.raises(NumericsError, match="not finite"):
        search.advance(torch.tensor([[0.0, torch.nan]]), lambda tokens: None)


def test_what_beams_share_is_not_copied(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first step the prompt is never copied again: only what two beams have written
    since they parted."""
    starts: list[tuple[int, int]] = []

    def noted(cache: KVCache, source: KVCache, start: int) -> None:
        starts.append((start, source.length))
        copy_tail(cache, source, start)

    monkeypatch.setattr("qwen25vl.engine.beams.copy_tail", noted)
    sequence = open_search(vlm, eos_token_id=-1)
    run(vlm, sequence)
    assert starts
    assert all(sequence.num_prompt <= start <= stop for start, stop in starts)
    assert max(stop - start for start, stop in starts) <= 10


def test_memory_for_all_beams(vlm: VisionLanguageModel) -> None:
    """K caches are held, from the moment when the search is admitted."""
    one, four = (open_search(vlm, num_beams=n, max_new_tokens=900) for n in (1, 4))
    assert four.held_bytes == 4 * one.held_bytes
    peaks = [search.held_bytes + search.transient_bytes for search in (one, four)]
    assert peaks[1] > peaks[0]
    kept = Call(
        vlm.model.resolve_generation(None, {"num_return_sequences": 3}),
        Outbox(),
        keeps_caches=True,
    )
    (copies,) = open_sequences(vlm.model, prepare(vlm), kept)
    (single,) = open_sequences(
        vlm.model, prepare(vlm), Call(vlm.model.resolve_generation(None, {}), Outbox())
    )
    assert copies.held_bytes == 3 * single.held_bytes


def test_chunks_and_stop_strings(vlm: VisionLanguageModel) -> None:
    """A stream hands the answers of a search out as it does others: text, reasons, the stop string
    cut off."""
    inputs, tokenizer = prepare(vlm), vlm.processor.tokenizer
    free = vlm.model.generate(**inputs, **BEAMS)[0, inputs.input_ids.shape[1] :].tolist()
    text = tokenizer.decode(free, skip_special_tokens=True)
    stop = text.split()[2]
    options = vlm.model.resolve_generation(None, {**BEAMS, "stop_strings": stop})
    chunks = list(stream(vlm.model.engine, prepare(vlm), options, tokenizer=tokenizer))
    ids = vlm.model.generate(**prepare(vlm), **BEAMS, stop_strings=stop, tokenizer=tokenizer)
    assert [chunk.token for chunk in chunks] == ids[0, inputs.input_ids.shape[1] :].tolist()
    whole = tokenizer.decode([chunk.token for chunk in chunks], skip_special_tokens=True)
    assert "".join(chunk.text for chunk in chunks) == whole.split(stop)[0]
    assert [chunk.finish_reason for chunk in chunks][-1] in ("stop", "length")
    assert all(chunk.logprob <= 0 for chunk in chunks)


def test_a_question_is_answered_by_beams(vlm: VisionLanguageModel) -> None:
    """`ask` hands its answer out at the end of the search; the cache of its best beam serves the
    next question, whose answer is the same without it."""
    asked = qwen25vl.load(prefix_cache_bytes=2**22)
    for question in ("Describe the picture.", "Describe the picture.", "Where is the star?"):
        answer = asked.ask(question, [SCENE], num_beams=3, length_penalty=0.5, max_new_tokens=40)
        fresh = vlm.ask(question, [SCENE], num_beams=3, length_penalty=0.5, max_new_tokens=40)
        assert answer.text == fresh.text
        assert answer.finish_reason == "stop"
        last = answer
    assert last.usage.cached_tokens > 0


def test_prompts_with_every_kind_of_medium(untied_folder: Path) -> None:
    """Positions after clips and pictures: the score of an answer is that of one whole pass."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(untied_folder)
    options = {**BEAMS, "eos_token_id": -1, "repetition_penalty": 1.0}
    for prompt in mixed_prompts()[3:5]:
        inputs = model_inputs(prompt)
        out = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
        with torch.no_grad():
            inputs |= {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
            logits = model(**inputs).logits[0, -11:-1]
        likely = logits.log_softmax(-1).gather(1, out.sequences[0, -10:, None]).sum()
        torch.testing.assert_close(likely / 10, out.sequences_scores[0], atol=1e-4, rtol=1e-4)

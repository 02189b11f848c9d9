"""Logits to tokens, against transformers' processors and against the formulas."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from qwen25vl.engine import draws
from qwen25vl.engine.candidates import Row, keep_tokens
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.requests import draw_seed
from qwen25vl.engine.sampling import SamplerState, choose_tokens, process_logits
from qwen25vl.errors import NumericsError

VOCAB = 500


def rough_logits(rows: int, seed: int = 0) -> torch.Tensor:
    """Logits in steps of a quarter, so that many are equal."""
    logits = 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    return (4 * logits).round() / 4


def state(prompt: Any = (), answer: Any = (), *, key: int = 0, **options: Any) -> SamplerState:
    """A sequence that has written an answer so far."""
    made = SamplerState(GenerationConfig(**options), key, list(prompt))
    for token in answer:
        made.add(int(token))
    return made


def process(
    logits: torch.Tensor, prompts: Any = None, answers: Any = None, **options: Any
) -> torch.Tensor:
    prompts, answers = prompts or [[]] * len(logits), answers or [[]] * len(logits)
    pairs = zip(prompts, answers, strict=True)
    return process_logits(logits, [state(map(int, p), a, **options) for p, a in pairs])


def keep(scores: torch.Tensor, **options: Any) -> torch.Tensor:
    """Scores with −inf for what top-k, top-p and min-p exclude."""
    kept = torch.full_like(scores, -torch.inf)
    for row, result in zip(scores, kept, strict=True):
        tokens = keep_tokens(Row(row, float(row.max())), GenerationConfig(**options))
        result[tokens.ids] = row[tokens.ids]
    return kept


@pytest.mark.parametrize("k", [1, 5, 50, 499, 600])
def test_top_k(k: int) -> None:
    """Tokens equal to the k-th stay, as in transformers."""
    from transformers import TopKLogitsWarper

    ours = keep(rough_logits(4), top_k=k, do_sample=True)
    assert torch.equal(ours, TopKLogitsWarper(k)(None, rough_logits(4)))


@pytest.mark.parametrize("p", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("vocab", [VOCAB, 40000])
def test_top_p(p: float, vocab: int) -> None:
    """The tokens that a sort of the whole vocabulary keeps, peaked or flat, but for one by
    rounding."""
    from transformers import TopPLogitsWarper

    for spread in (0.1, 1.0, 5.0):
        logits = spread * torch.randn(4, vocab, generator=torch.Generator().manual_seed(3))
        ours, theirs = keep(logits, top_p=p), TopPLogitsWarper(p)(None, logits.double())
        assert int((ours.isfinite() != theirs.isfinite()).sum(-1).max()) <= (vocab > VOCAB)


def test_equal_tokens_stay_together_in_top_p() -> None:
    """Which of them transformers drops depends on an unstable sort, and so on the machine."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]])
    assert keep(logits, top_p=0.8).isfinite().tolist() == [[True, True, True, False, True]]
    kept = keep(rough_logits(4), top_k=40, top_p=0.9)
    lowest = kept.masked_fill(kept.isinf(), 99).amin(-1, keepdim=True)
    assert torch.equal(kept.isfinite(), rough_logits(4) >= lowest)


@pytest.mark.parametrize("p", [1e-9, 0.05, 0.5, 1.0])
def test_min_p(p: float) -> None:
    """1e-9 reaches below the candidates."""
    from transformers import MinPLogitsWarper

    ours = keep(rough_logits(4), min_p=p)
    assert torch.equal(ours, MinPLogitsWarper(p)(None, rough_logits(4)))


@pytest.mark.parametrize("penalty", [1.05, 1.3, 0.8])
def test_repetition_penalty(penalty: float) -> None:
    """Each token once however often it was seen; negative logits are multiplied."""
    from transformers import RepetitionPenaltyLogitsProcessor

    ids = torch.randint(VOCAB, (4, 300), generator=torch.Generator().manual_seed(1))
    ours = process(
        rough_logits(4), ids[:, :200].tolist(), ids[:, 200:].tolist(), repetition_penalty=penalty
    )
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(penalty)(ids, rough_logits(4)))


def test_order_of_the_whole_chain() -> None:
    """Temperature before the cuts, the penalty before all: another order keeps other tokens."""
    from transformers import (
        LogitsProcessorList,
        MinNewTokensLengthLogitsProcessor,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    reference = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            MinNewTokensLengthLogitsProcessor(6, 5, [3, 7]),
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(60),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
        ]
    )
    ids = torch.randint(VOCAB, (4, 9), generator=torch.Generator().manual_seed(1))
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2))
    shape = {"temperature": 0.7, "top_k": 60, "top_p": 0.9, "min_p": 0.02}
    others = {"repetition_penalty": 1.2, "min_new_tokens": 5, "eos_token_id": (3, 7)}
    scores = process(logits, ids[:, :6].tolist(), ids[:, 6:].tolist(), **shape, **others)
    assert torch.equal(keep(scores, **shape), reference(ids, logits))


def test_rows_have_options_of_their_own() -> None:
    """One step serves sequences of different callers: each row as if it were alone."""
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(4))
    states = [
        state([1, 2], [3, 3], repetition_penalty=1.3),
        state(answer=[4], presence_penalty=0.5, frequency_penalty=0.2, temperature=0.7, key=5),
        state(min_new_tokens=2, eos_token_id=(int(logits[2].argmax()),)),
        state([9], [9], temperature=2.0, top_k=7, key=6),
        state(),
    ]
    alone = [process_logits(row[None], [one])[0] for row, one in zip(logits, states, strict=True)]
    assert torch.equal(process_logits(logits, states), torch.stack(alone))
    chosen = choose_tokens(logits, states)
    single = [choose_tokens(row[None], [one])[0] for row, one in zip(logits, states, strict=True)]
    assert chosen == single
    assert chosen[2].token != int(logits[2].argmax())


def test_greedy_ignores_the_shape_but_not_the_penalties() -> None:
    logits = rough_logits(2)
    same = process(logits, do_sample=False, temperature=0.5, top_k=3)
    assert torch.equal(same, logits)
    penalised = process(logits, answers=[[1], [2]], repetition_penalty=2.0)
    assert not torch.equal(penalised, logits)


def test_presence_and_frequency_count_the_answer_only() -> None:
    """OpenAI's definition: once per token present, and once per occurrence; the prompt does not
    count."""
    logits = torch.zeros(2, VOCAB)
    scores = process(
        logits,
        [[9, 9], []],
        [[4, 4, 5], []],
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    wanted = torch.zeros(2, VOCAB)
    wanted[0, 4], wanted[0, 5] = -0.5 - 2 * 0.25, -0.5 - 0.25
    assert torch.equal(scores, wanted)


def test_end_tokens_are_barred_row_by_row() -> None:
    """Rows of one step may be of different length once others have finished."""
    scores = process(
        rough_logits(2), answers=[[1], [1, 2, 3]], min_new_tokens=3, eos_token_id=(8, 9)
    )
    assert scores[0, [8, 9]].isinf().all()
    assert torch.equal(scores[1], rough_logits(2)[1])


def test_greedy_takes_the_lowest_of_equals() -> None:
    """bfloat16 logits are often equal at the top; the choice must not depend on the machine."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [7, 400]] = 5.0
    (choice,) = choose_tokens(logits, [state()])
    assert choice.token == 7


def test_a_row_does_not_feel_its_neighbours() -> None:
    """The same key gives the same tokens alone and in a batch."""
    logits = rough_logits(3)

    def tokens(rows: list[int]) -> list[list[int]]:
        states = [state(temperature=1.5, top_p=0.95, key=5) for _ in rows]
        drawn = []
        for _ in range(10):
            choices = choose_tokens(logits[rows], states)
            for one, choice in zip(states, choices, strict=True):
                one.add(choice.token)
            drawn.append([choice.token for choice in choices])
        return drawn

    together = tokens([0, 1, 2])
    assert [[row[1]] for row in together] == tokens([1])
    assert len({row[1] for row in together}) > 1


def test_seeds() -> None:
    """Answers to one prompt differ; seed 0's second is not seed 1's first; torch.manual_seed rules
    without a seed."""
    keys = {draws.make_key(seed, number) for seed in (0, 1) for number in range(3)}
    assert len(keys) == 6
    assert draw_seed(7) == 7
    assert draw_seed(None) != draw_seed(None)
    torch.manual_seed(3)
    once = draw_seed(None)
    torch.manual_seed(3)
    assert draw_seed(None) == once


def test_random_numbers_depend_on_key_length_and_token_alone() -> None:
    """Uniform in (0, 1), and equal whichever other tokens are candidates."""
    ids = np.arange(100_000)
    numbers = draws.uniforms(1, 2, ids)
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi squared, 99 degrees of freedom
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert (draws.uniforms(1, 2, ids[7::1000]) == numbers[7::1000]).all()
    assert draws.uniform(1, 2, 77) == numbers[77]
    for other in (draws.uniforms(2, 2, ids), draws.uniforms(1, 3, ids)):
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.01


@pytest.mark.parametrize(
    "options",
    [{"do_sample": True}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.2}, {"temperature": 4.0}],
    ids=str,
)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    """With tokens that are no candidates, which must still win as often as they should."""
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, 1.5, *[-9.0] * 400]])
    one = state(**options)
    shaped = process_logits(scores, [one])
    wanted = keep(shaped, **options)[0].softmax(0)
    if options in ({"do_sample": True}, {"temperature": 4.0}):
        wanted = shaped[0].softmax(0)
    counts = torch.zeros(scores.shape[1])
    for key in range(4000):
        one.key = key
        counts[choose_tokens(scores, [one])[0].token] += 1
    assert torch.allclose(counts / 4000, wanted, atol=0.03)
    assert counts[2] == 0
    assert abs(float(counts[5:].sum()) / 4000 - float(wanted[5:].sum())) < 0.03


def test_log_probabilities_are_the_models_own() -> None:
    """Before penalties and temperature."""
    logits = rough_logits(2)
    choices = choose_tokens(
        logits, [state(temperature=0.3, key=1), state([3], repetition_penalty=2.0)]
    )
    log_probs = logits.double().log_softmax(-1)
    for row, choice in zip(log_probs, choices, strict=True):
        assert choice.logprob == pytest.approx(float(row[choice.token]), abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflow_is_an_error_of_its_row(bad: float) -> None:
    """float16 overflow used to print "!!!!" (token 0) without end; it must not end the answers of
    others."""
    logits = rough_logits(3)
    logits[1, 77] = bad
    states = [state(), state(temperature=1.0), state(temperature=1.0)]
    first, second, third = choose_tokens(logits, states)
    assert isinstance(second, NumericsError)
    assert "bfloat16 or float32" in str(second)
    assert first == choose_tokens(logits[:1], states[:1])[0]
    assert third == choose_tokens(logits[2:], states[2:])[0]


def test_choosing_is_fast() -> None:
    """A row of the real vocabulary took 2.7 ms: as long as a twentieth of a step."""
    logits = 2.5 * torch.randn(4, 151936, generator=torch.Generator().manual_seed(0))
    logits[:, ::800] += 14  # as peaked as a model's
    states = [
        state(range(2000), range(500), temperature=0.7, top_p=0.9, repetition_penalty=1.05, key=key)
        for key in range(4)
    ]
    choose_tokens(logits, states)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        choose_tokens(logits, states)
        times.append(time.perf_counter() - start)
    assert min(times) / 4 < 0.003  # 0.3 ms on an idle machine; a bound for a busy one

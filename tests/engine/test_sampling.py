"""Logits to tokens, against transformers' processors and against the formulas."""

from typing import Any

import pytest
import torch

from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.sampling import (
    choose_tokens,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    open_generators,
    penalise_repetition,
    process_logits,
)
from qwen25vl.errors import NumericsError

VOCAB = 500
NO_IDS = torch.zeros(0, dtype=torch.long)


def rough_logits(rows: int, seed: int = 0) -> torch.Tensor:
    """Logits in steps of a quarter, so that many are equal."""
    logits = 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    return (4 * logits).round() / 4


def process(
    logits: torch.Tensor, prompts: Any = None, answers: Any = None, **options: Any
) -> torch.Tensor:
    return process_logits(
        logits,
        GenerationConfig(**options),
        prompts or [NO_IDS] * len(logits),
        answers or [[]] * len(logits),
    )


@pytest.mark.parametrize("k", [1, 5, 50, 499, 600])
def test_top_k(k: int) -> None:
    """Tokens equal to the k-th stay, as in transformers."""
    from transformers import TopKLogitsWarper

    assert torch.equal(keep_top_k(rough_logits(4), k), TopKLogitsWarper(k)(None, rough_logits(4)))


@pytest.mark.parametrize("p", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("vocab", [VOCAB, 40000])
def test_top_p(p: float, vocab: int) -> None:
    """The tokens that a sort of the whole vocabulary keeps, peaked or flat, but for one by
    rounding."""
    from transformers import TopPLogitsWarper

    for spread in (0.1, 1.0, 5.0):
        logits = spread * torch.randn(4, vocab, generator=torch.Generator().manual_seed(3))
        ours, theirs = keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits.double())
        assert int((ours.isfinite() != theirs.isfinite()).sum(-1).max()) <= (vocab > VOCAB)


def test_equal_tokens_stay_together_in_top_p() -> None:
    """Which of them transformers drops depends on an unstable sort, and so on the machine."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]])
    assert keep_top_p(logits, 0.8).isfinite().tolist() == [[True, True, True, False, True]]
    kept = keep_top_p(keep_top_k(rough_logits(4), 40), 0.9)
    assert torch.equal(
        kept.isfinite(),
        rough_logits(4) >= kept.masked_fill(kept.isinf(), 99).amin(-1, keepdim=True),
    )


@pytest.mark.parametrize("p", [0.05, 0.5, 1.0])
def test_min_p(p: float) -> None:
    from transformers import MinPLogitsWarper

    assert torch.equal(keep_min_p(rough_logits(4), p), MinPLogitsWarper(p)(None, rough_logits(4)))


@pytest.mark.parametrize("penalty", [1.05, 1.3, 0.8])
def test_repetition_penalty(penalty: float) -> None:
    """Each token once however often it was seen; negative logits are multiplied."""
    from transformers import RepetitionPenaltyLogitsProcessor

    ids = torch.randint(VOCAB, (4, 300), generator=torch.Generator().manual_seed(1))
    ours = penalise_repetition(rough_logits(4), list(ids), penalty)
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
    ours = process(
        logits, list(ids[:, :6]), ids[:, 6:].tolist(), repetition_penalty=1.2, min_new_tokens=5, eos_token_id=(3, 7),
        temperature=0.7, top_k=60, top_p=0.9, min_p=0.02,
    )  # fmt: skip
    assert torch.equal(ours, reference(ids, logits))


def test_everything_is_done_in_float32() -> None:
    """In bfloat16 a penalty of 1.05 rounds away and the cuts fall elsewhere."""
    logits = rough_logits(2).bfloat16()
    options = {
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.05,
    }
    assert torch.equal(
        process(logits, answers=[[1], [2]], **options),
        process(logits.float(), answers=[[1], [2]], **options),
    )
    assert process(logits, repetition_penalty=1.05).dtype == torch.float32


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
        [torch.tensor([9, 9]), NO_IDS],
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
    assert choose_tokens(logits, GenerationConfig(), []).tolist() == [7]


def test_a_row_does_not_feel_its_neighbours() -> None:
    """The same seed gives the same tokens alone and in a batch."""
    config = GenerationConfig(temperature=1.5, top_p=0.95, seed=5)
    logits = rough_logits(3)

    def draw(rows: list[int]) -> list[list[int]]:
        generators = [open_generators(5, 1, torch.device("cpu"))[0] for _ in rows]
        scores = process_logits(logits[rows], config, [NO_IDS] * len(rows), [[]] * len(rows))
        return [choose_tokens(scores, config, generators).tolist() for _ in range(10)]

    together = draw([0, 1, 2])
    assert [[row[1]] for row in together] == draw([1])


def test_seeds() -> None:
    """Answers to one prompt differ; seed 0's second is not seed 1's first; torch.manual_seed rules
    without a seed."""
    cpu = torch.device("cpu")

    def first(seed: int | None, count: int = 1) -> list[int]:
        return [
            int(torch.randint(2**40, (), generator=g)) for g in open_generators(seed, count, cpu)
        ]

    assert first(0) == first(0)
    assert first(0, 3)[0] == first(0)[0]
    assert len({*first(0, 3), *first(1, 3)}) == 6
    assert first(None) != first(None)
    torch.manual_seed(3)
    once = first(None)
    torch.manual_seed(3)
    assert first(None) == once


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    config = GenerationConfig(do_sample=True)
    generator = open_generators(0, 1, torch.device("cpu"))
    draws = torch.cat([choose_tokens(scores, config, generator) for _ in range(4000)])
    frequencies = draws.bincount(minlength=4) / len(draws)
    assert torch.allclose(frequencies, scores[0].softmax(0), atol=0.03)
    assert frequencies[2] == 0


def test_log_probabilities_are_the_models_own() -> None:
    logits = rough_logits(2)
    assert torch.allclose(log_probabilities(logits).exp().sum(-1), torch.ones(2))
    assert torch.allclose(
        log_probabilities(logits.bfloat16()), logits.bfloat16().float().log_softmax(-1)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflow_is_an_error(bad: float) -> None:
    """float16 overflow used to print "!!!!" (token 0) without end."""
    logits = rough_logits(2)
    logits[1, 77] = bad
    with pytest.raises(NumericsError, match="bfloat16 or float32"):
        log_probabilities(logits)

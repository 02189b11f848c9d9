"""Lengths and logits processors: what peers' tests assert of them (tests/generation/ of
transformers), with transformers' own classes where it has them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from generation_models import (
    PAD,
    Pair,
    frequent_token,
    pair_fixture,  # noqa: F401
    picture_inputs,
    text_inputs,
)

from qwen25vl import LogitsProcessor, LogitsProcessorList
from qwen25vl.errors import UsageError

INPUTS = {"text": text_inputs, "pictures": picture_inputs}


@pytest.fixture(params=INPUTS, name="inputs")
def each_kind_of_inputs(request: pytest.FixtureRequest) -> dict[str, Any]:
    return INPUTS[request.param]()


@pytest.mark.parametrize("extra", [1, 4])
def test_max_length(pair: Pair, inputs: dict[str, Any], extra: int) -> None:
    """GenerationTesterMixin::test_greedy_generate: max_length counts the prompt."""
    length = inputs["input_ids"].shape[1] + extra
    ours, theirs = pair.run(inputs, max_length=length, eos_token_id=-1)
    assert ours.shape[1] == length
    assert ours.tolist() == theirs.tolist()


def test_max_new_tokens_goes_over_max_length(pair: Pair) -> None:
    """GenerationIntegrationTests::test_max_new_tokens_decoder_only: of both, that for new
    tokens."""
    inputs = text_inputs()
    ours, theirs = pair.run(inputs, max_length=20, max_new_tokens=3, eos_token_id=-1)
    assert ours.tolist() == theirs.tolist()
    assert ours.shape[1] == 8 + 3


def test_a_prompt_as_long_as_max_length(pair: Pair) -> None:
    """GenerationMixin._validate_generated_length: a ValueError in both."""
    inputs = text_inputs()
    for model in (pair.ours, pair.theirs):
        with pytest.raises(ValueError, match="max_length"):
            model.generate(**inputs, max_length=8)


@pytest.mark.parametrize("option", ["min_length", "min_new_tokens"])
def test_no_end_before_the_least_length(pair: Pair, option: str) -> None:
    """tests/generation/test_logits_process.py::test_min_length_dist_processor and
    …::test_new_min_length_dist_processor."""
    inputs = text_inputs()
    value = 5 + (8 if option == "min_length" else 0)
    end = frequent_token(pair, inputs)
    options = {"max_new_tokens": 9, "eos_token_id": end, option: value}
    ours, theirs = pair.run(inputs, **options)
    assert ours.tolist() == theirs.tolist()
    assert end not in ours[:, 8:13].flatten().tolist()


@pytest.mark.parametrize("option", [{"max_length": 20}, {"min_length": 12, "max_new_tokens": 12}])
def test_lengths_of_embeddings(pair: Pair, option: dict[str, int]) -> None:
    """GenerationIntegrationTests::test_max_length_if_input_embeds and
    test_min_length_if_input_embeds: they count embeddings as they count ids."""
    inputs = text_inputs()
    embeds = pair.ours.model.language_model.embed_tokens(inputs["input_ids"])
    options = {**option, "eos_token_id": frequent_token(pair, inputs), "do_sample": False}
    from_ids = pair.ours.generate(**inputs, **options)
    assert torch.equal(from_ids[:, 8:], pair.ours.generate(inputs_embeds=embeds, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1},
        {"bad_words_ids": [[17], [23, 29], [31, 37, 41]]},
        {"bad_words_ids": [[PAD], [12]], "eos_token_id": [PAD]},
        {"suppress_tokens": list(range(0, 300, 2))},
        {"begin_suppress_tokens": list(range(150))},
        {"forced_eos_token_id": 77},
        {"forced_eos_token_id": [77, 78], "eos_token_id": 78},
        {"forced_bos_token_id": 66},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3, "min_new_tokens": 3},
    ],
    ids=str,
)
def test_options_that_exclude_tokens(
    pair: Pair, inputs: dict[str, Any], options: dict[str, Any]
) -> None:
    """tests/generation/test_logits_process.py: test_no_repeat_ngram_dist_processor,
    test_no_bad_words_dist_processor, test_forced_eos_token_logits_processor, test_processor_list:
    the same answers; suppressed tokens too."""
    ours, theirs = pair.run(inputs, max_new_tokens=12, **options)
    assert ours.tolist() == theirs.tolist()


def test_bad_words_that_are_about_to_be_written(pair: Pair) -> None:
    """tests/generation/test_logits_process.py::test_no_bad_words_dist_processor: the answer's own
    tokens, one and two in a row, do not come up."""
    inputs = text_inputs(rows=1)
    free = pair.ours.generate(**inputs, max_new_tokens=6, eos_token_id=-1)[0, 8:].tolist()
    words = [[free[0]], free[2:4]]
    ours, theirs = pair.run(inputs, max_new_tokens=8, bad_words_ids=words, eos_token_id=-1)
    assert ours.tolist() == theirs.tolist()
    assert free[0] not in ours[0, 8:].tolist()


def test_a_forced_beginning(pair: Pair) -> None:
    """tests/generation/test_logits_process.py::test_forced_bos_token_logits_processor: after a
    prompt of one token."""
    inputs = text_inputs(length=1)
    ours, theirs = pair.run(
        inputs, forced_bos_token_id=66, begin_suppress_tokens=[40], max_new_tokens=4
    )
    assert ours.tolist() == theirs.tolist()
    assert ours[:, 1].tolist() == [66, 66]


def test_allowed_tokens(pair: Pair) -> None:
    """tests/generation/test_logits_process.py::test_prefix_constrained_logits_processor: the
    function is given the number of the prompt and its tokens."""
    choices = [[20, 21, 22], [30, 31]]

    def allowed(number: int, ids: torch.Tensor) -> list[int]:
        return choices[number]

    inputs = text_inputs()
    ours, theirs = pair.run(inputs, max_new_tokens=5, prefix_allowed_tokens_fn=allowed)
    assert ours.tolist() == theirs.tolist()
    assert set(ours[1, 8:].tolist()) <= {30, 31}
    with pytest.raises(UsageError, match="allows no token after 8 tokens"):
        pair.ours.generate(**inputs, prefix_allowed_tokens_fn=lambda number, ids: [])


class OnlyOne(LogitsProcessor):
    """Leaves one token, and notes what it is given."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.lengths: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.lengths.append(input_ids.shape[1])
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.token] = 0.0
        return kept


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: [p], lambda p: LogitsProcessorList([p])])
def test_a_processor_of_ones_own(pair: Pair, wrap: Callable[[Any], Any]) -> None:
    """GenerationIntegrationTests::test_custom_logits_processor: alone, in a list, in a
    LogitsProcessorList."""
    own = OnlyOne(55)
    out = pair.ours.generate(**text_inputs(rows=1), max_new_tokens=3, logits_processor=wrap(own))
    assert out[0, 8:].tolist() == [55, 55, 55]
    assert own.lengths == [8, 9, 10]


def test_processors_of_transformers(pair: Pair) -> None:
    """GenerationIntegrationTests::test_custom_logits_processor with the classes of the
    ecosystem."""
    from transformers import LogitsProcessorList as TheirList
    from transformers import NoBadWordsLogitsProcessor, TemperatureLogitsWarper

    processors = [TemperatureLogitsWarper(0.5), NoBadWordsLogitsProcessor([[17], [40]], PAD)]
    ours, theirs = pair.run(
        picture_inputs(), max_new_tokens=8, logits_processor=TheirList(processors)
    )
    assert ours.tolist() == theirs.tolist()


def test_a_list_of_processors_is_one() -> None:
    """tests/generation/test_logits_process.py::test_processor_list: one after the other."""
    halves = LogitsProcessorList([lambda ids, scores: scores / 2, lambda ids, scores: scores + 1])
    assert halves(torch.zeros(1, 3), torch.tensor([[4.0, 2.0]])).tolist() == [[3.0, 2.0]]
    with pytest.raises(NotImplementedError, match="LogitsProcessor defines no __call__"):
        LogitsProcessor()(torch.zeros(1, 3), torch.zeros(1, 3))


def test_processors_work_on_a_copy(pair: Pair) -> None:
    """GenerationIntegrationTests::test_logits_processor_not_inplace: one that writes into its
    scores does not change the raw logits that are returned."""

    def spoil(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.zero_()

    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}
    spoilt = pair.ours.generate(**text_inputs(), **options, logits_processor=[spoil])
    plain = pair.ours.generate(**text_inputs(), **options)
    assert torch.equal(spoilt.logits[0], plain.logits[0])

"""When answers end, and how likely they were: what peers' tests assert of it (tests/generation/ of
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

from qwen25vl import StoppingCriteria, StoppingCriteriaList
from qwen25vl.errors import UsageError


class UpTo(StoppingCriteria):
    def __init__(self, length: int, as_tensor: bool) -> None:
        self.length = length
        self.as_tensor = as_tensor

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> Any:
        is_over = input_ids.shape[1] >= self.length
        return torch.full((len(input_ids),), is_over) if self.as_tensor else is_over


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: [c], lambda c: StoppingCriteriaList([c])])
def test_a_criterion_of_ones_own(pair: Pair, as_tensor: bool, wrap: Callable[[Any], Any]) -> None:
    """GenerationIntegrationTests::test_custom_stopping_criteria: a bool or a tensor of bools ends
    the answer after the token that it was asked about."""
    out = pair.ours.generate(
        **text_inputs(),
        stopping_criteria=wrap(UpTo(11, as_tensor)),
        eos_token_id=-1,
        max_new_tokens=20,
        return_dict_in_generate=True,
    )
    assert out.sequences.shape == (2, 11)
    assert out.finish_reasons == ("stop", "stop")


def test_criteria_of_transformers(pair: Pair) -> None:
    """tests/generation/test_stopping_criteria.py::test_list_criteria, test_max_length_criteria,
    test_eos_token_criteria: its classes serve here."""
    from transformers import EosTokenCriteria, MaxLengthCriteria
    from transformers import StoppingCriteriaList as TheirList

    inputs = text_inputs(rows=1)
    end = frequent_token(pair, inputs)
    criteria = TheirList([MaxLengthCriteria(15), EosTokenCriteria(end)])
    options = {"max_new_tokens": 12, "eos_token_id": -1, "stopping_criteria": criteria}
    ours, theirs = pair.run(inputs, **options)
    assert ours.tolist() == theirs.tolist()


def test_a_list_of_criteria_is_one() -> None:
    """tests/generation/test_stopping_criteria.py::test_list_criteria: any of them ends an
    answer."""
    either = StoppingCriteriaList([UpTo(3, True), UpTo(9, False)])
    assert either(torch.zeros(2, 3), None).tolist() == [True, True]
    assert either(torch.zeros(2, 2), None).tolist() == [False, False]
    with pytest.raises(NotImplementedError, match="StoppingCriteria defines no __call__"):
        StoppingCriteria()(torch.zeros(1, 3), None)


def test_criteria_see_the_scores_that_are_kept(pair: Pair) -> None:
    """GenerationMixin._sample hands its criteria the scores of all steps, if they are kept."""
    seen: list[Any] = []
    for keeps in (False, True):
        pair.ours.generate(
            **text_inputs(rows=1),
            max_new_tokens=2,
            eos_token_id=-1,
            return_dict_in_generate=keeps,
            output_scores=keeps,
            stopping_criteria=[lambda ids, scores: bool(seen.append(scores))],
        )
    assert seen[:2] == [None, None]
    assert [len(scores) for scores in seen[2:]] == [1, 2]


@pytest.mark.refused("each answer is asked about alone, so what ends one does not end the others")
def test_one_bool_for_a_whole_batch(pair: Pair) -> None:
    """tests/generation/test_stopping_criteria.py: a criterion that looks at the first row only ends
    the whole batch there."""
    inputs = text_inputs(rows=2)
    free = pair.ours.generate(**inputs, max_new_tokens=6, eos_token_id=-1)
    end = int(free[0, 9])
    assert end not in free[1, 8:].tolist()
    out = pair.ours.generate(
        **inputs,
        max_new_tokens=6,
        eos_token_id=-1,
        stopping_criteria=[lambda ids, scores: bool(ids[0, -1] == end)],
    )
    assert out[0].tolist() == [*free[0, :10].tolist(), *[PAD] * 4]
    assert torch.equal(out[1], free[1])


@pytest.mark.parametrize("ends", [lambda end: end, lambda end: [end], lambda end: [end, 12]])
def test_an_end_as_a_number_or_a_list(pair: Pair, ends: Callable[[int], Any]) -> None:
    """GenerationIntegrationTests::test_eos_token_id_int_and_list_greedy_search."""
    inputs = text_inputs()
    given = ends(frequent_token(pair, inputs))
    ours, theirs = pair.run(inputs, max_new_tokens=9, eos_token_id=given)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores(pair: Pair, normalize: bool) -> None:
    """GenerationIntegrationTests::test_transition_scores_greedy_search and …_normalized."""
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 5}
    ours, theirs = pair.run(picture_inputs(), **options, eos_token_id=-1)
    mine = pair.ours.compute_transition_scores(
        ours.sequences, ours.scores, normalize_logits=normalize
    )
    their = pair.theirs.compute_transition_scores(
        theirs.sequences, theirs.scores, normalize_logits=normalize
    )
    torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="output_scores=True"):
        pair.ours.compute_transition_scores(ours.sequences, ())


def test_time_is_up(pair: Pair) -> None:
    """tests/generation/test_stopping_criteria.py::test_max_time_criteria."""
    out = pair.ours.generate(
        **text_inputs(rows=1), max_new_tokens=4000, eos_token_id=-1, max_time=0.3,
        max_repeated_tokens=0, return_dict_in_generate=True,
    )  # fmt: skip
    assert out.finish_reasons == ("time",)

"""Beam search: what peers' tests assert of it, and the same tokens as transformers 5.23 has, for
every option."""

from typing import Any

import pytest
import torch
from generation_models import (
    PAD,
    VOCAB,
    Pair,
    frequent_token,
    pair_fixture,  # noqa: F401
    picture_inputs,
    text_inputs,
)

from qwen25vl import TextStreamer
from qwen25vl.errors import UsageError

NEW = 6
DICT: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
}


def prompts_with_pictures() -> list[dict[str, Any]]:
    """Twenty, with pictures of different shapes."""
    sides = [(2, 2), (4, 6), (6, 4), (8, 10), (2, 12)]
    return [picture_inputs(rows=1, seed=seed, sides=sides[seed % 5]) for seed in range(20)]


@pytest.mark.parametrize("number", range(20))
def test_four_beams_on_pictures(pair: Pair, number: int) -> None:
    """GenerationTesterMixin::test_beam_search_generate: 20 prompts with pictures, an end that comes
    up in each, and the same tokens."""
    inputs = prompts_with_pictures()[number]
    end = frequent_token(pair, inputs, place=number % 4)
    options = {"num_beams": 4, "max_new_tokens": 16, "eos_token_id": [end, PAD]}
    ours, theirs = pair.run(inputs, **options)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("num_returned", [1, 3])
def test_every_rule_of_the_end(
    pair: Pair, early_stopping: Any, length_penalty: float, num_returned: int
) -> None:
    """GenerationTesterMixin::test_beam_search_generate, GenerationIntegrationTests::
    test_beam_search_early_stop_heuristic: when a search ends decides which answers it returns."""
    for seed in range(3):
        inputs = picture_inputs(rows=1, seed=seed)
        ours, theirs = pair.run(
            inputs,
            num_beams=3,
            num_return_sequences=num_returned,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            max_new_tokens=10,
            eos_token_id=[frequent_token(pair, inputs), 77],
        )
        assert ours.tolist() == theirs.tolist()


def test_beams_as_a_dict(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_search_generate_dict_output: scores of all beams at each
    step, the answers' own scores, and where each token comes from."""
    inputs = picture_inputs()
    ours, theirs = pair.run(
        inputs, **DICT, num_beams=3, num_return_sequences=2, max_new_tokens=NEW, eos_token_id=-1
    )
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.beam_indices.tolist() == theirs.beam_indices.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores)
    for name in ("scores", "logits"):
        assert len(ours[name]) == NEW
        for mine, their in zip(ours[name], theirs[name], strict=True):
            assert mine.shape == (2 * 3, VOCAB)
            torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)


def test_without_scores_there_are_none(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_search_generate_dict_output: only what is asked for."""
    out = pair.ours.generate(
        **text_inputs(), num_beams=2, max_new_tokens=3, return_dict_in_generate=True
    )
    assert (out.scores, out.logits, out.sequences_scores) == (None, None, None)


def test_processors_work_on_log_probabilities(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_search_generate with its processors: penalties, bad words
    and n-grams change which beams win."""
    for inputs in (text_inputs(rows=1), picture_inputs(rows=1, seed=3)):
        ours, theirs = pair.run(
            inputs,
            num_beams=4,
            max_new_tokens=10,
            min_new_tokens=4,
            eos_token_id=frequent_token(pair, inputs),
            repetition_penalty=1.3,
            no_repeat_ngram_size=2,
            bad_words_ids=[[40], [50, 51]],
            renormalize_logits=True,
        )
        assert ours.tolist() == theirs.tolist()


def test_a_batch_of_searches(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_search_generate: rows that end at different steps, each with
    the answers that it has alone."""
    inputs = text_inputs(rows=3)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 9}
    options["eos_token_id"] = frequent_token(pair, inputs)
    ours, theirs = pair.run(inputs, **options)
    assert ours.tolist() == theirs.tolist()


def test_caches_of_beams(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_search_generate_dict_outputs_use_cache. There the cache is
    that of the last step's beams; here each answer has one that it goes on from."""
    inputs = text_inputs(rows=1)
    options = {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": -1, "do_sample": False}
    out = pair.ours.generate(
        **inputs, **options, max_new_tokens=NEW, return_dict_in_generate=True, use_cache=True
    )
    first, second = out.past_key_values
    assert first.storage.data_ptr() != second.storage.data_ptr()
    fresh = pair.ours.generate(out.sequences, max_new_tokens=4, do_sample=False)
    again = pair.ours.generate(
        out.sequences, past_key_values=out.past_key_values, max_new_tokens=4, do_sample=False
    )
    assert torch.equal(fresh, again)


def test_beam_samples(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_sample_generate and …_dict_output: shape, and a seed that
    decides."""
    inputs = picture_inputs()
    options: dict[str, Any] = {"num_beams": 2, "do_sample": True, "top_k": 20, "temperature": 1.5}
    options |= {"max_new_tokens": NEW, "min_new_tokens": NEW}
    one, same, other = (pair.ours.generate(**inputs, **options, seed=s) for s in (1, 1, 2))
    assert one.shape == (2, inputs["input_ids"].shape[1] + NEW)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    out = pair.ours.generate(**inputs, **options, **DICT, seed=1)
    assert torch.equal(out.sequences, one)
    assert max(int(scores.isfinite().sum(dim=1).max()) for scores in out.scores) <= 20


def test_beams_draw_by_their_probabilities(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_sample_generate: the first tokens of many searches have the
    frequencies of sampling without replacement."""
    from qwen25vl import GenerationConfig
    from qwen25vl.engine.beams import draw_several
    from qwen25vl.engine.sampling import SamplerState

    totals = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    drawn = torch.stack(
        [draw_several(totals, 2, SamplerState(GenerationConfig(), key)) for key in range(3000)]
    )
    share = (drawn[:, 0] == 0).double().mean().item()
    assert abs(share - 0.5) < 0.03
    second = ((drawn[:, 0] == 0) & (drawn[:, 1] == 1)).double().mean().item()
    assert abs(second - 0.5 * 0.3 / 0.5) < 0.03
    assert not bool((drawn == 3).any())


def test_from_embeddings(pair: Pair) -> None:
    """GenerationTesterMixin::test_generate_from_inputs_embeds_1_beam_search."""
    inputs = text_inputs()
    embeds = pair.ours.model.language_model.embed_tokens(inputs["input_ids"])
    options = {"num_beams": 2, "max_new_tokens": NEW, "do_sample": False}
    from_ids = pair.ours.generate(**inputs, **options)
    from_embeds = pair.ours.generate(inputs_embeds=embeds, **options)
    assert torch.equal(from_ids[:, inputs["input_ids"].shape[1] :], from_embeds)


@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores(pair: Pair, normalize: bool) -> None:
    """GenerationIntegrationTests::test_transition_scores_beam_search and …_normalized: they add up
    to the answers' scores."""
    inputs = text_inputs()
    end = frequent_token(pair, inputs)
    ours, theirs = pair.run(
        inputs,
        **DICT,
        num_beams=4,
        num_return_sequences=2,
        max_new_tokens=8,
        eos_token_id=end,
        length_penalty=0.0,
        repetition_penalty=1.0,
    )
    mine = pair.ours.compute_transition_scores(
        ours.sequences, ours.scores, ours.beam_indices, normalize_logits=normalize
    )
    their = pair.theirs.compute_transition_scores(
        theirs.sequences, theirs.scores, theirs.beam_indices, normalize_logits=normalize
    )
    torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)
    if not normalize:
        torch.testing.assert_close(mine.sum(dim=1), ours.sequences_scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ends", ["one", "list"])
def test_an_end_as_a_number_or_a_list(pair: Pair, ends: str) -> None:
    """GenerationIntegrationTests::test_eos_token_id_int_and_list_beam_search."""
    inputs = text_inputs(rows=1)
    end = frequent_token(pair, inputs)
    given = end if ends == "one" else [end]
    ours, theirs = pair.run(inputs, num_beams=3, max_new_tokens=9, eos_token_id=given)
    assert ours.tolist() == theirs.tolist()


def test_what_beams_cannot_do(pair: Pair) -> None:
    """GenerationIntegrationTests::test_validate_generation_inputs and GenerationMixin.generate's
    own checks: a streamer, more answers than beams, drafts."""
    inputs = text_inputs(rows=1)
    for options, words in (
        ({"streamer": TextStreamer(None)}, "give no streamer"),
        ({"num_return_sequences": 3}, "no more answers than beams"),
        ({"prompt_lookup_num_tokens": 3}, "needs num_beams=1"),
    ):
        with pytest.raises(UsageError, match=words):
            pair.ours.generate(**inputs, num_beams=2, max_new_tokens=2, **options)


def test_stopping_criteria_end_beams(pair: Pair) -> None:
    """GenerationIntegrationTests::test_custom_stopping_criteria: called for each candidate."""
    inputs = text_inputs(rows=1)
    end = frequent_token(pair, inputs)

    def is_over(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        return ids[:, -1] == end

    options = {"num_beams": 3, "max_new_tokens": 9, "eos_token_id": -1}
    ours, theirs = pair.run(inputs, **options, stopping_criteria=[is_over])
    assert ours.tolist() == theirs.tolist()


def test_only_some_tokens_are_allowed(pair: Pair) -> None:
    """GenerationTesterMixin::test_beam_search_generate with prefix_allowed_tokens_fn: fewer tokens
    than beams."""

    def allowed(number: int, ids: torch.Tensor) -> list[int]:
        return [20, 21] if len(ids) % 2 else [30]

    ours, theirs = pair.run(
        text_inputs(), num_beams=3, max_new_tokens=6, prefix_allowed_tokens_fn=allowed
    )
    assert ours.tolist() == theirs.tolist()

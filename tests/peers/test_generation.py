"""What the tests of transformers' GenerationMixin assert of any model: greedy answers, samples, and
what generate returns beside the ids. The docstrings name the peer's test (tests/generation/
test_utils.py of transformers)."""

from typing import Any

import pytest
import torch
from generation_models import (
    PAD,
    VOCAB,
    Pair,
    frequent_token,
    padded,
    pair_fixture,  # noqa: F401
    picture_inputs,
    text_inputs,
)

from qwen25vl.engine.answers import GenerateOutput
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.model.cache import KVCache

NEW = 5
DICT: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
}
INPUTS = {"text": text_inputs, "pictures": picture_inputs}


@pytest.fixture(params=INPUTS, name="inputs")
def each_kind_of_inputs(request: pytest.FixtureRequest) -> dict[str, Any]:
    return INPUTS[request.param]()


def test_greedy_answers_have_the_length_that_is_asked_for(
    pair: Pair, inputs: dict[str, Any]
) -> None:
    """GenerationTesterMixin::test_greedy_generate: prompt + new tokens, and here the same ones."""
    ours, theirs = pair.run(inputs, max_new_tokens=NEW, min_new_tokens=NEW)
    assert ours.shape == (2, inputs["input_ids"].shape[1] + NEW)
    assert ours.tolist() == theirs.tolist()


def test_greedy_answers_as_a_dict(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_greedy_generate_dict_outputs: ids, scores and logits of each
    step."""
    ours, theirs = pair.run(inputs, **DICT)
    assert isinstance(ours, GenerateOutput)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len(ours.scores) == len(ours.logits) == NEW
    for name in ("scores", "logits"):
        for mine, their in zip(ours[name], theirs[name], strict=True):
            assert mine.shape == (2, VOCAB)
            torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)


def test_the_dict_reads_like_a_mapping(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::_check_generate_outputs: by name, by key, by place; what was not asked
    for is absent."""
    out, theirs = pair.run(inputs, **DICT)
    assert out["sequences"] is out.sequences is out[0]
    assert out.keys()[:3] == list(theirs.keys())[:3] == ["sequences", "scores", "logits"]
    assert "attentions" not in out
    assert (out.attentions, out.hidden_states, out.sequences_scores) == (None, None, None)
    assert [*out] == out.keys()
    assert len(out) == len(out.to_tuple()) == len(out.values()) == len(out.items())
    plain = pair.ours.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
    assert (plain.scores, plain.logits) == (None, None)


def test_greedy_caches(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_greedy_generate_dict_outputs_use_cache: the cache holds all but
    the last token."""
    out, theirs = pair.run(inputs, **DICT, use_cache=True)
    assert {type(cache) for cache in out.past_key_values} == {KVCache}
    length = inputs["input_ids"].shape[1] + NEW - 1
    assert [cache.get_seq_length() for cache in out.past_key_values] == [length, length]
    assert theirs.past_key_values.get_seq_length() == length
    keys = theirs.past_key_values.layers[1].keys
    for row, cache in enumerate(out.past_key_values):
        torch.testing.assert_close(cache.storage[1, 0, :, :length], keys[row], atol=1e-4, rtol=1e-4)


def test_without_a_cache(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_greedy_generate_dict_outputs: use_cache=False gives the same
    answers, and no cache."""
    ours, theirs = pair.run(inputs, **DICT, use_cache=False)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.past_key_values is theirs.past_key_values is None


def test_samples(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_sample_generate: shape, with several answers to each prompt."""
    options = {"do_sample": True, "top_k": 10, "num_return_sequences": 2, "seed": 1}
    out = pair.ours.generate(**inputs, **options, max_new_tokens=NEW, min_new_tokens=NEW)
    assert out.shape == (4, inputs["input_ids"].shape[1] + NEW)
    assert torch.equal(out[:, :-NEW], inputs["input_ids"].repeat_interleave(2, dim=0)), (
        "each prompt's answers stand together"
    )


def test_samples_as_a_dict(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_sample_generate_dict_output: the scores are those that the token
    was drawn from, −inf for what top_k and top_p exclude."""
    options = {"do_sample": True, "top_k": 10, "top_p": 0.9, "temperature": 0.7, "seed": 1}
    out = pair.ours.generate(**inputs, **DICT, **options, num_return_sequences=2)
    assert len(out.scores) == NEW
    for step, scores in enumerate(out.scores):
        assert scores.shape == (4, VOCAB)
        written = out.sequences[:, inputs["input_ids"].shape[1] + step]
        assert bool(scores.gather(1, written[:, None]).isfinite().all())
        assert int(scores.isfinite().sum(dim=1).max()) <= 10
    assert len(out.past_key_values) == 4


def test_scores_of_samples_are_those_of_the_reference(pair: Pair) -> None:
    """GenerationTesterMixin::test_sample_generate_dict_output: at the first step, before any draw,
    both have the same scores."""
    options = {"do_sample": True, "top_k": 12, "top_p": 0.8, "temperature": 0.7}
    ours, theirs = pair.run(picture_inputs(), **DICT, **options)
    torch.testing.assert_close(ours.scores[0], theirs.scores[0], atol=1e-4, rtol=1e-4)


def test_logits_are_raw_and_scores_processed(pair: Pair) -> None:
    """GenerationIntegrationTests::test_return_unprocessed_logit_scores: processors change the
    scores only."""
    inputs = text_inputs()
    ours, theirs = pair.run(inputs, **DICT, suppress_tokens=[40, 41], repetition_penalty=1.3)
    for step in range(NEW):
        assert bool(ours.scores[step][:, 40:42].isinf().all())
        assert bool(ours.logits[step].isfinite().all())
        torch.testing.assert_close(ours.scores[step], theirs.scores[step], atol=1e-4, rtol=1e-4)


def test_no_prompt_at_all(pair: Pair) -> None:
    """GenerationTesterMixin::test_generate_without_input_ids: an answer begins with the token for
    beginnings."""
    ours = pair.ours.generate(do_sample=False, max_new_tokens=NEW)
    theirs = pair.theirs.generate(do_sample=False, max_new_tokens=NEW)
    assert ours.tolist() == theirs.tolist()
    assert ours[0, 0] == 5


@pytest.mark.parametrize("side", ["left"])
def test_left_padding_changes_nothing(pair: Pair, side: str) -> None:
    """GenerationTesterMixin::test_left_padding_compatibility: the next token's logits are the
    same."""
    inputs = picture_inputs()
    bare, wide = (
        pair.ours.generate(**each, **DICT, do_sample=False) for each in (inputs, padded(inputs, 7))
    )
    assert torch.equal(bare.sequences[:, -NEW:], wide.sequences[:, -NEW:])
    torch.testing.assert_close(bare.logits[0], wide.logits[0], atol=1e-5, rtol=1e-5)


def test_prompt_lookup_matches_greedy(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_prompt_lookup_decoding_matches_greedy_search: drafts change the
    speed only, the returned dict has the same scores."""
    options = {**DICT, "do_sample": False, "max_new_tokens": 12, "eos_token_id": -1}
    plain = pair.ours.generate(**inputs, **options)
    drafted = pair.ours.generate(**inputs, **options, prompt_lookup_num_tokens=4)
    assert torch.equal(plain.sequences, drafted.sequences)
    for one, other in zip(plain.scores, drafted.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_prompt_lookup_stops_at_an_end(pair: Pair) -> None:
    """GenerationTesterMixin::test_prompt_lookup_decoding_stops_at_eos: nothing stands behind an end
    that was drafted."""
    inputs = text_inputs(rows=1)
    end = frequent_token(pair, inputs)
    options = {"do_sample": False, "eos_token_id": end, "max_new_tokens": 12}
    plain = pair.ours.generate(**inputs, **options)
    assert torch.equal(plain, pair.ours.generate(**inputs, **options, prompt_lookup_num_tokens=5))
    assert plain[0, -1] == end


def test_all_rows_are_filled_behind_their_end(pair: Pair) -> None:
    """GenerationTesterMixin::test_greedy_generate: a finished row gets padding until the others
    end."""
    inputs = text_inputs(rows=3)
    end = frequent_token(pair, inputs)
    ours, theirs = pair.run(inputs, eos_token_id=end, max_new_tokens=9)
    assert ours.tolist() == theirs.tolist()
    assert PAD in ours[0].tolist()


@pytest.mark.parametrize("keep", [0, 1])
def test_logits_to_keep(pair: Pair, keep: int) -> None:
    """GenerationTesterMixin::test_generate_methods_with_logits_to_keep: it changes nothing."""
    inputs = text_inputs()
    plain = pair.ours.generate(**inputs, max_new_tokens=NEW)
    assert torch.equal(plain, pair.ours.generate(**inputs, max_new_tokens=NEW, logits_to_keep=keep))


@pytest.mark.parametrize("cache", ["static", "dynamic", "offloaded", "hybrid"])
def test_kinds_of_caches(pair: Pair, inputs: dict[str, Any], cache: str) -> None:
    """GenerationTesterMixin::test_generate_with_static_cache: the same answer from each."""
    plain = pair.ours.generate(**inputs, max_new_tokens=NEW)
    named = pair.ours.generate(**inputs, max_new_tokens=NEW, cache_implementation=cache)
    assert torch.equal(plain, named)


@pytest.mark.refused("the cache holds keys and values as computed; there is no quantised one")
def test_quantised_caches(pair: Pair) -> None:
    """GenerationTesterMixin::test_generate_with_quant_cache."""
    with pytest.raises(OptionError, match="cache_implementation is 'quantized'"):
        pair.ours.generate(**text_inputs(), cache_implementation="quantized")


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
@pytest.mark.refused("forward gives them for all ids that were generated, in one pass")
def test_insides_of_the_model(pair: Pair, name: str) -> None:
    """GenerationTesterMixin::_check_attentions_for_generate, _check_hidden_states_for_generate."""
    with pytest.raises(OptionError, match=f"{name} .*call the model on the ids"):
        pair.ours.generate(**text_inputs(), return_dict_in_generate=True, **{name: True})


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({"assistant_model": object()}, "prompt_lookup_num_tokens"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "repetition_penalty"),
        ({"dola_layers": "low"}, "repetition_penalty"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beams, or num_ret"),
        ({"force_words_ids": [[5]]}, "prefix_allowed_tokens_fn"),
        ({"guidance_scale": 1.5}, "loop of your own"),
        ({"watermarking_config": {"bias": 2.0}}, "logits_processor"),
        ({"custom_generate": "somebody/something"}, "loop of your own"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.refused("no counterpart here; the error names the way out")
def test_other_ways_to_generate(pair: Pair, options: dict[str, Any], way_out: str) -> None:
    """GenerationTesterMixin::test_assisted_decoding_matches_greedy_search,
    test_contrastive_generate, test_dola_decoding_sample, test_group_beam_search_generate,
    test_constrained_beam_search_generate, and GenerationIntegrationTests on guidance and
    watermarks."""
    with pytest.raises(OptionError, match=way_out):
        pair.ours.generate(**text_inputs(), **options)


def test_unknown_options(pair: Pair) -> None:
    """GenerationIntegrationTests::test_validate_generation_inputs: a misspelt option is a
    ValueError, which names the right one."""
    for name, nearest in (("does_not_exist", "known are"), ("num_beam", "num_beams")):
        with pytest.raises(ValueError, match=f"no generation option '{name}'.*{nearest}"):
            pair.ours.generate(**text_inputs(), **{name: 5})


@pytest.mark.refused("greedy answers to one prompt are equal, so one is written and copied")
def test_several_greedy_answers(pair: Pair) -> None:
    """tests/generation/test_configuration_utils.py::test_validate: a ValueError there."""
    inputs = text_inputs(rows=1)
    out = pair.ours.generate(**inputs, do_sample=False, max_new_tokens=3, num_return_sequences=3)
    assert out.shape == (3, 11)
    assert torch.equal(out[0], out[2])


def test_the_prompt_is_given_once(pair: Pair) -> None:
    """GenerationIntegrationTests::test_generate_input_ids_as_kwarg: `inputs`, `input_ids` and the
    first place are one argument."""
    inputs = text_inputs()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ways = [
        pair.ours.generate(ids, max_new_tokens=3),
        pair.ours.generate(input_ids=ids, max_new_tokens=3),
        pair.ours.generate(inputs=ids, attention_mask=mask, max_new_tokens=3),
        pair.ours.generate(inputs, max_new_tokens=3),
    ]
    assert all(torch.equal(ways[0], way) for way in ways)
    with pytest.raises(UsageError, match="give one of them"):
        pair.ours.generate(ids, inputs=ids)

"""Generation that begins elsewhere than with ids: from caches and from embeddings, and loops of
one's own. What peers' tests assert of it (tests/generation/test_utils.py of transformers)."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from generation_models import (
    IMAGE,
    PAD,
    Pair,
    padded,
    pair_fixture,  # noqa: F401
    picture_inputs,
    text_inputs,
)

from qwen25vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLTextModel,
)
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.model.cache import KVCache

INPUTS = {"text": text_inputs, "pictures": picture_inputs}
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": -1}
DICT: dict[str, Any] = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}


@pytest.fixture(params=INPUTS, name="inputs")
def each_kind_of_inputs(request: pytest.FixtureRequest) -> dict[str, Any]:
    return INPUTS[request.param]()


def continued(inputs: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """The inputs of an answer that goes on behind these ids."""
    mask = inputs["attention_mask"]
    new = torch.ones(len(ids), ids.shape[1] - mask.shape[1], dtype=mask.dtype)
    return {**inputs, "input_ids": ids, "attention_mask": torch.cat([mask, new], dim=1)}


def test_an_answer_goes_on_from_its_cache(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_generate_continue_from_past_key_values: 3 + 1 tokens are the 4 of
    one call, with the same scores, and the cache has the same numbers."""
    whole = pair.ours.generate(**inputs, **DICT, max_new_tokens=4)
    first = pair.ours.generate(**inputs, **DICT, max_new_tokens=3)
    rest = pair.ours.generate(
        **continued(inputs, first.sequences),
        **DICT,
        past_key_values=first.past_key_values,
        max_new_tokens=1,
    )
    assert torch.equal(rest.sequences, whole.sequences)
    for one, other in zip((*first.scores, *rest.scores), whole.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, other in zip(rest.past_key_values, whole.past_key_values, strict=True):
        length = one.get_seq_length()
        assert length == other.get_seq_length()
        torch.testing.assert_close(one.storage[:, :, :, :length], other.storage[:, :, :, :length])


def test_only_what_is_new_is_read(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_generate_continue_from_past_key_values: a cache that is ignored
    would give the same answer."""
    first = pair.ours.generate(**inputs, **DICT, max_new_tokens=3)
    seen: list[int] = []
    core = pair.ours.model.language_model
    run = core.run
    core.run = lambda embeds, *rest: seen.append(len(embeds)) or run(embeds, *rest)
    try:
        pair.ours.generate(
            **continued(inputs, first.sequences),
            **GREEDY,
            past_key_values=first.past_key_values,
            max_new_tokens=1,
        )
    finally:
        del core.run
    assert seen == [2], "of each row the last token"


def test_padded_rows_go_on(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_generate_continue_from_past_key_values, with padding: a cache
    holds none."""
    wide = padded(inputs, 4)
    first = pair.ours.generate(**wide, **DICT, max_new_tokens=3)
    options = {**GREEDY, "max_new_tokens": 3}
    rest = pair.ours.generate(
        **continued(wide, first.sequences), **options, past_key_values=first.past_key_values
    )
    assert torch.equal(rest[:, 4:], pair.ours.generate(**inputs, **GREEDY, max_new_tokens=6))


def test_turn_after_turn(pair: Pair) -> None:
    """transformers' guide to caches, iterative generation: one list of caches is handed from
    turn to turn, and takes what each of them read."""
    caches: list[Any] = []
    ids = text_inputs(rows=1)["input_ids"]
    for turn in range(3):
        fresh = pair.ours.generate(ids, **GREEDY, max_new_tokens=4)
        kept = pair.ours.generate(ids, **GREEDY, max_new_tokens=4, past_key_values=caches)
        assert torch.equal(fresh, kept)
        assert caches[0].get_seq_length() == kept.shape[1] - 1
        ids = torch.cat([kept, torch.tensor([[20 + turn, 30]])], dim=1)


def test_a_prefix_is_read_once(pair: Pair) -> None:
    """transformers' guide to caches, prefilling: the cache that forward returns for a common
    beginning serves several prompts; each works on a copy."""
    common = text_inputs(rows=1)["input_ids"]
    with torch.no_grad():
        prefix = pair.ours(common, use_cache=True).past_key_values
    for end in (40, 50):
        ids = torch.cat([common, torch.tensor([[end, 60]])], dim=1)
        fresh = pair.ours.generate(ids, **GREEDY, max_new_tokens=4)
        options = {**GREEDY, "past_key_values": deepcopy(prefix), "max_new_tokens": 4}
        assert torch.equal(fresh, pair.ours.generate(ids, **options))
    assert prefix[0].get_seq_length() == 8


def test_forward_goes_on(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_past_key_values_format: what generate returns is what forward
    takes."""
    out = pair.ours.generate(**inputs, **DICT, output_logits=True, max_new_tokens=3)
    last = out.sequences[:, -1:]
    after = pair.ours.generate(**inputs, **DICT, output_logits=True, max_new_tokens=4).logits[3]
    with torch.no_grad():
        logits = pair.ours(last, past_key_values=out.past_key_values).logits[:, -1]
    torch.testing.assert_close(logits, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (lambda out: out.past_key_values[:1], "past_key_values has 1 sequences, the batch 2"),
        (lambda out: object(), "past_key_values is object"),
    ],
)
def test_caches_that_do_not_fit(pair: Pair, past: Any, words: str) -> None:
    """GenerationMixin._prepare_cache_for_generation: refused by name."""
    out = pair.ours.generate(**text_inputs(), **DICT, max_new_tokens=3)
    with pytest.raises(UsageError, match=words):
        pair.ours.generate(out.sequences, past_key_values=past(out))


def test_a_cache_that_is_longer_than_the_prompt(pair: Pair) -> None:
    """GenerationMixin.generate: the whole prompt is given, not what is new alone."""
    out = pair.ours.generate(**text_inputs(), **DICT, max_new_tokens=3)
    with pytest.raises(UsageError, match="has 10 tokens and the prompt 1; give the whole prompt"):
        pair.ours.generate(out.sequences[:, -1:], past_key_values=out.past_key_values)


def test_an_empty_cache_of_transformers(pair: Pair) -> None:
    """transformers' guide to caches: DynamicCache() asks for nothing."""
    from transformers import DynamicCache

    inputs = text_inputs()
    plain = pair.ours.generate(**inputs, **GREEDY, max_new_tokens=3)
    empty = pair.ours.generate(**inputs, **GREEDY, max_new_tokens=3, past_key_values=DynamicCache())
    assert torch.equal(plain, empty)


def test_embeddings_with_their_ids(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationTesterMixin::test_generate_from_inputs_embeds_0_greedy: given with the ids, these
    stand before the answer; pictures go into their slots; other embeddings give other answers."""
    embeds = pair.ours.model.language_model.embed_tokens(inputs["input_ids"])
    plain = pair.ours.generate(**inputs, **DICT, max_new_tokens=5)
    both = pair.ours.generate(**inputs, **DICT, inputs_embeds=embeds, max_new_tokens=5)
    assert torch.equal(plain.sequences, both.sequences)
    for one, other in zip(plain.scores, both.scores, strict=True):
        torch.testing.assert_close(one, other)
    noise = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0))
    third = pair.ours.generate(**inputs, **DICT, inputs_embeds=noise, max_new_tokens=5)
    assert not torch.equal(third.scores[0], plain.scores[0])


def test_embeddings_alone(pair: Pair) -> None:
    """GenerationTesterMixin::test_generate_from_inputs_embeds_0_greedy: only the new tokens are
    returned, with and without padding; penalties know only these."""
    inputs = text_inputs()
    embeds = pair.ours.model.language_model.embed_tokens(inputs["input_ids"])
    options = {**GREEDY, "max_new_tokens": 5, "repetition_penalty": 1.3}
    ours = pair.ours.generate(inputs_embeds=embeds, **options)
    theirs = pair.theirs.generate(inputs_embeds=embeds, **options)
    assert ours.tolist() == theirs.tolist()
    assert ours.shape == (2, 5)
    wide = padded(inputs, 3)
    embeds = pair.ours.model.language_model.embed_tokens(wide["input_ids"])
    mask = wide["attention_mask"]
    assert torch.equal(
        ours, pair.ours.generate(inputs_embeds=embeds, attention_mask=mask, **options)
    )


def test_pictures_that_are_in_the_embeddings(pair: Pair) -> None:
    """GenerationTesterMixin::test_generate_from_inputs_embeds_0_greedy for models that see: with
    visual tokens put in by the caller, ids and grids give the positions."""
    inputs = picture_inputs()
    plain = pair.ours.generate(**inputs, **GREEDY, max_new_tokens=5)
    core = pair.ours.model
    tokens = core.visual(inputs.pop("pixel_values"), inputs["image_grid_thw"])
    embeds = core.language_model.embed_tokens(inputs["input_ids"]).detach()
    embeds[inputs["input_ids"] == IMAGE] = tokens.detach()
    assert torch.equal(
        plain, pair.ours.generate(**inputs, inputs_embeds=embeds, **GREEDY, max_new_tokens=5)
    )


def test_embeddings_go_on_from_a_cache(pair: Pair) -> None:
    """GenerationTesterMixin::test_generate_continue_from_inputs_embeds: 3 + 1 tokens are the 4 of
    one call."""
    table = pair.ours.model.language_model.embed_tokens
    embeds = table(text_inputs()["input_ids"]).detach()
    whole = pair.ours.generate(inputs_embeds=embeds, **DICT, max_new_tokens=4)
    first = pair.ours.generate(inputs_embeds=embeds, **DICT, max_new_tokens=3)
    longer = torch.cat([embeds, table(first.sequences).detach()], dim=1)
    rest = pair.ours.generate(
        inputs_embeds=longer, **DICT, past_key_values=first.past_key_values, max_new_tokens=1
    )
    assert torch.equal(torch.cat([first.sequences, rest.sequences], dim=1), whole.sequences)


def test_embeddings_that_do_not_fit(pair: Pair) -> None:
    """GenerationMixin._prepare_model_inputs: refused by name."""
    inputs = picture_inputs()
    embeds = torch.zeros(2, 3, 64)
    with pytest.raises(UsageError, match=r"inputs_embeds has shape \[2, 3, 64\]; expected \[2, 14"):
        pair.ours.generate(**inputs, inputs_embeds=embeds)
    del inputs["input_ids"]
    with pytest.raises(UsageError, match="need input_ids with their slots"):
        pair.ours.generate(**inputs, inputs_embeds=embeds)


def test_a_loop_of_ones_own(pair: Pair, inputs: dict[str, Any]) -> None:
    """GenerationIntegrationTests::test_prepare_inputs_for_generation_decoder_llm: the first step
    has the whole prompt and its pictures, later ones the last token."""
    model, ids, caches = pair.ours, inputs["input_ids"], None
    others = {key: value for key, value in inputs.items() if key != "input_ids"}
    for step in range(4):
        arguments = model.prepare_inputs_for_generation(ids, past_key_values=caches, **others)
        assert arguments["input_ids"].shape[1] == (ids.shape[1] if step == 0 else 1)
        assert ("pixel_values" in arguments) == (step == 0 and "pixel_values" in inputs)
        with torch.no_grad():
            out = model(**arguments)
        caches = out.past_key_values
        ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
        others["attention_mask"] = torch.ones_like(ids)
    options = {**GREEDY, "max_new_tokens": 4, "repetition_penalty": 1.0}
    assert torch.equal(ids, model.generate(**inputs, **options))


def test_other_arguments_are_handed_on(pair: Pair) -> None:
    """GenerationTesterMixin::test_prepare_inputs_for_generation_kwargs_forwards: whatever it does
    not know, but no labels; embeddings take the place of ids at first."""
    ids = torch.tensor([[5, 6]])
    prepare = pair.ours.prepare_inputs_for_generation
    assert pair.ours.can_generate()
    arguments = prepare(ids, something=3, labels=ids)
    assert arguments.keys() == {"input_ids", "something"}
    embeds = torch.zeros(1, 2, 64)
    assert prepare(ids, inputs_embeds=embeds).keys() == {"inputs_embeds"}


def test_more_answers_from_one_cache(pair: Pair) -> None:
    """GenerationTesterMixin::test_generate_continue_from_past_key_values with several answers: each
    goes on alone."""
    inputs = text_inputs(rows=1)
    first = pair.ours.generate(**inputs, **DICT, max_new_tokens=3)
    options = {"do_sample": True, "seed": 3, "num_return_sequences": 2, "max_new_tokens": 4}
    fresh = pair.ours.generate(first.sequences, **options)
    kept = pair.ours.generate(
        first.sequences, **options, past_key_values=list(first.past_key_values)
    )
    assert torch.equal(fresh, kept)
    greedy = pair.ours.generate(**inputs, **DICT, max_new_tokens=3, num_return_sequences=2)
    one, other = greedy.past_key_values
    assert one.storage.data_ptr() != other.storage.data_ptr()
    assert PAD not in greedy.sequences[0].tolist()


def test_a_cache_is_cut_inside_a_picture(pair: Pair) -> None:
    """DynamicCache.crop, then on. A picture has more tokens than positions, so a position counted
    back from the end was up to 16 too small; what follows a part of a picture stands behind it."""
    inputs = picture_inputs(rows=1, sides=(8, 12))
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    positions, _ = pair.ours.model.get_rope_index(ids, inputs["image_grid_thw"])
    embeds = pair.ours.get_input_embeddings()(ids)
    tokens = pair.ours.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    embeds[ids == IMAGE] = tokens.pooler_output[0]
    more = torch.tensor([[20, 21]])
    after = pair.ours.get_input_embeddings()(more)
    with torch.no_grad():
        generated = pair.ours.generate(**inputs, **DICT, max_new_tokens=3).past_key_values
        for source in (pair.ours(**inputs).past_key_values, generated):
            for kept in range(1, length + 1):
                cache = deepcopy(source)
                cache.crop(kept)
                found = pair.ours(more, past_key_values=cache)
                start = int(positions[:, :, :kept].max()) + 1
                behind = torch.arange(start, start + 2).expand(3, 1, 2)
                fresh = pair.ours(
                    inputs_embeds=torch.cat([embeds[:, :kept], after], dim=1),
                    position_ids=torch.cat([positions[:, :, :kept], behind], dim=2),
                )
                torch.testing.assert_close(found.logits, fresh.logits[:, -2:])
                assert found.rope_deltas.item() == fresh.rope_deltas.item()
                assert cache[0].next_position == start + 2


def test_a_cache_is_cut_more_than_once(pair: Pair) -> None:
    """Behind a cut the cache goes on, with text and with another picture, and is cut again."""
    one, other = picture_inputs(rows=1, sides=(8, 4)), picture_inputs(rows=1, seed=3)
    text = torch.tensor([[20, 21, 22]])
    with torch.no_grad():
        cache = pair.ours(**one).past_key_values
        places = [cache[0].position_after(n) for n in range(cache.get_seq_length() + 1)]
        cache.crop(5)
        pair.ours(text, past_key_values=cache)
        without_mask = {name: value for name, value in other.items() if name != "attention_mask"}
        pair.ours(**without_mask, past_key_values=cache)
        assert [cache[0].position_after(n) for n in range(6)] == places[:6]
        start = places[5] + 3
        assert cache[0].position_after(8) == start
        alone = pair.ours(**other).past_key_values[0]
        for n in range(other["input_ids"].shape[1] + 1):
            assert cache[0].position_after(8 + n) == start + alone.position_after(n)
        twin = cache[0].clone()
        cache.crop(8)
        assert (cache[0].next_position, twin.position_after(8)) == (start, start)
        cache.reset()
        assert cache[0].next_position == 0


def test_cuts_in_text_as_in_transformers(pair: Pair) -> None:
    """DynamicCache.crop behind the last picture: the same logits."""
    inputs = picture_inputs(rows=1)
    length = inputs["input_ids"].shape[1]
    more = torch.tensor([[20, 21]])
    types = {"mm_token_type_ids": (inputs["input_ids"] == IMAGE).long()}
    with torch.no_grad():
        ours, theirs = pair.ours(**inputs), pair.theirs(**inputs, **types)
        ours.past_key_values.crop(-2)
        theirs.past_key_values.crop(-2)
        assert ours.past_key_values.get_seq_length() == length - 2
        found = pair.ours(more, past_key_values=ours.past_key_values)
        expected = pair.theirs(more, past_key_values=theirs.past_key_values)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("entrance", ["generate", "forward", "text"])
def test_one_check_for_all_caches(pair: Pair, entrance: str) -> None:
    """generate took a tuple that forward refused, and both took caches of another model or dtype:
    the error came from inside, or the numbers were rounded."""
    inputs = text_inputs(rows=1)
    model: Any = pair.ours.get_decoder() if entrance == "text" else pair.ours
    call = model.generate if entrance == "generate" else model

    def run(past: Any) -> Any:
        with torch.no_grad():
            return call(**inputs, past_key_values=past)

    config = deepcopy(pair.ours.config.text_config)
    config.num_hidden_layers = 3
    fitting = KVCache(pair.ours.config.text_config, torch.float32)
    for past, words in (
        ([KVCache(config, torch.float32)], "has 3 layers"),
        ([KVCache(pair.ours.config.text_config, torch.bfloat16)], "in torch.bfloat16"),
        ([fitting, fitting], "has 2 sequences, the batch 1"),
        ([fitting, "x"], "holds str"),
        ("x", "past_key_values is str; expected what generate or forward returned"),
    ):
        with pytest.raises(UsageError, match=words):
            run(past)
    assert run((fitting,)) is not None


def test_ids_that_the_vocabulary_does_not_have(pair: Pair) -> None:
    """IndexError of torch, which names neither: from every entrance the id and the size, and a
    masked cell is never looked up."""
    text = pair.ours.get_decoder()
    for wrong in (320, -5, 10**9):
        ids = torch.tensor([[7, wrong, 9]])
        with pytest.raises(IndexError):
            pair.theirs.get_input_embeddings()(ids)
        calls: list[Any] = [
            lambda ids: pair.ours.generate(ids, max_new_tokens=1),
            lambda ids: next(pair.ours.stream(ids, max_new_tokens=1)),
            pair.ours,
            pair.ours.model,
            text,
            text.embed,
            pair.ours.get_input_embeddings(),
        ]
        for call in calls:
            with pytest.raises(IndexError, match=f"token {wrong} is none of a vocabulary of 320"):
                call(ids)
        mask = torch.tensor([[1, 1, 0]])
        padded_ids = torch.tensor([[7, 8, wrong]])
        for model in (pair.ours, pair.ours.model, text):
            model(padded_ids, attention_mask=mask)
    with pytest.raises(ValueError, match="none of a vocabulary"):
        pair.ours.generate(torch.tensor([[320]]))


def test_a_stream_takes_what_generate_takes(pair: Pair) -> None:
    """Ids alone, a mapping, and inputs without their mask: an AttributeError from inside."""
    inputs = picture_inputs(rows=2)
    del inputs["attention_mask"]
    options = {**GREEDY, "max_new_tokens": 3}
    for given in (
        ModelInputs(**inputs),
        inputs,
        {**inputs, "attention_mask": None},
        ModelInputs(text_inputs()),
        text_inputs()["input_ids"],
    ):
        expected = pair.ours.generate(inputs=given, **options)
        length = expected.shape[1] - 3
        found: dict[int, list[int]] = {0: [], 1: []}
        for chunk in pair.ours.stream(given, **options):
            found[chunk.index].append(chunk.token)
        assert [found[0], found[1]] == expected[:, length:].tolist()


def test_a_config_stays_the_callers(pair: Pair, tmp_path: Any) -> None:
    """PreTrainedModel.from_pretrained copies the config that it is given."""
    pair.ours.save_pretrained(tmp_path)
    config = deepcopy(pair.ours.config)
    config.name_or_path = "mine"
    before = deepcopy(vars(config))
    for kind in (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2_5_VLTextModel):
        model = kind.from_pretrained(tmp_path, config=config, attn_implementation="eager")
        assert model.config is not config
        assert model.config is not config.text_config
        model.config.use_cache = False
    assert vars(config) == before
    assert config.name_or_path == "mine"
    assert config.text_config.use_cache is True

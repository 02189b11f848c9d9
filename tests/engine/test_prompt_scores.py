"""Log-probabilities of a prompt's tokens: the numbers, and what they must not change."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.engine import prompt_scores
from qwen25vl.engine.admission import needed_bytes
from qwen25vl.engine.footprint import Request, measure
from qwen25vl.engine.outbox import Outbox
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.prompt_scores import PromptScores
from qwen25vl.engine.requests import Call, open_sequences
from qwen25vl.engine.scratch import Execution
from qwen25vl.engine.sequence import Sequence
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs

PICTURE = Image.new("RGB", (112, 84), "red")
QUESTION = "What colour is the large thing in the middle of the picture?"


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


def prepare(vlm: VisionLanguageModel) -> ModelInputs:
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": QUESTION}],
        }
    ]
    return vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def open_one(vlm: VisionLanguageModel, number: int | None, **fields: Any) -> Sequence:
    options = vlm.model.resolve_generation(None, {"max_new_tokens": 6, **fields.pop("options", {})})
    call = Call(options, Outbox(), vlm.processor.tokenizer, num_prompt_likeliest=number, **fields)
    with torch.inference_mode():
        (sequence,) = open_sequences(vlm.model, prepare(vlm), call)
    return sequence


def run(vlm: VisionLanguageModel, *sequences: Sequence) -> list[int]:
    """The first one's tokens."""
    engine = vlm.model.engine
    engine.add(sequences)
    engine.run_until(lambda: not engine.is_busy)
    errors = [each.outbox.error for each in sequences if each.outbox.error]
    if errors:
        raise errors[0]
    return sequences[0].tokens


def scores_of(sequence: Sequence) -> PromptScores:
    assert sequence.prompt_scores is not None
    return sequence.prompt_scores


@pytest.mark.parametrize("head_rows", [64, 7])
def test_they_are_those_of_the_model(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, head_rows: int
) -> None:
    """A row too early or too late, or one lost between two slices, still looks like a number."""
    monkeypatch.setattr(prompt_scores, "HEAD_ROWS", head_rows)
    monkeypatch.setattr(prompt_scores, "FLOAT_ROWS", 3)
    sequence = open_one(vlm, 4)
    run(vlm, sequence)
    found, inputs = scores_of(sequence), prepare(vlm)
    with torch.inference_mode():
        logits = vlm.model(**inputs).logits[0, :-1].float()
    expected = logits.log_softmax(dim=-1)
    own = expected.gather(1, inputs.input_ids[0, 1:, None])
    torch.testing.assert_close(found.logprobs[1:], own[:, 0], atol=1e-4, rtol=0)
    assert found.ranks[1:].tolist() == (1 + (expected > own).sum(dim=1)).tolist()
    best = expected.topk(4, dim=1)
    torch.testing.assert_close(found.top_logprobs[1:], best.values, atol=1e-4, rtol=0)
    is_clear = (best.values[:, :-1] - best.values[:, 1:] > 1e-3).all(dim=1)
    assert bool(is_clear.any())
    assert torch.equal(found.top_tokens[1:][is_clear].long(), best.indices[is_clear])


def test_a_kept_prefix_hides_nothing(vlm: VisionLanguageModel) -> None:
    """What was copied from a kept cache was never rated: zeros stood for certain tokens."""
    prefixes = PrefixCache(10_000_000)
    first = open_one(vlm, 0, prefixes=prefixes)
    run(vlm, first)
    again = open_one(vlm, 0, prefixes=prefixes)
    run(vlm, again)
    assert again.num_reused == 0
    assert torch.equal(scores_of(first).logprobs, scores_of(again).logprobs)
    assert bool((scores_of(again).logprobs[1:] < 0).all())
    plain = open_one(vlm, None, prefixes=prefixes)
    run(vlm, plain)
    assert plain.num_reused > 0


def test_the_answer_stays_and_so_do_those_beside_it(vlm: VisionLanguageModel) -> None:
    """An observer that changes bits would make a rated prompt another prompt."""
    alone = run(vlm, open_one(vlm, None))
    rated, beside = open_one(vlm, 20), open_one(vlm, None)
    assert run(vlm, rated, beside) == alone == beside.tokens


def test_a_written_token_is_rated_as_when_it_was_written(vlm: VisionLanguageModel) -> None:
    """Clients compare the two to the last bit, to see whether a text is the greedy one."""
    first = open_one(vlm, None)
    tokens = run(vlm, first)
    written = [each.chunk.logprob for each in first.outbox.chunks]
    inputs = prepare(vlm)
    ids = torch.cat([inputs.input_ids, torch.tensor([tokens])], dim=1)
    inputs = ModelInputs(
        ids, torch.ones_like(ids), inputs.pixel_values, inputs.image_grid_thw, media=inputs.media
    )
    options = vlm.model.resolve_generation(None, {"max_new_tokens": 1})
    call = Call(options, Outbox(), vlm.processor.tokenizer, num_prompt_likeliest=1)
    with torch.inference_mode():
        (sequence,) = open_sequences(vlm.model, inputs, call)
    run(vlm, sequence)
    assert scores_of(sequence).logprobs[-len(tokens) :].tolist() == written
    assert scores_of(sequence).top_logprobs[-len(tokens) :, 0].tolist() == written
    assert scores_of(sequence).top_tokens[-len(tokens) :, 0].tolist() == tokens


def test_whoever_inherits_the_prompt_rates_it(vlm: VisionLanguageModel) -> None:
    """With several answers the first may be cancelled while the prompt is read."""
    options = {"num_return_sequences": 2, "do_sample": True, "temperature": 1.0, "seed": 1}
    leader = open_one(vlm, 1, options=options)
    scores, (follower,) = scores_of(leader), leader.followers
    scheduler = vlm.model.engine.scheduler
    scheduler.arrive([leader])
    scheduler.cancel([leader])
    vlm.model.engine.run_until(lambda: not vlm.model.engine.is_busy)
    assert follower.tokens
    assert bool((scores.logprobs[1:] < 0).all())


def test_its_memory_is_stated(vlm: VisionLanguageModel) -> None:
    """Float32 rows of a wide vocabulary are the largest thing of a short prompt, the likeliest
    tokens of each place that of a long one."""
    config, how = Qwen2_5_VLConfig(), Execution()
    asked = Request(prompts=(50,), reserved=(1,))
    more = measure(config, replace(asked, score_bytes=1), how).prompt
    more -= measure(config, asked, how).prompt
    row = config.text_config.vocab_size * 4
    assert prompt_scores.FLOAT_ROWS * 2 * row < more < 60 * row
    ids = torch.tensor([vlm.processor.tokenizer.encode("red " * 1500)])
    inputs = ModelInputs(ids, torch.ones_like(ids))
    options = vlm.model.resolve_generation(None, {"max_new_tokens": 1})
    with torch.inference_mode():
        calls = [Call(options, Outbox(), num_prompt_likeliest=number) for number in (None, 20)]
        (plain,), (rated,) = (open_sequences(vlm.model, inputs, call) for call in calls)
    needed = needed_bytes(vlm.model, [rated]) - needed_bytes(vlm.model, [plain])
    assert needed >= scores_of(rated).num_bytes >= rated.num_prompt * (8 + 20 * 8)


def test_embeddings_have_no_tokens_to_rate(vlm: VisionLanguageModel) -> None:
    from qwen25vl.engine.additions import Additions

    inputs = prepare(vlm)
    embeds = torch.zeros(*inputs.input_ids.shape, vlm.model.config.text_config.hidden_size)
    with pytest.raises(UsageError, match="log-probabilities of a prompt"):
        open_one(vlm, 0, added=Additions(embeds=embeds, has_ids=False))

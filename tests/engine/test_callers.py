"""What callers give to `generate` and what interrupts it: typed errors, answers as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch

import qwen25vl
from qwen25vl import GenerationConfig, VisionLanguageModel
from qwen25vl.errors import UsageError

IDS = torch.tensor([[70, 71, 72, 73, 11, 74]])


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


def test_an_interrupted_criterion_costs_no_token(vlm: VisionLanguageModel) -> None:
    """The token was appended before the caller's function ran, and handed out after it: Ctrl-C
    between the two lost it."""
    wanted = vlm.model.generate(IDS, max_new_tokens=8)

    interruptions = iter([True])

    def criterion(ids: torch.Tensor, _: Any) -> bool:
        if ids.shape[1] == IDS.shape[1] + 3 and next(interruptions, False):
            raise KeyboardInterrupt
        return False

    engine = vlm.model.engine
    compute = engine.compute
    seen: list[int] = []

    def interrupted() -> bool:
        """As if another caller's thread ran the step that is interrupted."""
        try:
            return compute()
        except KeyboardInterrupt:
            seen.append(1)
            for sequence in engine.scheduler.running:
                sequence.roll_back()
            return True

    engine.compute = interrupted  # type: ignore[method-assign]
    try:
        got = vlm.model.generate(IDS, max_new_tokens=8, stopping_criteria=criterion)
    finally:
        del engine.compute
    assert seen == [1]
    assert torch.equal(got, wanted)


def test_nothing_is_left_to_choose(vlm: VisionLanguageModel) -> None:
    """Where every token was excluded token 0 was written for ever."""
    end = vlm.model.generation_config.eos_token_id[0]
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 3}
    with pytest.raises(UsageError, match="every token is excluded"):
        vlm.model.generate(IDS, prefix_allowed_tokens_fn=lambda *_: [end], **options)
    with pytest.raises(UsageError, match="the vocabulary has"):
        vlm.model.generate(IDS, prefix_allowed_tokens_fn=lambda *_: [10**7], **options)
    with pytest.raises(UsageError, match="allows no token"):
        vlm.model.generate(IDS, prefix_allowed_tokens_fn=lambda *_: None, **options)


def test_caches_of_another_kind(vlm: VisionLanguageModel) -> None:
    """The tuples of older releases ended in an AttributeError."""
    pair = (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    with pytest.raises(UsageError, match="past_key_values holds tuple"):
        vlm.model.generate(IDS, past_key_values=(pair, pair), max_new_tokens=1)


def test_inputs_of_the_next_step_in_a_padded_batch(vlm: VisionLanguageModel) -> None:
    """The first row's tokens were counted, not the columns: the last token was read twice."""
    ids = torch.tensor([[0, 0, 0, 73, 11], [70, 71, 72, 73, 11]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        past = vlm.model(input_ids=ids, attention_mask=mask).past_key_values
    longer = torch.cat([ids, ids[:, -1:]], dim=1)
    found = vlm.model.prepare_inputs_for_generation(longer, past_key_values=past)
    assert found["input_ids"].shape == (2, 1)


def test_a_pipeline_gives_texts_whatever_the_model_returns(vlm: VisionLanguageModel) -> None:
    """return_dict_in_generate of the model's own configuration ended in a TypeError."""
    made = qwen25vl.pipeline("image-text-to-text", vlm.model, vlm.processor)
    chat = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    config = GenerationConfig(return_dict_in_generate=True, max_new_tokens=2)
    (record,) = made(chat, generation_config=config)
    assert record["generated_text"]


def test_a_greedy_configuration_stays_greedy_in_a_file(tmp_path: Path) -> None:
    """do_sample=False is a default, but beside a temperature it is what was asked for."""
    GenerationConfig(do_sample=False, temperature=0.7).save_pretrained(tmp_path)
    assert not GenerationConfig.from_pretrained(tmp_path).do_sample


def test_what_a_configuration_was_made_with_counts() -> None:
    """do_sample=False is a default, so over a sampling checkpoint it was taken for not given."""
    sampling = GenerationConfig(do_sample=True, temperature=3.0)
    assert GenerationConfig(do_sample=False, max_new_tokens=5).over(sampling).is_greedy
    assert not GenerationConfig(max_new_tokens=5).over(sampling).is_greedy

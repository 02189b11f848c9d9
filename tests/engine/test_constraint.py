"""A grammar beside everything else that chooses tokens: ends, penalties, drafts, several answers,
faults. The grammar here is a list of what may stand at each place, so that nothing is left open."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import qwen25vl
from qwen25vl import VisionLanguageModel
from qwen25vl.engine.additions import Additions
from qwen25vl.engine.answers import GenerateOutput
from qwen25vl.engine.constraint import ConstrainedAnswer, StartConstraint
from qwen25vl.engine.generate import generate, stream
from qwen25vl.engine.sampling import SamplerState, choose_tokens
from qwen25vl.errors import UsageError

IDS = torch.tensor([[70, 71, 72, 73, 11, 74]])
END = 1026  # <|im_end|> of the demo model


class Places:
    """allowed: the tokens of each place, after which nothing follows; ends: places where the answer
    may end before that. Notes what it was told."""

    def __init__(self, allowed: Sequence[Sequence[int]], ends: Sequence[int] = ()) -> None:
        self.allowed, self.ends, self.told = allowed, ends, list[int]()

    @property
    def may_end(self) -> bool:
        return self.is_over or len(self.told) in self.ends

    @property
    def is_over(self) -> bool:
        return len(self.told) == len(self.allowed)

    def mask(self, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, float("-inf"))
        if not self.is_over:
            where = list(self.allowed[len(self.told)])
            masked[where] = scores[where]
        return masked

    def accept(self, token: int) -> None:
        assert token in self.allowed[len(self.told)]
        self.told.append(token)


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


def answer(vlm: VisionLanguageModel, start: StartConstraint, **options: Any) -> GenerateOutput:
    config = vlm.model.resolve_generation(None, {"max_new_tokens": 12, **options})
    config = config.merge(return_dict_in_generate=True)
    inputs = vlm.processor.tokenizer("x", return_tensors="pt")
    inputs.update(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    out = generate(vlm.model.engine, inputs, config, added=Additions(constraint=start))
    assert isinstance(out, GenerateOutput)
    return out


def written(out: GenerateOutput) -> list[list[int]]:
    return out.sequences[:, IDS.shape[1] :].tolist()


def test_an_answer_ends_where_nothing_may_follow(vlm: VisionLanguageModel) -> None:
    """It went on to an end token, one more step, or for ever where the options have none; and
    min_new_tokens, which excludes end tokens, left nothing to choose."""
    for options in ({}, {"eos_token_id": []}, {"min_new_tokens": 9}):
        out = answer(vlm, lambda: Places([[5, 6], [7]]), **options)
        assert [row[1:] for row in written(out)] == [[7]]
        assert out.finish_reasons == ("stop",)


def test_end_tokens_where_the_grammar_may_end(vlm: VisionLanguageModel) -> None:
    """Chosen anywhere else, the answer is no whole one. The end is the likeliest token here."""
    bias = [lambda ids, scores: scores.index_fill(1, torch.tensor([END]), 99.0)]
    config = {"max_new_tokens": 12}
    inputs = vlm.processor.tokenizer("x", return_tensors="pt")

    def ask(**options: Any) -> list[int]:
        made = vlm.model.resolve_generation(None, {**config, **options})
        added = Additions(
            processors=tuple(bias), constraint=lambda: Places([[5]] * 8, ends=[3, 4, 5])
        )
        out = generate(vlm.model.engine, inputs, made, added=added)
        assert isinstance(out, torch.Tensor)
        return out[0, inputs.input_ids.shape[1] :].tolist()

    assert ask() == [5, 5, 5, END]
    bias.clear()
    assert ask(min_new_tokens=8) == [5] * 8


def test_min_new_tokens_gives_way(vlm: VisionLanguageModel) -> None:
    """Where other options exclude the only way to go on, the answer ends, however short; where the
    grammar may not end there either, it fails and says why."""
    options = {"suppress_tokens": [6], "min_new_tokens": 9}
    out = answer(vlm, lambda: Places([[5], [6]], ends=[1]), **options)
    ((first, last),) = written(out)
    assert first == 5
    assert last in vlm.model.generation_config.eos_token_id
    with pytest.raises(UsageError, match="exclude every token that the grammar allows"):
        answer(vlm, lambda: Places([[5], [6]]), **options)


def test_each_answer_has_its_own_state(vlm: VisionLanguageModel) -> None:
    """One state for all would be told of every answer's tokens, and mask each with the others'."""
    made: list[Places] = []

    def start() -> Places:
        made.append(Places([range(20, 300), range(300, 600)] * 3))
        return made[-1]

    options = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 4, "seed": 3}
    rows = written(answer(vlm, start, **options))
    assert [one.told for one in made] == rows
    assert len({tuple(row) for row in rows}) == 4


def test_drafts_change_nothing(vlm: VisionLanguageModel) -> None:
    """A state that goes on with drafted tokens, or with the first of several at once, is ahead of
    the answer."""
    allowed = [[70, 71, 72], [71, 72, 500], [72, 73], [73, 11], [11, 74], [74, 80]] * 3
    wanted = written(answer(vlm, lambda: Places(allowed), max_new_tokens=18))
    made: list[Places] = []

    def start() -> Places:
        made.append(Places(allowed))
        return made[-1]

    lookup = {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 2}
    assert written(answer(vlm, start, max_new_tokens=18, **lookup)) == wanted
    assert made[0].told == wanted[0]


def test_penalties_choose_among_what_is_allowed() -> None:
    """browser-use sends both; a penalty after the mask would bring excluded tokens back, one that
    is skipped under a grammar repeats itself."""
    logits = torch.zeros(1, 50)
    logits[0, 7], logits[0, 8], logits[0, 9] = 3.0, 2.5, 9.0
    options = qwen25vl.GenerationConfig(frequency_penalty=0.3, max_new_tokens=9)
    places = ConstrainedAnswer(Places([[7, 8]] * 6), ())
    state = SamplerState(options, constraint=places)
    chosen = []
    for _ in range(6):
        (choice,) = choose_tokens(logits, [state])
        assert not isinstance(choice, Exception)
        chosen.append(choice.token)
        state.add(choice.token)
    assert chosen == [7, 7, 8, 7, 8, 7]


def test_a_fault_ends_its_own_answer(vlm: VisionLanguageModel) -> None:
    """An error of one answer's grammar failed the step, and with it everybody's."""

    class Broken(Places):
        def mask(self, scores: torch.Tensor) -> torch.Tensor:
            if len(self.told) == 2:
                raise RuntimeError("broken")
            return super().mask(scores)

    class Refusing(Places):
        def accept(self, token: int) -> None:
            super().accept(token)
            if len(self.told) == 2:
                raise RuntimeError("broken")

    config = vlm.model.resolve_generation(None, {"max_new_tokens": 8})
    inputs = vlm.processor.tokenizer("What is this?", return_tensors="pt")
    engine = vlm.model.engine
    wanted = [chunk.token for chunk in stream(engine, inputs, config)]
    for kind in (Broken, Refusing):
        added = Additions(constraint=lambda kind=kind: kind([range(5, 900)] * 8))
        good = stream(engine, inputs, config)
        tokens = [next(good).token]
        bad = stream(engine, inputs, config, added=added)
        next(bad)
        with pytest.raises(RuntimeError, match="broken"):
            list(bad)
        assert tokens + [chunk.token for chunk in good] == wanted


def test_what_excludes_a_grammar(vlm: VisionLanguageModel) -> None:
    """Accepted, they would be ignored, or leave no token."""
    for options in ({"num_beams": 2}, {"forced_eos_token_id": END}, {"forced_bos_token_id": 4}):
        with pytest.raises(UsageError, match="grammar"):
            answer(vlm, lambda: Places([[5]]), **options)

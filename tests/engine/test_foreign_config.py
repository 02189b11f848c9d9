"""Configurations of other packages, and attributes set on the model's own, are obeyed or
refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from qwen25vl import GenerationConfig, VisionLanguageModel, load
from qwen25vl.ecosystem.foreign import read_options
from qwen25vl.errors import OptionError, UsageError

VERSION_4 = {  # what transformers 4 writes into an object that asks for nothing
    "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False, "num_beams": 1,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "num_return_sequences": 1, "output_scores": False, "use_cache": True,
    "return_dict_in_generate": False, "num_assistant_tokens": 20, "remove_invalid_values": False,
    "num_assistant_tokens_schedule": "constant", "generation_kwargs": {},
    "_from_model_config": True,
    "encoder_repetition_penalty": 1.0, "transformers_version": "4.49.0", "suppress_tokens": None,
}  # fmt: skip


class OnItsClass:
    max_new_tokens = 3


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return load()


@pytest.fixture
def own(vlm: VisionLanguageModel) -> Any:
    """The model's configuration as it was loaded, back in its place afterwards."""
    before = vlm.model.generation_config
    vlm.model.generation_config = before.merge()
    yield vlm.model.generation_config
    vlm.model.generation_config = before


def num_written(vlm: VisionLanguageModel, **options: Any) -> int:
    messages = [{"role": "user", "content": "Describe a dog and a cat."}]
    inputs = vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    written = vlm.model.generate(**inputs, **options)
    return int(written.shape[1] - inputs.input_ids.shape[1])


@pytest.mark.parametrize(
    "config",
    [
        transformers.GenerationConfig(max_new_tokens=3),
        transformers.GenerationConfig(**VERSION_4, max_new_tokens=3),
        SimpleNamespace(**VERSION_4, max_new_tokens=3),
        SimpleNamespace(max_new_tokens=3),
        GenerationConfig(max_new_tokens=3),
        OnItsClass(),
        {"max_new_tokens": 3, "top_p": None},
    ],
    ids=["transformers", "all_defaults", "version_4", "namespace", "own", "class", "mapping"],
)
def test_any_configuration_is_obeyed(vlm: VisionLanguageModel, config: Any) -> None:
    """It was an AttributeError; and the call's options go over it, as in transformers."""
    assert num_written(vlm, generation_config=config) == 3
    assert num_written(vlm, generation_config=config, max_new_tokens=5) == 5


def test_it_goes_over_the_checkpoints_values() -> None:
    """What it leaves at None keeps the checkpoint's value: without its end tokens no answer would
    end."""
    released = GenerationConfig(
        do_sample=True, temperature=1e-6, repetition_penalty=1.05, eos_token_id=[7, 8]
    )
    sampled = released.merge(**read_options(transformers.GenerationConfig(temperature=0.7)))
    assert (sampled.eos_token_id, sampled.repetition_penalty) == ((7, 8), 1.05)
    assert (sampled.do_sample, sampled.temperature) == (True, 0.7)
    assert released.merge(**read_options(SimpleNamespace(**VERSION_4))).is_greedy


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"exponential_decay_length_penalty": (5, 1.1)}, "logits_processor"),
        ({"epsilon_cutoff": 0.1}, "top_p or min_p"),
        ({"top_h": 0.4}, "top_h"),
    ],
)
def test_what_can_not_be_done_is_refused(
    vlm: VisionLanguageModel, asked: dict[str, Any], words: str
) -> None:
    """Ignored, a constrained answer would be one that nobody asked for."""
    for config in (
        transformers.GenerationConfig(**asked),
        SimpleNamespace(**VERSION_4 | asked),
        asked,
    ):
        with pytest.raises(OptionError, match=words):
            num_written(vlm, generation_config=config)


def test_max_length_gives_way(vlm: VisionLanguageModel) -> None:
    """transformers lets max_new_tokens take precedence."""
    both = transformers.GenerationConfig(max_length=100, max_new_tokens=3)
    assert num_written(vlm, generation_config=both) == 3


def test_max_length_is_obeyed(vlm: VisionLanguageModel) -> None:
    """It counts the prompt. 20, which transformers 4 writes into every object, asks for nothing;
    in a mapping, which holds only what somebody wrote, it does."""
    messages = [{"role": "user", "content": "Describe a dog and a cat."}]
    inputs = vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    length = inputs.input_ids.shape[1]
    assert num_written(vlm, max_length=length + 2) == 2
    for config in (
        transformers.GenerationConfig(max_length=length + 2),
        {"max_length": length + 2},
    ):
        assert num_written(vlm, generation_config=config) == 2
    assert num_written(vlm, generation_config=SimpleNamespace(**VERSION_4)) > 5
    with pytest.raises(UsageError, match="max_length is 20"):
        num_written(vlm, generation_config={"max_length": 20})


@pytest.mark.parametrize("config", ["greedy", 5, object(), [3]])
def test_something_else_is_named(vlm: VisionLanguageModel, config: Any) -> None:
    """An object without any option would count as one that asks for nothing."""
    with pytest.raises(UsageError, match=f"generation_config is {type(config).__name__}"):
        num_written(vlm, generation_config=config)


def test_attributes_of_the_models_own(vlm: VisionLanguageModel, own: GenerationConfig) -> None:
    """It was a FrozenInstanceError; now every later question, too, is answered by it."""
    own.max_new_tokens = 3
    assert num_written(vlm) == 3
    assert vlm.ask("Describe a dog.").usage.completion_tokens == 3
    assert num_written(vlm, max_new_tokens=4) == 4
    own.max_new_tokens = None  # type: ignore[assignment]  # as transformers: the default
    assert own.max_new_tokens == GenerationConfig().max_new_tokens
    vlm.model.generation_config = transformers.GenerationConfig(max_new_tokens=2)
    assert num_written(vlm) == 2


def test_the_order_of_assignments_does_not_matter() -> None:
    """do_sample=False and then temperature=1.0, to silence a warning, must not switch sampling
    on."""
    released = {"do_sample": True, "temperature": 1e-6, "top_k": 1}
    for names in (("do_sample", "temperature"), ("temperature", "do_sample")):
        config = GenerationConfig.from_dict(released)
        for name in names:
            setattr(config, name, {"do_sample": False, "temperature": 1.0}[name])
        assert config.is_greedy
    config = GenerationConfig.from_dict(released)
    config.top_p, config.temperature = 0.9, 0.7
    assert (config.is_greedy, config.top_k, config.top_p, config.temperature) == (
        False,
        0,
        0.9,
        0.7,
    )


def test_assignments_are_checked(own: GenerationConfig) -> None:
    """A wrong value, or a name that does not exist, is told where it is written."""
    for name, value, error in (
        ("max_new_tokens", 0, UsageError),
        ("temperature", "hot", UsageError),
        ("max_tokens", 5, OptionError),
        ("num_beams", 0, UsageError),
        ("penalty_alpha", 0.6, OptionError),
    ):
        with pytest.raises(error, match=name):
            setattr(own, name, value)
    own.use_cache = True  # type: ignore[attr-defined]
    assert own == GenerationConfig(**own.values())


def test_an_assigned_neutral_value_counts() -> None:
    """GenerationConfig(); .repetition_penalty = 1.0 switches the checkpoint's penalty off."""
    config = GenerationConfig()
    config.repetition_penalty = 1.0
    assert config.over(GenerationConfig(repetition_penalty=1.05)).repetition_penalty == 1.0


def test_the_pipeline_keeps_its_hands_off(vlm: VisionLanguageModel, own: GenerationConfig) -> None:
    """Its own default length went over a generation_config and over the model's."""
    from qwen25vl.ecosystem.pipelines import ImageTextToTextPipeline

    pipe = ImageTextToTextPipeline(vlm.model, vlm.processor)
    chat = [{"role": "user", "content": "Describe a dog."}]
    given = {"generation_config": transformers.GenerationConfig(max_new_tokens=2)}

    def length(**options: Any) -> int:
        (record,) = pipe(text=chat, return_tensors=True, **options)
        return len(record["generated_token_ids"])

    prompt = length(max_new_tokens=1) - 1
    assert length(generate_kwargs=given) == prompt + 2
    own.max_new_tokens = 3
    assert length() == prompt + 3

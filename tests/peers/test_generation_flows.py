"""Generation as it is called in Qwen's README and cookbooks, in lmms-eval, and in the integration
tests of transformers' model: the same calls, with the built-in model and its own texts."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

import qwen25vl
from qwen25vl import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    TextIteratorStreamer,
    VisionLanguageModel,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
SCENE, BOXES = str(EXAMPLES / "scene.png"), str(EXAMPLES / "boxes.png")


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


def chat(text: str, *pictures: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def prepare(vlm: VisionLanguageModel, *conversations: Any, side: str = "left") -> Any:
    """Rendered texts and pictures to inputs, as the README does it."""
    processor = vlm.processor
    texts = [
        processor.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
        for each in conversations
    ]
    pictures = [
        part["image"]
        for each in conversations
        for message in each
        for part in message["content"]
        if part["type"] == "image"
    ]
    return processor(text=texts, images=pictures or None, padding=True, return_tensors="pt")


def decode(vlm: VisionLanguageModel, inputs: Any, ids: torch.Tensor, copies: int = 1) -> list[str]:
    prompts = [prompt for prompt in inputs.input_ids for _ in range(copies)]
    trimmed = [out[len(prompt) :] for prompt, out in zip(prompts, ids, strict=True)]
    return vlm.processor.batch_decode(
        trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_one_picture(vlm: VisionLanguageModel) -> None:
    """Qwen2.5-VL README "Using Transformers to Chat"; test_modeling_qwen2_5_vl.py::
    test_small_model_integration_test: the text is that of `ask`."""
    inputs = prepare(vlm, chat("Describe the picture.", SCENE)).to("cpu")
    (text,) = decode(vlm, inputs, vlm.model.generate(**inputs, max_new_tokens=128))
    assert text == vlm.ask("Describe the picture.", [SCENE]).text
    assert "carrot" in text


def test_a_batch(vlm: VisionLanguageModel) -> None:
    """README "Batch inference"; test_small_model_integration_test_batch: two equal conversations
    have equal answers."""
    inputs = prepare(vlm, *[chat("Describe the picture.", SCENE)] * 2)
    first, second = decode(vlm, inputs, vlm.model.generate(**inputs, max_new_tokens=30))
    assert first == second


def test_a_batch_with_and_without_picture(vlm: VisionLanguageModel) -> None:
    """test_small_model_integration_test_batch_wo_image: each as alone."""
    conversations = [chat("Describe the picture.", SCENE), chat("Describe a dog.")]
    inputs = prepare(vlm, *conversations)
    texts = decode(vlm, inputs, vlm.model.generate(**inputs, max_new_tokens=30))
    for conversation, text in zip(conversations, texts, strict=True):
        alone = prepare(vlm, conversation)
        assert decode(vlm, alone, vlm.model.generate(**alone, max_new_tokens=30)) == [text]


def test_a_batch_of_different_pictures(vlm: VisionLanguageModel) -> None:
    """test_small_model_integration_test_batch_different_resolutions."""
    conversations = [chat("Describe the picture.", picture) for picture in (SCENE, BOXES)]
    inputs = prepare(vlm, *conversations)
    texts = decode(vlm, inputs, vlm.model.generate(**inputs, max_new_tokens=30))
    for conversation, text in zip(conversations, texts, strict=True):
        alone = prepare(vlm, conversation)
        assert decode(vlm, alone, vlm.model.generate(**alone, max_new_tokens=30)) == [text]


def test_several_answers_by_a_released_file(vlm: VisionLanguageModel) -> None:
    """test_small_model_integration_test_expand: num_return_sequences with the checkpoint's own
    configuration, which says do_sample and temperature 1e-6."""
    released = GenerationConfig(
        do_sample=True, temperature=1e-6, repetition_penalty=1.05,
        eos_token_id=vlm.model.generation_config.eos_token_id,
    )  # fmt: skip
    inputs = prepare(vlm, chat("Describe the picture.", SCENE))
    options = {"generation_config": released, "max_new_tokens": 30}
    ids = vlm.model.generate(**inputs, **options, num_return_sequences=3)
    texts = decode(vlm, inputs, ids, copies=3)
    assert texts == decode(vlm, inputs, vlm.model.generate(**inputs, **options)) * 3


def test_several_answers_by_beams(vlm: VisionLanguageModel) -> None:
    """test_small_model_integration_test_expand, with beams: the best is first."""
    inputs = prepare(vlm, chat("Describe the picture.", SCENE))
    out = vlm.model.generate(
        **inputs, max_new_tokens=30, num_beams=3, num_return_sequences=3,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert out.sequences_scores.tolist() == sorted(out.sequences_scores.tolist(), reverse=True)
    assert len(set(decode(vlm, inputs, out.sequences, copies=3))) > 1


@pytest.mark.parametrize("gen_kwargs", [
    {"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1},
    {"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 2},
    {"max_new_tokens": 16, "temperature": 0.7, "top_p": 0.9, "num_beams": 1},
])  # fmt: skip
def test_lmms_eval(vlm: VisionLanguageModel, gen_kwargs: dict[str, Any]) -> None:
    """lmms_eval/models/simple/qwen2_5_vl.py::generate_until: ends, sampling or none, beams and the
    cache spelled out for each request."""
    samples = gen_kwargs["temperature"] > 0
    conversations = [chat("Describe the picture.", SCENE), chat("Find all animals.", BOXES)]
    inputs = prepare(vlm, *conversations)
    tokenizer = vlm.processor.tokenizer
    ids = vlm.model.generate(
        **inputs,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=samples,
        temperature=gen_kwargs["temperature"] if samples else None,
        top_p=gen_kwargs["top_p"],
        num_beams=gen_kwargs["num_beams"],
        max_new_tokens=gen_kwargs["max_new_tokens"],
        use_cache=True,
    )
    assert all(decode(vlm, inputs, ids))


def test_lmms_eval_cuts_at_until(vlm: VisionLanguageModel) -> None:
    """lmms_eval: `until` strings are cut off the decoded text; stop_strings do it while writing."""
    inputs = prepare(vlm, chat("Describe the picture.", SCENE))
    whole = vlm.ask("Describe the picture.", [SCENE]).text
    ids = vlm.model.generate(
        **inputs, max_new_tokens=128, stop_strings=[","], tokenizer=vlm.processor.tokenizer
    )
    (text,) = decode(vlm, inputs, ids)
    assert text.split(",")[0] == whole.split(",")[0]
    assert text.endswith(",")


def test_prompt_and_answer_are_cut_by_hand(vlm: VisionLanguageModel) -> None:
    """Cookbooks ocr, document_parsing, universal_recognition: `inference` trims each row by the
    length of its prompt."""
    inputs = prepare(vlm, chat("Find all animals in JSON.", BOXES))
    output_ids = vlm.model.generate(**inputs, max_new_tokens=1024)
    generated = [out[len(ids) :] for ids, out in zip(inputs.input_ids, output_ids, strict=True)]
    (text,) = vlm.processor.batch_decode(
        generated, skip_special_tokens=True, clean_up_tokenization_spaces=True
    )
    assert "bbox_2d" in text


def test_a_web_demo_streams(vlm: VisionLanguageModel) -> None:
    """Qwen2.5-VL/web_demo_mm.py: generate in a thread, a TextIteratorStreamer for the page."""
    inputs = prepare(vlm, chat("Describe the picture.", SCENE))
    streamer = TextIteratorStreamer(
        vlm.processor.tokenizer, timeout=20.0, skip_prompt=True, skip_special_tokens=True
    )
    options = {"max_new_tokens": 512, "streamer": streamer, **inputs}
    thread = Thread(target=vlm.model.generate, kwargs=options)
    thread.start()
    shown = ""
    for piece in streamer:
        shown += piece
    thread.join()
    assert shown == vlm.ask("Describe the picture.", [SCENE]).text


def test_how_sure_it_is(vlm: VisionLanguageModel) -> None:
    """Widespread recipe: probabilities of an answer's tokens from output_scores and
    compute_transition_scores."""
    inputs = prepare(vlm, chat("Describe the picture.", SCENE))
    out = vlm.model.generate(
        **inputs, max_new_tokens=8, return_dict_in_generate=True, output_scores=True,
        repetition_penalty=1.0,
    )  # fmt: skip
    scores = vlm.model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    stream = vlm.stream("Describe the picture.", [SCENE], max_new_tokens=8, repetition_penalty=1.0)
    logprobs = torch.tensor([chunk.logprob for chunk in stream])
    torch.testing.assert_close(scores[0], logprobs, atol=1e-4, rtol=1e-4)


def asked_together(vlm: VisionLanguageModel, broken: dict[str, Any]) -> tuple[Any, Any]:
    """A good request's ids and the error of a bad one, run at the same time."""
    inputs = prepare(vlm, chat("Describe the picture.", SCENE))
    found: dict[str, Any] = {}

    def ask(name: str, **options: Any) -> None:
        try:
            found[name] = vlm.model.generate(**inputs, max_new_tokens=24, **options)
        except Exception as error:
            found[name] = error

    threads = [Thread(target=ask, args=("good",)), Thread(target=ask, args=("bad",), kwargs=broken)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found["good"], found["bad"]


def failing_after(num_calls: int) -> Callable[..., Any]:
    calls: list[int] = []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > num_calls:
            raise ArithmeticError("the caller's own")
        return arguments[1] if arguments[1] is not None else False

    return fail


class FailingStreamer:
    def put(self, value: torch.Tensor) -> None:
        if value.ndim == 1:
            raise ArithmeticError("the caller's own")

    def end(self) -> None:
        pass


@pytest.mark.parametrize(
    "broken",
    [
        {"logits_processor": LogitsProcessorList([failing_after(3)])},
        {"stopping_criteria": StoppingCriteriaList([failing_after(3)])},
        {"logits_processor": [failing_after(9)], "num_beams": 3},
        {"stopping_criteria": [failing_after(9)], "num_beams": 3},
        {"streamer": FailingStreamer()},
    ],
    ids=["processor", "criterion", "processor_beams", "criterion_beams", "streamer"],
)
def test_a_function_that_fails_ends_its_own_request(
    vlm: VisionLanguageModel, broken: dict[str, Any]
) -> None:
    """Requests of several threads share their steps: one's functions must not end another's
    answer."""
    inputs = prepare(vlm, chat("Describe the picture.", SCENE))
    good, bad = asked_together(vlm, broken)
    assert torch.equal(good, vlm.model.generate(**inputs, max_new_tokens=24))
    assert isinstance(bad, ArithmeticError)
    assert not vlm.model.engine.is_busy


@pytest.mark.parametrize("returned", [None, torch.zeros(3), torch.full((1, 1), torch.nan)])
def test_a_processor_that_returns_no_scores(vlm: VisionLanguageModel, returned: Any) -> None:
    """A function without `return` is the usual mistake."""
    inputs = prepare(vlm, chat("Describe a dog."))
    with pytest.raises(ValueError, match="a logits processor returned"):
        vlm.model.generate(**inputs, logits_processor=[lambda ids, scores: returned])
    with pytest.raises(ValueError, match="not numbers"):
        vlm.model.generate(**inputs, logits_processor=[lambda ids, scores: scores * torch.nan])
    for name in ("logits_processor", "stopping_criteria"):
        with pytest.raises(ValueError, match="str is no function"):
            vlm.model.generate(**inputs, **{name: ["stop"]})
    with pytest.raises(ValueError, match="a stopping criterion returned None"):
        vlm.model.generate(**inputs, stopping_criteria=[lambda ids, scores: None])

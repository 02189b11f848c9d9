"""tests/pipelines/test_pipelines_image_text_to_text.py of transformers, and its documentation pages
image_text_to_text and model_doc/qwen2_5_vl. Texts are those of small random weights: their shapes
and what they are made of are compared."""

from __future__ import annotations

import base64
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwen25vl import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    ImageTextToTextPipeline,
    QuantoConfig,
    TorchAoConfig,
    pipeline,
)
from qwen25vl.demo import FOLDER
from qwen25vl.ecosystem import quantisation_configs
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import PackedLinear

SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
CAT = Image.effect_noise((84, 56), 90).convert("RGB")
DOG = Image.effect_noise((56, 56), 40).convert("RGB")
TASK = "image-text-to-text"


@pytest.fixture(scope="module")
def parts(tiny_folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def pipe(parts: tuple[Any, Any]) -> ImageTextToTextPipeline:
    """As the pipeline tests build it: a dtype and a length for all calls."""
    model, processor = parts
    return ImageTextToTextPipeline(
        model=model, processor=processor, torch_dtype="float32", max_new_tokens=4
    )


@pytest.fixture(scope="module")
def cat_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    CAT.save(path)
    return str(path)


def chat(*content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(content)}]


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_run_pipeline_test(pipe: Any, cat_file: str) -> None:
    """ImageTextToTextPipelineTests::run_pipeline_test: a picture by position, a rendered prompt."""
    for picture in (CAT, cat_file):
        (record,) = pipe(picture, text=f"{SLOT}This is a ")
        assert {name: type(value) for name, value in record.items()} == {
            "input_text": str,
            "generated_text": str,
        }


def test_the_length_of_the_pipeline_is_used(pipe: Any) -> None:
    """get_test_pipeline(max_new_tokens=10): an option of the constructor holds for each call that
    does not say otherwise."""
    (short,) = pipe(text="Hi", return_tensors=True)
    (longer,) = pipe(text="Hi", return_tensors=True, max_new_tokens=9, min_new_tokens=9)
    assert len(short["generated_token_ids"]) <= 1 + 4
    assert len(longer["generated_token_ids"]) == 1 + 9


def test_text_only(pipe: Any) -> None:
    """::test_small_model_pt_token_text_only, a prompt: returned with its continuation."""
    text = "What is the capital of France? Assistant:"
    (record,) = pipe(text=text)
    assert record["input_text"] == text
    assert record["generated_text"].startswith(text)


def test_conversations_of_text(pipe: Any) -> None:
    """::test_small_model_pt_token_text_only, two conversations: a list of records for each."""
    messages = [chat(text_part("Write a poem")), chat(text_part("What is the capital of France?"))]
    outputs = pipe(text=messages)
    assert [[r["input_text"] for r in each] for each in outputs] == [[m] for m in messages]
    for (record,), given in zip(outputs, messages, strict=True):
        assert record["generated_text"][:-1] == given
        assert record["generated_text"][-1]["role"] == "assistant"


def test_several_prompts(pipe: Any) -> None:
    """::test_small_model_pt_token: a picture for each prompt."""
    alone = pipe(CAT, text=f"{SLOT}What is this?")
    both = pipe([CAT, CAT], text=[f"{SLOT}What is this?"] * 2)
    assert both == alone * 2


def test_consistent_batching(pipe: Any) -> None:
    """::test_consistent_batching_behaviour"""
    prompts = [f"{SLOT}a photo of"] * 2
    assert pipe([CAT, DOG], text=prompts) == pipe([CAT, DOG], text=prompts, batch_size=2)


@pytest.mark.parametrize("full", [True, None, False])
def test_pictures_beside_a_conversation(pipe: Any, cat_file: str, full: bool | None) -> None:
    """::test_model_pt_chat_template: pictures fill the conversation's empty slots, and stand in
    input_text; the caller's messages stay as they were."""
    messages = chat(text_part("What differs?"), {"type": "image"}, {"type": "image"})
    (record,) = pipe([cat_file, DOG], text=messages, return_full_text=full)
    filled = chat(
        text_part("What differs?"),
        {"type": "image", "image": cat_file},
        {"type": "image", "image": DOG},
    )
    assert record["input_text"] == filled
    assert messages[0]["content"][1] == {"type": "image"}
    (plain,) = pipe(text=filled, return_full_text=full)
    assert record["generated_text"] == plain["generated_text"]


def test_pictures_beside_several_conversations(pipe: Any) -> None:
    """::test_model_pt_chat_template, in a batch: an entry for each conversation."""
    two = chat({"type": "image"}, {"type": "image"}, text_part("Two"))
    one = chat({"type": "image"}, text_part("One"))
    outputs = pipe(images=[[CAT, DOG], DOG, None], text=[two, one, chat(text_part("None"))])
    pictures = [[p.get("image") for p in r["input_text"][0]["content"]] for (r,) in outputs]
    assert pictures == [[CAT, DOG, None], [DOG, None], [None]]


def test_wrong_numbers_of_pictures(pipe: Any) -> None:
    """image_text_to_text.py::preprocess raises for pictures that no slot is for."""
    with pytest.raises(ValueError, match="2 images are given, but the conversation has 1 parts"):
        pipe(images=[CAT, DOG], text=chat({"type": "image"}))
    with pytest.raises(UsageError, match="an entry for each of the 2 conversations"):
        pipe(images=[CAT], text=[chat({"type": "image"})] * 2)


@pytest.mark.parametrize("by", ["default", "continue_final_message", "add_generation_prompt"])
def test_continuing_an_answer(pipe: Any, by: str) -> None:
    """::test_model_pt_chat_template_continue_final_message: the last message grows."""
    messages = [
        *chat({"type": "image", "image": CAT}, text_part("Describe this image.")),
        *chat(text_part("There is a dog and"), role="assistant"),
    ]
    given: dict[str, Any] = {
        "default": {},
        "continue_final_message": {"continue_final_message": True},
        "add_generation_prompt": {"add_generation_prompt": False},
    }[by]
    (record,) = pipe(text=messages, **given)
    assert record["generated_text"][:-1] == messages[:-1]
    grown = record["generated_text"][-1]["content"][0]["text"]
    assert grown.startswith("There is a dog and")
    assert len(grown) > len("There is a dog and")


def test_only_new_text(pipe: Any) -> None:
    """::test_model_pt_chat_template_new_text"""
    messages = chat({"type": "image", "image": CAT}, text_part("Describe this image."))
    (record,) = pipe(text=messages, return_full_text=False)
    assert record["input_text"] == messages
    assert isinstance(record["generated_text"], str)


@pytest.mark.parametrize("form", ["file", "base64"])
def test_image_url(pipe: Any, cat_file: str, form: str) -> None:
    """::test_model_pt_chat_template_image_url and …_image_url_base64"""
    stream = BytesIO()
    CAT.save(stream, "PNG")
    data = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    url = {"file": Path(cat_file).as_uri(), "base64": data}[form]
    messages = chat({"type": "image_url", "image_url": {"url": url}}, text_part("Describe it."))
    (found,) = pipe(text=messages, return_full_text=False)
    (plain,) = pipe(
        text=chat({"type": "image", "image": CAT}, text_part("Describe it.")),
        return_full_text=False,
    )
    assert found["generated_text"] == plain["generated_text"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 3},
        {"trust_remote_code": True},
        {"model_kwargs": {"attn_implementation": "eager"}},
        {"use_fast": True},
        {"batch_size": 2},
        {"processor_kwargs": {"max_pixels": 3136}},
        {"framework": "pt"},
        {"device": -1},
        {"device_map": "auto"},
        {"torch_dtype": "auto"},
        {"dtype": torch.float32},
        {"return_full_text": False},
        {"generate_kwargs": {"max_new_tokens": 3}},
    ],
    ids=lambda o: next(iter(o)),
)
def test_options_of_the_pipeline(tiny_folder: Path, options: dict[str, Any]) -> None:
    """test_pipelines_common.py and the pages: options that pipeline() takes."""
    made = pipeline(TASK, model=tiny_folder, **options)
    (record,) = made(text=chat({"type": "image", "image": CAT}), max_new_tokens=2)
    assert record["generated_text"]
    implementation = made.model.config._attn_implementation
    assert implementation == ("eager" if "model_kwargs" in options else "sdpa")
    kept = {"max_new_tokens", "batch_size", "processor_kwargs", "return_full_text"}
    assert set(made.options) == options.keys() & (kept | {"generate_kwargs"})


def test_defaults_give_way() -> None:
    """base.py::__call__: options of the call come before those of the pipeline, wherever they were
    given."""
    from qwen25vl.ecosystem.pipeline_options import read_call

    call = read_call(
        {"generate_kwargs": {"max_new_tokens": 3, "top_k": 4}, "batch_size": 2},
        {"max_new_tokens": 5, "batch_size": None, "stop_sequence": "x"},
    )
    assert call.generation == {"max_new_tokens": 5, "top_k": 4, "stop_strings": "x"}
    assert call.batch_size == 2
    assert call.skip_special_tokens
    with pytest.raises(UsageError, match="given twice"):
        read_call({}, {"generate_kwargs": {"top_k": 4}, "top_k": 5})


def test_parts_of_the_pipeline(parts: tuple[Any, Any], tiny_folder: Path) -> None:
    """test_pipelines_common.py: tokenizer= and image_processor= beside a model; names stand for a
    processor."""
    model, processor = parts
    smaller = AutoProcessor.from_pretrained(tiny_folder, max_pixels=3136)
    made = pipeline(TASK, model, processor, tokenizer=None, image_processor=smaller.image_processor)
    assert made.processor.image_processor is smaller.image_processor
    assert processor.image_processor is not smaller.image_processor
    assert made.tokenizer is processor.tokenizer
    named = pipeline(TASK, model, tokenizer=str(tiny_folder))
    assert named.processor.folder == tiny_folder
    configured = pipeline(TASK, tiny_folder, config=model.config).model
    assert configured.config == model.config
    assert configured.config is not model.config, "from_pretrained copies it, as transformers does"


@pytest.mark.parametrize("name", ["timeout", "clean_up_tokenization_spaces"])
def test_options_of_a_call(pipe: Any, name: str) -> None:
    """image_text_to_text.py::_sanitize_parameters"""
    assert pipe(text="Hi", **{name: True}) == pipe(text="Hi")


def test_page_of_pipelines(pipe: Any) -> None:
    """docs/tasks/image_text_to_text.md: pictures in the messages, the answer's text."""
    messages = chat(
        {"type": "image", "image": CAT},
        {"type": "image", "image": DOG},
        text_part("What do you see in these pictures?"),
    )
    outputs = pipe(text=messages, max_new_tokens=3, return_full_text=False)
    assert isinstance(outputs[0]["generated_text"], str)


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        (TorchAoConfig("int4_weight_only", group_size=128), Scheme(4, 128)),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), Scheme(4)),
        (BitsAndBytesConfig(load_in_8bit=True), Scheme(8)),
        (BitsAndBytesConfig(), None),
        (QuantoConfig(weights="int8"), Scheme(8)),
        (QuantoConfig(weights="int4"), Scheme(4)),
    ],
    ids=str,
)
def test_quantisation_of_the_pages(config: Any, scheme: Any) -> None:
    """docs/tasks/image_text_to_text.md (QuantoConfig), docs/model_doc/qwen2_5_vl.md
    (TorchAoConfig), docs/quantization/bitsandbytes.md: weights of the same width; another
    package's way warns, once."""
    quantisation_configs.warned.clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert [config.scheme for _ in range(2)] == [scheme] * 2
        model = AutoModelForImageTextToText.from_pretrained(FOLDER, quantization_config=config)
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert {m.bits for m in packed} == ({scheme.bits} if scheme else set())
    is_own = isinstance(config, TorchAoConfig) or scheme is None
    assert sum("is quantised by this package's own" in str(w.message) for w in seen) == (not is_own)


@pytest.mark.refused("widths and activations that no kernel reads raise OptionError")
@pytest.mark.parametrize(
    "make",
    [
        lambda: QuantoConfig(weights="int2"),
        lambda: QuantoConfig(weights="float8"),
        lambda: QuantoConfig(activations="int8"),
        lambda: BitsAndBytesConfig(load_in_4bit=True, load_in_8bit=True),
    ],
)
def test_other_quantisations(make: Any) -> None:
    """quantization/quanto_integration: other weights and quantised activations"""
    with pytest.raises(OptionError):
        make()


@pytest.mark.refused("only the dtype that the model has; transformers ignores another one")
def test_another_dtype(parts: tuple[Any, Any]) -> None:
    """get_test_pipeline(torch_dtype=…) beside a loaded model"""
    with pytest.raises(UsageError, match="load it in that one"):
        ImageTextToTextPipeline(*parts, torch_dtype="bfloat16")
    with pytest.raises(OptionError, match="max_new_tokens"):
        ImageTextToTextPipeline(*parts, max_new_token=3)


@pytest.mark.refused("one task, and torch")
@pytest.mark.parametrize("given", [{"task": "text-generation"}, {"framework": "tf"}], ids=str)
def test_other_tasks(given: dict[str, str], tiny_folder: Path) -> None:
    """pipelines/__init__.py::pipeline"""
    with pytest.raises(UsageError):
        pipeline(**given, model=tiny_folder)

"""The model against transformers 5.23 on random checkpoints, in float32 and bfloat16: what it
computes and learns.

`mrope="hf5"` wherever there are clips:
transformers 5 places the text after them wrongly (see model/positions.py).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from scenes import Prompt, mixed_prompts, model_inputs, pixels, token_types

from qwen25vl import Qwen2_5_VLForConditionalGeneration
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.kernels import library

Tensors = tuple[torch.Tensor, ...]
VARIANTS: dict[str, dict[str, Any]] = {
    "tied, hub layout": {},
    "untied, newer layout": {"tied": False, "nested": True, "seed": 1},
    "windows of 2×2 tokens, one full block": {
        "seed": 2,
        "vision": {"window_size": 56, "fullatt_block_indexes": [2]},
    },
    "one key head, windows only": {
        "seed": 3,
        "text": {"num_key_value_heads": 1},
        "vision": {"depth": 2, "fullatt_block_indexes": []},
    },
}


@pytest.fixture(scope="module", params=VARIANTS)
def folder(
    request: pytest.FixtureRequest, tokenizer_json: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("parity"), tokenizer_json, **VARIANTS[request.param]
    )


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def models(request: pytest.FixtureRequest, folder: Path) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    reference = Reference.from_pretrained(folder, dtype=request.param).eval()
    return reference, Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=request.param, mrope="hf5"
    )


@pytest.fixture(autouse=True)
def torch_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same roundings as the reference's;
    the compiled kernels have a test of their own below."""
    monkeypatch.setenv("QWEN25VL_KERNELS", "torch")
    library.choose.cache_clear()
    yield
    library.choose.cache_clear()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    """float32: within 1e-4 of the largest value; bfloat16:
    relative mean squared error within 1e-4."""
    if dtype == torch.float32:
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    else:
        assert distance(ours, theirs) <= 1e-4


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative mean squared error."""
    difference = one.double() - other.double()
    return float(difference.square().mean() / other.double().square().mean())


def assert_as_exact(
    ours: Tensors, theirs: Tensors, dtype: torch.dtype, exact: Callable[[], Tensors]
) -> None:
    """`assert_close`. Where torch has no bfloat16 instructions it rounds by the shape of a product,
    and both drift from the float32 model: there ours may be as far from it as the reference is."""
    if dtype == torch.bfloat16 and max(map(distance, ours, theirs)) > 1e-4:
        for mine, their, wanted in zip(ours, theirs, exact(), strict=True):
            assert distance(mine, wanted) <= max(1e-4, 1.05 * distance(their, wanted))
        return
    for mine, their in zip(ours, theirs, strict=True):
        assert_close(mine, their, dtype)


def test_visual_tokens(models: tuple[Any, Any]) -> None:
    """Windows, full blocks, merger, and rotary angles, with ragged edges and clips."""
    reference, model = models
    grids = [(1, 10, 14), (1, 16, 16), (3, 6, 20), (1, 2, 2), (2, 18, 34)]
    values = pixels(grids)
    with torch.no_grad():
        theirs = reference.model.visual(
            values.to(model.dtype), grid_thw=torch.tensor(grids)
        ).pooler_output
        ours = model.visual(values, grid_thw=torch.tensor(grids))
    assert_close(ours, theirs, model.dtype)


def test_positions(models: tuple[Any, Any]) -> None:
    """`mrope="hf5"` is the fault of transformers 5, exactly; it serves comparisons."""
    reference, model = models
    names = (
        "input_ids",
        "attention_mask",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
    )
    for side in ("left", "right"):
        inputs = model_inputs(*mixed_prompts(), padding_side=side)
        kept = {name: inputs[name] for name in names}
        theirs, their_deltas = reference.model.get_rope_index(
            **kept, mm_token_type_ids=token_types(inputs["input_ids"])
        )
        ours, deltas = model.model.get_rope_index(**kept)
        assert torch.equal(ours, theirs)
        assert torch.equal(deltas, their_deltas)


@pytest.mark.parametrize("prompt", mixed_prompts(), ids=str)
def test_logits_and_hidden_states(models: tuple[Any, Any], prompt: Prompt, folder: Path) -> None:
    """At every position, not only the last."""
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    reference, model = models
    inputs = model_inputs(prompt)

    @torch.no_grad()
    def answer(model: Any, **options: Any) -> Tensors:
        out = model(**inputs, output_hidden_states=True, use_cache=False, **options)
        return (out.logits, *out.hidden_states)

    types = token_types(inputs["input_ids"])

    def exact() -> Tensors:
        model = Reference.from_pretrained(folder, dtype=torch.float32).eval()
        return answer(model, mm_token_type_ids=types)

    theirs = answer(reference, mm_token_type_ids=types)
    assert_as_exact(answer(model), theirs, model.dtype, exact)


def test_compiled_kernels_are_as_exact_as_the_reference(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 a sum in another order rounds differently, and so drifts from the reference as
    far as the reference itself drifts from float32. What must not be is that the compiled kernels
    drift further than it."""
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    monkeypatch.delenv("QWEN25VL_KERNELS")
    library.choose.cache_clear()
    exact = Reference.from_pretrained(folder, dtype=torch.float32).eval()
    rounded = Reference.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, mrope="hf5"
    )
    errors = []
    for prompt in mixed_prompts():
        inputs = model_inputs(prompt)
        types = token_types(inputs["input_ids"])
        with torch.no_grad():
            wanted = exact(**inputs, mm_token_type_ids=types).logits.double()
            logits = model(**inputs).logits, rounded(**inputs, mm_token_type_ids=types).logits
        errors.append(
            [float((x - wanted).square().mean() / wanted.square().mean()) for x in logits]
        )
    ours, theirs = (sum(column) for column in zip(*errors, strict=True))
    assert ours <= 1.1 * theirs


def test_loss_and_gradients(folder: Path) -> None:
    """What a training step would do to every weight of both towers."""
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    prompt = Prompt().image(10, 14).text(*range(50, 70)).video(2, 4, 8).text(*range(90, 110))
    inputs = model_inputs(prompt)
    types = token_types(inputs["input_ids"])
    labels = inputs["input_ids"].masked_fill(types > 0, -100)
    reference = Reference.from_pretrained(folder, dtype=torch.float32)
    theirs = reference(**inputs, mm_token_type_ids=types, labels=labels)
    theirs.loss.backward()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, mrope="hf5"
    )
    model.train()
    calls: list[int] = []
    for layer in (model.visual.blocks[0], model.model.language_model.layers[0]):
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls.clear()
        ours = model(**inputs, labels=labels)
        num_forward = len(calls)
        ours.loss.backward()
        assert len(calls) == num_forward * (2 if checkpointing else 1), (
            "checkpointing computes each block again"
        )
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        for name, parameter in reference.named_parameters():
            assert_close(gradients[name], parameter.grad, torch.float32)


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "linear", "factor": 3.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "truncate": False},
    ],
    ids=["linear", "yarn", "yarn without truncation"],
)
def test_stretched_positions(tokenizer_json: Any, tmp_path: Path, rope: dict[str, Any]) -> None:
    """Logits, not only frequencies: the factor on cos and sin is easily forgotten."""
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    text = {"rope_scaling": rope | {"mrope_section": [2, 3, 3]}, "vocab_size": 151936}
    folder = write_checkpoint(tmp_path, tokenizer_json, text=text)
    ids = torch.arange(1000, 1200)[None]
    with torch.no_grad():
        theirs = Reference.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
        ours = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)(
            ids
        ).logits
    assert_close(ours, theirs, torch.float32)


def test_configurations_are_the_same_model(folder: Path) -> None:
    """A config that transformers saves (nested, rope_parameters) describes the
    model of the hub's flat file."""
    from transformers import Qwen2_5_VLConfig as Theirs

    saved = Theirs.from_pretrained(folder).to_dict()
    assert "rope_parameters" in saved["text_config"]
    ours, again = Qwen2_5_VLConfig.from_pretrained(folder), Qwen2_5_VLConfig.from_dict(saved)
    assert again.vision_config == ours.vision_config
    assert again.text_config.rope_scaling == ours.text_config.rope_scaling
    assert again.text_config.rms_norm_eps == ours.text_config.rms_norm_eps
    assert again.tie_word_embeddings == ours.tie_word_embeddings

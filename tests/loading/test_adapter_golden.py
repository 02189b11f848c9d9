"""Every kind of LoRA against the weights that PEFT itself merges.

golden/peft_lora.safetensors was written with PEFT 0.21.2: for each kind the base, the adapter as
`save_pretrained` stores it, and the result of `merge_and_unload`. Its metadata has the configs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl.loading.adapter import Adapter, read_adapter
from qwen25vl.model.adapted import adapt
from qwen25vl.model.low_rank import merged_bias, merged_weight

FILE = Path(__file__).parent / "golden" / "peft_lora.safetensors"
KINDS = [
    "plain",
    "rslora",
    "dora",
    "rslora_dora",
    "rank_pattern",
    "lora_bias",
    "embedding",
    "tokens",
]
Tensors = dict[str, torch.Tensor]


def part(kind: str, name: str) -> Tensors:
    with safe_open(FILE, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(f"{kind}/{name}/")]  # noqa: SIM118
        return {key.split("/", 2)[2]: file.get_tensor(key) for key in keys}


def read_kind(kind: str, folder: Path) -> Adapter:
    """The adapter of a kind, through files in the layout of PEFT."""
    with safe_open(FILE, "pt") as file:
        config = json.loads(file.metadata()[kind])
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    save_file(part(kind, "adapter"), folder / "adapter_model.safetensors")
    return read_adapter(folder)


def make_layer(weight: torch.Tensor, bias: torch.Tensor | None, path: str) -> Any:
    if path == "embed_tokens":
        return nn.Embedding.from_pretrained(weight)
    layer = nn.Linear(*reversed(weight.shape), bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer


def test_the_file_has_these_kinds() -> None:
    with safe_open(FILE, "pt") as file:
        assert {key.split("/")[0] for key in file.keys()} == set(KINDS)  # noqa: SIM118


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights(kind: str, tmp_path: Path) -> None:
    """A scale without the root of rsLoRA, a pattern's rank taken from the whole, lengths of columns
    in place of rows, new rows added instead of put: each moves these weights."""
    changes, base, merged = (
        read_kind(kind, tmp_path).changes,
        part(kind, "base"),
        part(kind, "merged"),
    )
    assert changes.keys() == {name.rpartition(".")[0] for name in merged}
    for path, change in changes.items():
        weight = merged_weight(base[f"{path}.weight"], change)
        assert (weight - merged[f"{path}.weight"]).abs().max() <= 1e-5
        bias = merged_bias(base.get(f"{path}.bias"), change)
        if bias is not None:
            assert (bias - merged[f"{path}.bias"]).abs().max() <= 1e-5
        assert not torch.equal(weight, base[f"{path}.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_layers_beside_their_base(kind: str, tmp_path: Path) -> None:
    """What a layer computes with A and B beside it is what the merged weight computes."""
    changes, base, merged = (
        read_kind(kind, tmp_path).changes,
        part(kind, "base"),
        part(kind, "merged"),
    )
    torch.manual_seed(0)
    for path, change in changes.items():
        weight, bias = base[f"{path}.weight"], base.get(f"{path}.bias")
        layer = adapt(make_layer(weight, bias, path), change, torch.float32)
        expected, own = merged[f"{path}.weight"], merged.get(f"{path}.bias")
        if path == "embed_tokens":
            ids = torch.arange(len(weight)).view(2, -1)
            found, wanted = layer(ids), F.embedding(ids, expected)
        else:
            x = torch.randn(5, weight.shape[1])
            with torch.no_grad():
                found, wanted = layer(x), F.linear(x, expected, own)
                assert torch.equal(layer(x[None])[0], found)
        assert ((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5

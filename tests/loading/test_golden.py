"""Small weights packed by the formats' own programs, beside what these make of them.

Made by AutoAWQ, AutoGPTQ, compressed-tensors 0.20, bitsandbytes 0.50, torchao 0.18, MLX 0.32 and
the C code of llama.cpp. A wrong order of codes, zeros of other outputs, or an axis turned the wrong
way gives weights that look like weights.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qwen25vl.errors import CheckpointError
from qwen25vl.loading.checkpoint import Checkpoint, model_name
from qwen25vl.loading.formats import read_format
from qwen25vl.loading.formats.gguf_blocks import DECODERS, decode_rows
from qwen25vl.model.packed_linear import Int4Linear, Int8Linear, PackedLinear

GOLDEN = Path(__file__).parent / "golden"
HUB = "model.layers.0.mlp.up_proj"
LAYER = model_name(HUB)
Tensors = dict[str, torch.Tensor]


def read(name: str) -> tuple[Tensors, dict[str, str]]:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def one_layer(shape: tuple[int, ...]) -> nn.Module:
    """A model with one linear layer [O, I] on "meta", at its place in the whole model."""
    with torch.device("meta"):
        module: nn.Module = nn.Linear(shape[1], shape[0], bias=False)
    for name in reversed(LAYER.split(".")):
        holder = nn.Module()
        holder.add_module(name, module)
        module = holder
    return module


def load_layer(
    folder: Path, config: dict[str, Any], tensors: Tensors, shape: tuple[int, ...]
) -> tuple[nn.Module, torch.Tensor]:
    """The layer that a checkpoint's tensors become, and its weight in float32."""
    folder.mkdir(exist_ok=True)
    named = {f"{HUB}.{name}" if name else HUB: tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    model, checkpoint = one_layer(shape), Checkpoint(folder)
    read_format(config, folder).expect(model, checkpoint)
    checkpoint.match(model)
    layer = model.get_submodule(LAYER)
    if not isinstance(layer, PackedLinear):
        return layer, checkpoint.read_once(f"{LAYER}.weight", torch.float32)
    for name, _ in layer.named_buffers():
        value = checkpoint.read_once(f"{LAYER}.{name}")
        setattr(layer, name, value.to(layer.get_buffer(name).dtype))
    return layer, layer.dequantise(torch.float32)


def distance(made: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((made - wanted.float()).norm() / wanted.float().norm())


def kind_of(layer: nn.Module) -> type:
    return type(layer)


@pytest.mark.parametrize("kind", DECODERS)
def test_gguf_blocks(kind: str) -> None:
    """To the last bit those of llama.cpp."""
    stored = np.load(GOLDEN / "gguf_blocks.npz")
    raw, wanted = torch.from_numpy(stored[kind]), torch.from_numpy(stored[f"{kind}_f32"])
    assert torch.equal(decode_rows(raw, kind), wanted)


def test_awq(tmp_path: Path) -> None:
    tensors, _ = read("awq_gemm_g128")
    wanted = tensors.pop("weight")
    config = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    layer, made = load_layer(tmp_path, config, tensors, tuple(wanted.shape))
    assert kind_of(layer) is Int4Linear
    assert distance(made, wanted) < 1e-3  # of float16


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("int4_sym_g128", Int4Linear),
        ("int4_sym_g32", Int4Linear),
        ("int4_asym_g128", Int4Linear),
        ("int8_sym_g128", nn.Linear),
    ],
)
def test_gptq(name: str, kind: type, number: int, tmp_path: Path) -> None:
    """Both versions: the second stores zeros as they are. A zero of 0 is stored as 15 by the
    first."""
    tensors, about = read(f"gptq_v1_{name}")
    wanted, zeros = tensors.pop("weight_f32"), tensors.pop("zeros")
    bits = int(about.get("bits", 4))
    if number == 2:
        places = torch.arange(0, 32, bits)
        words = (zeros.long().unflatten(1, (-1, 32 // bits)) << places).sum(-1)
        tensors["qzeros"] = (words - (words >> 31 << 32)).to(torch.int32)
    form = "gptq" if number == 1 else "gptq_v2"
    config = {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}
    layer, made = load_layer(tmp_path, config, tensors, tuple(wanted.shape))
    assert kind_of(layer) is kind
    assert torch.equal(made, wanted)
    if kind is Int4Linear:
        assert (layer.weight_zero_point is not None) == ("asym" in name)


def weights_of(about: dict[str, str]) -> dict[str, Any]:
    return json.loads(about["weights"]) if "weights" in about else {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pack_w4_sym_g128", Int4Linear),
        ("pack_w4_asym_g128", Int4Linear),
        ("pack_w4_asym_g32", Int4Linear),
        ("pack_w4_sym_channel", Int4Linear),
        ("pack_w4_sym_g128_actorder_group", nn.Linear),
        ("pack_w8_sym_channel", Int8Linear),
        ("pack_w8_sym_g128", nn.Linear),
        ("pack_w8_asym_g128", nn.Linear),
        ("int_quantized_w8a8", Int8Linear),
        ("float_quantized_fp8_channel", nn.Linear),
        ("float_quantized_fp8_block128", nn.Linear),
    ],
)
def test_compressed_tensors(name: str, kind: type, tmp_path: Path) -> None:
    tensors, about = read(f"ct_{name}")
    wanted = next(tensors.pop(key) for key in ("dequantised", "dequantised_f32") if key in tensors)
    bits = 4 if "w4" in name else 8
    strategy = next(s for s in ("channel", "block", "group") if s in name or s == "group")
    weights: dict[str, Any] = {
        "num_bits": bits,
        "type": "float" if "fp8" in name else "int",
        "symmetric": "asym" not in name,
        "strategy": "channel" if "w8a8" in name else strategy,
        "group_size": None,
    }
    if weights["strategy"] == "group":
        weights["group_size"] = 32 if "g32" in name else 128
    if strategy == "block":
        weights["block_structure"] = [128, 128]
    if "actorder" in name:
        weights["actorder"] = "group"
    group = {"targets": ["Linear"], "weights": weights}
    config = {"quant_method": "compressed-tensors", "format": about["format"],
              "config_groups": {"group_0": group}}  # fmt: skip
    layer, made = load_layer(tmp_path, config, tensors, tuple(wanted.shape))
    assert kind_of(layer) is kind
    assert distance(made, wanted) < (1e-6 if wanted.dtype == torch.float32 else 4e-3)


def test_fp8_of_transformers(tmp_path: Path) -> None:
    """Ragged blocks at the right and at the lower edge."""
    tensors, _ = read("hf_fp8_block128")
    wanted = tensors.pop("dequantised_f32")
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3",
              "activation_scheme": "dynamic"}  # fmt: skip
    layer, made = load_layer(tmp_path, config, tensors, tuple(wanted.shape))
    assert kind_of(layer) is nn.Linear
    assert torch.equal(made, wanted)


def test_fp8_of_comfyui(tmp_path: Path) -> None:
    tensors, _ = read("comfy_fp8_scaled")
    wanted = tensors.pop("dequantised_f32")
    _, made = load_layer(tmp_path, {"quant_method": "comfyui"}, tensors, tuple(wanted.shape))
    assert torch.equal(made, wanted)


@pytest.mark.parametrize("name", ["nf4_double_quant", "nf4_plain", "fp4_plain"])
def test_bitsandbytes(name: str, tmp_path: Path) -> None:
    """A width at which blocks begin in the middle of rows, too."""
    tensors, _ = read(f"bnb_{name}")
    wanted = tensors.pop("dequantised")
    _, made = load_layer(tmp_path, {"quant_method": "bitsandbytes"}, tensors, tuple(wanted.shape))
    assert distance(made, wanted) < 4e-3  # of bfloat16


def test_llm_int8(tmp_path: Path) -> None:
    tensors, _ = read("bnb_llm_int8")
    wanted = tensors.pop("dequantised_f32")
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    layer, made = load_layer(tmp_path, config, tensors, tuple(wanted.shape))
    assert kind_of(layer) is Int8Linear
    assert distance(made, wanted) < 1e-6


def test_torchao(tmp_path: Path) -> None:
    tensors, _ = read("torchao_int8_weight_only")
    wanted = tensors.pop("dequantised_f32")
    layer, made = load_layer(tmp_path, {"quant_method": "torchao"}, tensors, tuple(wanted.shape))
    assert kind_of(layer) is Int8Linear
    assert torch.equal(made, wanted)


def mlx_cases() -> list[str]:
    with safe_open(GOLDEN / "mlx_affine.safetensors", framework="pt") as file:
        names = {key.rpartition(".")[0] for key in file.keys()}  # noqa: SIM118
    return sorted(name for name in names if name.startswith("b"))


@pytest.mark.parametrize("name", mlx_cases())
def test_mlx(name: str, tmp_path: Path) -> None:
    """Codes of 3, 5 and 6 bits cross words."""
    stored, _ = read("mlx_affine")
    tensors = {key.removeprefix(f"{name}."): t for key, t in stored.items() if key.startswith(name)}
    wanted = tensors.pop("dequantised")
    bits, group_size = (int(part[1:]) for part in name.split("_"))
    config = {"group_size": group_size, "bits": bits, "mode": "affine"}
    _, made = load_layer(tmp_path, config, tensors, tuple(wanted.shape))
    assert distance(made, wanted) < 8e-3


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    """With what to take instead."""
    cases = [
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4-pack"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "MLX in the mode mxfp4.*affine"),
        ({"quant_method": "hqq"}, "HQQ, which is not read; take"),
        ({"quant_method": "aqlm"}, "AQLM"),
        ({"quant_method": "exl2"}, "EXL2"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo is 'NVFP4'"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"quant_method": "gptq", "bits": 3}, "bits is 3; expected 2, 4 or 8; take"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:exllama"}, "of AutoRound"),
        ({"quant_method": "tomorrow"}, "quant_method is 'tomorrow'; expected .* take a version"),
    ]
    for config, message in cases:
        with pytest.raises(CheckpointError, match=message):
            read_format(config, tmp_path)

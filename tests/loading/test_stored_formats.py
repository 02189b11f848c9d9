"""Whole small folders in the formats of other programs: logits and answers are those of the same
numbers in an ordinary folder, and what is damaged is refused."""

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from format_files import (
    Quantise,
    Weights,
    compressed,
    fp8,
    gptq,
    is_matrix,
    llm_int8,
    mlx,
    mlx_name,
    nf4,
    torchao,
    write_quantised,
)
from safetensors.torch import load_file, save_file

from qwen25vl.cli import main
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.errors import CheckpointError, HubError, TensorError
from qwen25vl.hub import resolve_folder
from qwen25vl.loading.checkpoint import model_name
from qwen25vl.model.packed_linear import Int4Linear, Int8Linear, PackedLinear

IDS = torch.arange(1, 40)[None]
LAYER = "model.layers.1.mlp.down_proj"


def described(weights: dict[str, Any], form: str) -> dict[str, Any]:
    """A configuration of compressed-tensors with one group."""
    activations = {"num_bits": 8, "type": weights["type"], "dynamic": True, "strategy": "token",
                   "symmetric": True, "observer": None}  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations,
             "output_activations": None}  # fmt: skip
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["re:.*lm_head"],
            "config_groups": {"group_0": group}, "kv_cache_scheme": None, "sparsity_config": {},
            "transform_config": {}, "global_compression_ratio": None}  # fmt: skip


def ints(bits: int, strategy: str, group_size: int | None = None, **more: Any) -> dict[str, Any]:
    return described(
        {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy,
         "group_size": group_size, "block_structure": None, "dynamic": False, "actorder": None,
         "observer": "minmax", "observer_kwargs": {}, **more},
        "pack-quantized",
    )  # fmt: skip


def floats(strategy: str, **more: Any) -> dict[str, Any]:
    return described(
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy,
         "group_size": None, "dynamic": False, "observer": "minmax", **more},
        "float-quantized",
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """kinds: the types of the language model's layers."""

    config: dict[str, Any] | None
    quantise: Quantise
    kinds: tuple[type, ...] = (torch.nn.Linear,)
    options: dict[str, Any] = field(default_factory=dict)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
        "checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32",
        "meta": {"quantizer": ["gptqmodel:4.0"]}, "dynamic": {"-:.*visual.*": {}}}  # fmt: skip
BLOCK_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
             "weight_block_size": [128, 128], "modules_to_not_convert": ["visual"]}  # fmt: skip
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
       "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
       "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": ["lm_head"]}  # fmt: skip
ONE = torch.tensor(0.5)
INT4, INT8 = (Int4Linear,), (Int8Linear,)
ALL = {"covers": is_matrix}
CASES = {
    "gptq": Case(GPTQ, gptq(4, 32), INT4),
    "gptq v2 with zeros": Case(
        GPTQ | {"checkpoint_format": "gptq_v2", "sym": False},
        gptq(4, 64, version=2, symmetric=False),
        INT4,
    ),
    "gptq v1 with zeros": Case(GPTQ | {"sym": False}, gptq(4, 32, symmetric=False), INT4),
    "gptq, one group": Case(GPTQ | {"group_size": -1}, gptq(4, -1), INT4),
    "gptq sorted": Case(GPTQ | {"desc_act": True}, gptq(4, 32, sort=True)),
    "gptq of 8 bits": Case(GPTQ | {"bits": 8}, gptq(8, 32)),
    "gptq of 8 bits, one group": Case(GPTQ | {"bits": 8}, gptq(8, -1), INT8),
    "gptq of 8 bits with zeros": Case(GPTQ | {"bits": 8}, gptq(8, -1, symmetric=False)),
    "gptq of 2 bits": Case(GPTQ | {"bits": 2}, gptq(2, 32)),
    "auto-round": Case(
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4,
         "group_size": 32, "sym": True, "iters": 200},
        gptq(4, 32),
        INT4,
    ),
    "W4A16 by output": Case(ints(4, "channel"), compressed(4, -1), INT4),
    "W4A16 by output with zeros": Case(
        ints(4, "channel", symmetric=False), compressed(4, -1, symmetric=False), INT4
    ),
    "W4A16 sorted": Case(
        ints(4, "group", 32, actorder="group"), compressed(4, 32, sort=True)
    ),
    "W8A16 in groups": Case(ints(8, "group", 32), compressed(8, 32)),
    "W8A16 with zeros": Case(
        ints(8, "group", 64, symmetric=False), compressed(8, 64, symmetric=False)
    ),
    "W8A16 by output with zeros": Case(
        ints(8, "channel", symmetric=False), compressed(8, -1, symmetric=False)
    ),
    "FP8 dynamic": Case(floats("channel"), fp8("weight_scale", "channel")),
    "FP8 static": Case(floats("tensor"), fp8("weight_scale", "tensor", {".input_scale": ONE})),
    "FP8 in blocks": Case(
        floats("block", block_structure=[128, 128]), fp8("weight_scale", "block")
    ),
    "FP8 of transformers": Case(BLOCK_FP8, fp8("weight_scale_inv", "block")),
    "FP8 of ModelOpt": Case(
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        fp8("weight_scale", "tensor", {".input_scale": ONE, ".k_scale": ONE}),
    ),
    "NF4": Case(BNB, nf4(double=True), options=ALL),
    "NF4 without double quantisation": Case(BNB, nf4(double=False), options=ALL),
    "LLM.int8": Case(
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, llm_int8, INT8, options=ALL
    ),
    "torchao": Case(
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        torchao,
        INT8,
    ),
    "MLX": Case({"group_size": 64, "bits": 4, "mode": "affine"}, mlx(4, 64)),
    "MLX of 8 bits": Case({"group_size": 32, "bits": 8}, mlx(8, 32)),
    "MLX of 6 bits": Case({"group_size": 32, "bits": 6, "mode": "affine"}, mlx(6, 32)),
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths of several groups and blocks; a vision encoder whose rows end inside of blocks."""
    text = {
        "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192,
        "rope_scaling": {"mrope_section": [4, 6, 6]},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("formats") / "source"
    vision = {"out_hidden_size": 128, "intermediate_size": 61}
    return write_checkpoint(folder, {"added_tokens": []}, text=text, vision=vision)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "quantised layers are slow|.*are worked out to")
        yield


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()  # type: ignore[no-any-return]


def answer_of(model: Any) -> list[int]:
    return model.generate(IDS[:, :8], max_new_tokens=8, do_sample=False)[0].tolist()  # type: ignore[no-any-return]


def write_plain(source: Path, target: Path, meant: Weights) -> Path:
    shutil.copytree(source, target)
    save_file({name: t.contiguous() for name, t in meant.items()}, target / "model.safetensors")
    return target


def write_case(name: str, source: Path, target: Path) -> Weights:
    case = CASES[name]
    options = dict(case.options)
    if name.startswith("MLX"):
        options |= {"rename": mlx_name, "covers": is_mlx_matrix}
    meant = write_quantised(source, target, case.config, case.quantise, **options)
    if name.startswith("MLX"):
        tensors = load_file(target / "model.safetensors")
        key = "vision_tower.patch_embed.proj.weight"
        tensors[key] = tensors[key].permute(0, 2, 3, 4, 1).contiguous()
        save_file(tensors, target / "model.safetensors", {"format": "mlx"})
    return meant


def is_mlx_matrix(name: str, tensor: torch.Tensor) -> bool:
    """MLX quantises the embeddings too."""
    return tensor.ndim == 2 and "visual" not in name


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_numbers_meant(name: str, source: Path, tmp_path: Path) -> None:
    """In float32 nothing else is rounded. Which layers keep their form is part of it: what is
    worked out takes more memory."""
    meant = write_case(name, source, tmp_path / "folder")
    model = load_model(tmp_path / "folder", dtype="float32")
    plain = load_model(write_plain(source, tmp_path / "plain", meant), dtype="float32")
    made, wanted = logits_of(model), logits_of(plain)
    assert float((made - wanted).norm() / wanted.norm()) < 1e-5
    assert answer_of(model) == answer_of(plain)
    layers = {path: m for path, m in model.named_modules() if "layers." in path}
    linears = [m for m in layers.values() if isinstance(m, torch.nn.Linear | PackedLinear)]
    assert len(linears) == 21
    assert all(isinstance(layer, CASES[name].kinds) for layer in linears)
    for path, tensor in plain.model.visual.state_dict().items():
        layer = path.removesuffix(".weight")
        if path in dict(model.model.visual.named_parameters()):
            stored = model.model.visual.get_parameter(path)
        else:
            stored = model.model.visual.get_submodule(layer).dequantise(torch.float32)
        assert torch.allclose(stored, tensor, rtol=1e-6, atol=0), path


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_threads_change_nothing(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are worked out a few at a time: a block may begin inside of a byte, of a block of
    scales, or of a word with the zeros of several outputs."""
    write_case(name, source, tmp_path / "folder")
    wanted = load_model(tmp_path / "folder", dtype="float32").state_dict()
    monkeypatch.setattr("qwen25vl.loading.dequantised.NUMBERS_AT_A_TIME", 3 * 61)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        state = load_model(tmp_path / "folder", dtype="float32").state_dict()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", ["NF4", "FP8 dynamic", "gptq sorted", "MLX"])
def test_quantised_again_while_loading(name: str, source: Path, tmp_path: Path) -> None:
    """What no kernel reads as it is can be made small again, and the error is stated."""
    write_case(name, source, tmp_path / "folder")
    for bits, kind in ((8, Int8Linear), (4, Int4Linear)):
        with pytest.warns(UserWarning, match=f"quantised again, to {bits} bits; the weights diff"):
            model = load_model(tmp_path / "folder", quantization_config=f"int{bits}")
        assert isinstance(model.get_submodule(model_name(LAYER)), kind)
        assert logits_of(model).isfinite().all()


@pytest.mark.parametrize("marker", ["old", "new", "none"])
def test_a_single_file_of_comfyui(marker: str, source: Path, tmp_path: Path) -> None:
    """Sizes are read off the shapes; the tokenizer comes from beside it. Old files have a scale
    under another name than new ones, and a plain cast has none."""
    text = {
        "vocab_size": 1056, "hidden_size": 256, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {"out_hidden_size": 256, "hidden_size": 160, "num_heads": 2, "depth": 9,
              "intermediate_size": 64, "fullatt_block_indexes": [7]}  # fmt: skip
    base = write_checkpoint(
        tmp_path / "base", {"added_tokens": []}, text=text, vision=vision, tied=False
    )
    quantise = fp8("scale_weight", "tensor", {".scale_input": ONE})
    others = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    if marker == "new":
        note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        quantise, others = fp8("weight_scale", "tensor", {".comfy_quant": note}), {}
    if marker == "none":

        def quantise(weight: torch.Tensor) -> tuple[Weights, torch.Tensor]:
            rows = weight.to(torch.float8_e4m3fn)
            return {".weight": rows}, rows.float()

        others = {}
    meant = write_quantised(
        base, tmp_path / "made", None, quantise, covers=is_matrix, others=others
    )
    shutil.copyfile(base / "tokenizer.json", tmp_path / "made" / "tokenizer.json")
    (tmp_path / "made" / "config.json").unlink()
    (tmp_path / "made" / "model.safetensors").rename(
        tmp_path / "made" / "qwen_2.5_vl_7b.safetensors"
    )
    model = load_model(tmp_path / "made" / "qwen_2.5_vl_7b.safetensors", dtype="float32")
    plain = load_model(write_plain(base, tmp_path / "plain", meant), dtype="float32")
    made, wanted = logits_of(model), logits_of(plain)
    assert float((made - wanted).norm() / wanted.norm()) < 1e-5
    patches = torch.randn(16, 1176, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        seen, other = (m.model.visual(patches, [(1, 4, 4)]) for m in (model, plain))
    assert torch.allclose(seen, other, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_from_the_hub(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with nothing beside it takes the released model's tokenizer; without a connection the
    error names what to download."""
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "qwen.safetensors"
    shutil.copyfile(source / "model.safetensors", file)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(HubError, match=r"hf download Qwen/Qwen2\.5-VL-7B-Instruct"):
        resolve_folder(file, cache_dir=tmp_path / "hub")
    snapshot = tmp_path / "hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        shutil.copyfile(source / name, snapshot / name)
    folder = resolve_folder(file, cache_dir=tmp_path / "hub")
    assert (folder / "tokenizer.json").resolve() == (snapshot / "tokenizer.json").resolve()
    assert (folder / "model.safetensors").resolve() == file.resolve()


def test_mlx_without_quantisation(source: Path, tmp_path: Path) -> None:
    """Names and the order of the patch embedding are MLX's all the same; and a configuration that
    has its settings under MLX's name alone."""
    tensors = load_file(source / "model.safetensors")
    patch = "visual.patch_embed.proj.weight"
    tensors[patch] = tensors[patch].permute(0, 2, 3, 4, 1).contiguous()
    shutil.copytree(source, tmp_path / "plain")
    save_file(
        {mlx_name(name): tensor for name, tensor in tensors.items()},
        tmp_path / "plain" / "model.safetensors",
    )
    wanted = load_model(source).state_dict()
    state = load_model(tmp_path / "plain").state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    write_case("MLX", source, tmp_path / "both")
    config = json.loads((tmp_path / "both/config.json").read_text())
    config["quantization"] = config.pop("quantization_config")
    made = logits_of(load_model(tmp_path / "both"))
    (tmp_path / "both/config.json").write_text(json.dumps(config))
    assert torch.equal(logits_of(load_model(tmp_path / "both")), made)


def test_a_single_file_in_another_form(source: Path, tmp_path: Path) -> None:
    """By name; and a file that holds another model."""
    note = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    config = {"quant_method": "comfyui"}
    write_quantised(
        source, tmp_path / "a", config, fp8("weight_scale", "tensor", {".comfy_quant": note})
    )
    with pytest.raises(
        CheckpointError, match=r"stored as 'nvfp4'; only .* are read; take the fp8_sc"
    ):
        load_model(tmp_path / "a")
    save_file({"model.weight": torch.zeros(2)}, tmp_path / "flux.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is no Qwen2.5-VL: 0 of its tensors are called embed"
    ):
        resolve_folder(tmp_path / "flux.safetensors")


def test_a_pipeline_of_diffusers(source: Path, tmp_path: Path) -> None:
    """The text encoder and its tokenizer lie in two folders; either name leads to both."""
    encoder, tokenizer = tmp_path / "text_encoder", tmp_path / "tokenizer"
    shutil.copytree(source, encoder)
    tokenizer.mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        (encoder / name).rename(tokenizer / name)
    for name in (tmp_path, encoder):
        folder = resolve_folder(name)
        assert {path.name for path in folder.iterdir()} >= {
            "config.json", "model.safetensors", "tokenizer.json", "chat_template.json"
        }  # fmt: skip
        assert torch.equal(logits_of(load_model(name)), logits_of(load_model(source)))


def test_old_names_of_gptq(source: Path, tmp_path: Path) -> None:
    """AutoGPTQ's file names, and its configuration in a file of its own."""
    write_case("gptq", source, tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    quantised = config.pop("quantization_config")
    del quantised["quant_method"]
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    (tmp_path / "old/quantize_config.json").write_text(json.dumps(quantised))
    file = tmp_path / "old" / "gptq_model-4bit-32g.safetensors"
    (tmp_path / "old" / "model.safetensors").rename(file)
    wanted = logits_of(load_model(tmp_path / "new"))
    for name in (tmp_path / "old", file):
        assert torch.equal(logits_of(load_model(name)), wanted)


def test_info(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How a folder is quantised, without reading its weights."""
    write_case("NF4", source, tmp_path / "folder")
    assert main(["info", str(tmp_path / "folder")]) == 0
    assert "quantised    bitsandbytes" in capsys.readouterr().out


DAMAGES: dict[str, list[tuple[str, str, Any]]] = {
    # what is changed, how, and the error
    "gptq sorted": [
        ("g_idx", "g_idx names groups from", lambda t: t.fill_(99)),
        ("g_idx", "g_idx names groups from", lambda t: t.fill_(-1)),
        ("g_idx", "is no matrix of", lambda t: t[1:].clone()),
        ("scales", "finite", lambda t: t.fill_(float("nan"))),
        ("scales", "is no matrix of", lambda t: t[:, 1:].clone()),
        ("qzeros", "is no matrix of", lambda t: t[:, 1:].clone()),
        ("qweight", "is no matrix of", lambda t: t[1:].clone()),
    ],
    "gptq": [("scales", "finite", lambda t: t.fill_(float("inf")))],
    "NF4": [
        ("weight.absmax", "does not fit the tensors beside it", lambda t: t[1:].clone()),
        ("weight.nested_absmax", "not finite", lambda t: t.fill_(float("nan"))),
        ("weight.quant_map", "not finite", lambda t: t.fill_(float("inf"))),
        ("weight.quant_map", "does not fit", lambda t: t[1:].clone()),
        ("weight.quant_state.bitsandbytes__nf4", "does not fit", lambda t: t.fill_(123)),
        ("weight", "does not fit", lambda t: t[1:].clone()),
    ],
    "LLM.int8": [
        ("SCB", "is no scale of int8 rows", lambda t: t[1:].clone()),
        ("SCB", "finite", lambda t: t.fill_(float("nan"))),
    ],
    "FP8 dynamic": [
        ("weight", "not finite", lambda t: t.view(torch.uint8).fill_(0x7F).view(t.dtype)),
        ("weight_scale", "finite", lambda t: t.fill_(float("nan"))),
        ("weight_scale", "scales neither all of", lambda t: t[1:].clone()),
    ],
    "FP8 of transformers": [
        ("weight_scale_inv", "scales neither all of", lambda t: t[:, :-1].clone()),
    ],
    "MLX": [
        ("scales", "not finite", lambda t: t.fill_(float("nan"))),
        ("biases", "is no matrix of", lambda t: t[:, 1:].clone()),
        ("weight", "is no matrix of", lambda t: t[:, 1:].clone()),
    ],
    "torchao": [
        ("_weight_scale", "expected .* with one scale", lambda t: t[1:].clone()),
        ("_weight_zero_point", "and zero points", lambda t: t.fill_(1)),
        ("_weight_scale", "finite", lambda t: t.fill_(float("nan"))),
    ],
    "W8A16 with zeros": [
        ("weight_zero_point", "is no matrix of", lambda t: t[1:].clone()),
        ("weight_scale", "finite", lambda t: t.fill_(float("inf"))),
    ],
    "W4A16 sorted": [("weight_g_idx", "names groups from", lambda t: t.fill_(77))],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tensors_are_named(name: str, source: Path, tmp_path: Path) -> None:
    """A shape that does not fit, an index beyond the table, a number that is none: an error with
    the tensor's name, not a model that writes nonsense."""
    write_case(name, source, tmp_path / "folder")
    file = tmp_path / "folder" / "model.safetensors"
    rename = mlx_name if name.startswith("MLX") else str
    for part, message, damage in DAMAGES[name]:
        tensors = load_file(file)
        key = f"{rename(LAYER)}.{part}"
        changed = tensors | {key: damage(tensors[key].clone())}
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(tmp_path / "folder", tmp_path / "damaged")
        save_file(changed, tmp_path / "damaged" / "model.safetensors")
        with pytest.raises(TensorError, match=message):
            load_model(tmp_path / "damaged")
        lacking = {other: tensor for other, tensor in tensors.items() if other != key}
        save_file(lacking, tmp_path / "damaged" / "model.safetensors")
        if part not in ("g_idx", "_weight_zero_point", "weight.nested_quant_map"):
            with pytest.raises(CheckpointError):
                load_model(tmp_path / "damaged")

"""Quantised folders in the compressed-tensors format:
written, mapped, foreign ones, and what is refused."""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.ecosystem.torchao_config import QUANTISATIONS, TorchAoConfig
from qwen25vl.errors import CheckpointError, TensorError, UsageError
from qwen25vl.loading import folder as conversion
from qwen25vl.loading.checkpoint import model_name
from qwen25vl.loading.folder import quantize_folder
from qwen25vl.loading.quantization import (
    MANY_SCALES,
    covered_linears,
    quantise,
)
from qwen25vl.loading.saving import save_model
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import PackedLinear

INT8, INT4 = Scheme(8), Scheme(4, group_size=32)
WITH_VISION = [replace(scheme, vision=True) for scheme in (INT8, INT4)]
MERGER = [f"re:.*visual\\.merger\\.mlp\\.{number}$" for number in (0, 2)]
LAYER, HUB_LAYER = "model.language_model.layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16; widths of 64 and 96, of which groups of 64 leave a rest."""
    return write_checkpoint(
        tmp_path_factory.mktemp("c") / "source",
        {"added_tokens": []},
        dtype=torch.bfloat16,
        text={"vocab_size": 96},
    )


@pytest.fixture(scope="module", params=[INT8, INT4, *WITH_VISION], ids=QUANTISATIONS)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def quantised(source: Path, scheme: Scheme, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_folder(source, tmp_path_factory.mktemp("c") / "quantised", scheme)


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a folder with changes in its quantization_config;
    keys with dots lead into the one group."""
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    for key, value in changes.items():
        place = values["quantization_config"]
        *path, last = key.split("__")
        for name in path:
            place = place["config_groups"]["group_0"] if name == "group" else place[name]
        place[last] = value
    (target / "config.json").write_text(json.dumps(values))
    return target


def kind_of(layer: torch.nn.Module) -> tuple[int, int]:
    """Bits, and inputs that share a scale."""
    assert isinstance(layer, PackedLinear)
    return layer.bits, layer.group_size


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    state, other_state = one.state_dict(), other.state_dict()
    return state.keys() == other_state.keys() and all(
        torch.equal(state[key], other_state[key]) for key in state
    )


def test_folder_holds_what_quantising_gives(source: Path, quantised: Path, scheme: Scheme) -> None:
    """The same bits as in memory; all else is the source's, byte for byte."""
    plain, model = load_model(source), load_model(quantised)
    for path, linear in covered_linears(plain, scheme).items():
        assert same_state(
            model.get_submodule(path), quantise(linear, scheme.for_layer(path), MANY_SCALES)
        ), path
    assert (
        isinstance(model.get_submodule("model.visual.blocks.0.attn.qkv"), PackedLinear)
        == scheme.vision
    )
    state = plain.state_dict()
    assert all(
        torch.equal(value, state[key]) for key, value in model.state_dict().items() if key in state
    )
    assert {path.name for path in source.iterdir()} == {path.name for path in quantised.iterdir()}
    kept = json.loads((quantised / "config.json").read_text())
    ignored = kept.pop("quantization_config")["ignore"]
    assert ignored == ["lm_head", *MERGER] if scheme.vision else ["lm_head", "re:.*visual[.].*"]
    assert kept == json.loads((source / "config.json").read_text())
    assert model(torch.arange(1, 9)[None]).logits.isfinite().all()


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_saved_and_loaded_bits_are_equal(
    quantised: Path, tmp_path: Path, max_shard_bytes: int
) -> None:
    """save_pretrained of a quantised model, in one file and in several."""
    model = load_model(quantised)
    save_model(model, tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    again = load_model(tmp_path / "saved")
    assert same_state(again, model)
    assert again.config.quantization_config == model.config.quantization_config


def test_quantised_while_loading_can_be_saved(source: Path, tmp_path: Path) -> None:
    """Widths that the group does not divide are padded, on the disk too."""
    model = load_model(source, quantization_config=TorchAoConfig("int4_weight_only", 64))
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.weight_shape"].tolist() == [64, 96]
    assert stored["model.layers.0.mlp.down_proj.weight_packed"].shape == (64, 128 // 8)
    assert same_state(load_model(tmp_path / "saved"), model)


def test_words_of_the_format(quantised: Path, scheme: Scheme) -> None:
    """Codes level + 2**(bits − 1), the lowest column in the lowest bits:
    read here as the format is described."""
    stored = load_file(quantised / "model.safetensors")
    packed, scale, shape = (
        stored[f"{HUB_LAYER}.weight_{name}"] for name in ("packed", "scale", "shape")
    )
    shifts = torch.arange(0, 32, scheme.bits)
    codes = (packed.long()[..., None] >> shifts & (2**scheme.bits - 1)).flatten(1)
    levels = codes[:, : shape[1]] - 2 ** (scheme.bits - 1)
    scale = scale.float().repeat_interleave(levels.shape[1] // scale.shape[1], dim=1)
    layer = load_model(quantised).get_submodule(LAYER)
    assert isinstance(layer, PackedLinear)
    assert torch.equal(levels * scale, layer.dequantise(torch.float32))


def mappings() -> Iterator[tuple[range, str]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        yield range(start, end), line


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped where")
def test_weights_stay_in_the_file(quantised: Path) -> None:
    """Packed weights are read where they lie, and begin at multiples of 64 bytes."""
    model = load_model(quantised)
    files = [
        place for place, line in mappings() if line.endswith(str(quantised / "model.safetensors"))
    ]
    for module in model.modules():
        if isinstance(module, PackedLinear):
            assert any(module.weight_packed.data_ptr() in place for place in files)
            assert module.codes.data_ptr() == module.weight_packed.data_ptr()
            assert module.weight_packed.data_ptr() % 64 == 0


def test_the_format_s_own_reader(source: Path, quantised: Path) -> None:
    """transformers decompresses our folder through compressed-tensors to the weights we use."""
    pytest.importorskip("compressed_tensors")
    from transformers import CompressedTensorsConfig, Qwen2_5_VLForConditionalGeneration

    reference, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        quantised,
        dtype=torch.bfloat16,
        quantization_config=CompressedTensorsConfig(dequantize=True),
        output_loading_info=True,
    )
    assert not any(report.values())
    for path, module in load_model(quantised).named_modules():
        if isinstance(module, PackedLinear):
            weight, ours = (
                reference.get_submodule(path).weight.float(),
                module.dequantise(torch.float32),
            )
            # of the scale's and the product's rounding
            torch.testing.assert_close(weight, ours, rtol=2**-7, atol=0)


def foreign(quantised: Path, target: Path, kind: str) -> Path:
    """What other programs write: scales in bfloat16, more keys in config.json,
    int8 rows for W8A8."""
    args = {"observer": "mse", "observer_kwargs": {}, "block_structure": None, "actorder": "weight"}
    changes = {f"group__weights__{key}": value for key, value in args.items()}
    empty: dict[str, Any] = {"kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {}}
    changes |= {
        "version": "0.9.4",
        "global_compression_ratio": 1.5,
        "quantization_status": "frozen",
        **empty,
    }
    if kind == "w8a8":
        inputs = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
        changes |= {
            "format": "int-quantized",
            "group__input_activations": inputs | args | {"actorder": None},
        }
    edited(quantised, target, **changes)
    tensors = load_file(target / "model.safetensors")
    for name, tensor in [*tensors.items()]:
        if name.endswith("weight_scale"):
            tensors[name] = tensor.bfloat16()
        elif kind == "w8a8" and name.endswith("weight_packed"):
            del tensors[name]
            num_inputs = tensors.pop(name.replace("packed", "shape"))[1]
            codes = tensor.view(torch.uint8)[:, :num_inputs]
            tensors[name.removesuffix("_packed")] = (codes.short() - 128).to(torch.int8)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_folders_of_other_programs(quantised: Path, scheme: Scheme, tmp_path: Path) -> None:
    """W4A16, W8A16 and W8A8 as llm-compressor writes them; what is not packed stays as it is."""
    model = load_model(quantised)
    for kind in ("weights only", *(["w8a8"] if scheme.bits == 8 else [])):
        other = load_model(foreign(quantised, tmp_path / kind, kind))
        assert torch.equal(
            other.get_submodule(LAYER).weight_packed, model.get_submodule(LAYER).weight_packed
        )
        ours, theirs = (m.get_submodule(LAYER).dequantise(torch.float32) for m in (model, other))  # type: ignore[operator]
        torch.testing.assert_close(theirs, ours, rtol=2**-8, atol=0)
        assert (
            other.get_submodule(LAYER).weight_scale.dtype
            == model.get_submodule(LAYER).weight_scale.dtype
        )
        save_model(other, tmp_path / kind / "again")
        assert same_state(load_model(tmp_path / kind / "again"), other)


def test_layers_that_another_program_left_alone(
    quantised: Path, source: Path, tmp_path: Path
) -> None:
    """What `ignore` names has its plain weight; saved again, it is named."""
    target = edited(quantised, tmp_path / "part", ignore=["lm_head", "re:visual.*", HUB_LAYER])
    tensors, name = load_file(target / "model.safetensors"), HUB_LAYER
    tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{name}.weight")}
    tensors[f"{name}.weight"] = load_file(source / "model.safetensors")[f"{name}.weight"]
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    model = load_model(target)
    assert isinstance(model.get_submodule(LAYER), torch.nn.Linear)
    model.save_pretrained(tmp_path / "again")
    patterns = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"][
        "ignore"
    ]
    assert re.match(patterns[-1].removeprefix("re:"), name)
    assert same_state(load_model(tmp_path / "again"), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "tomorrow"}, "quant_method is 'tomorrow'; expected 'compressed-tensors'"),
        (
            {"format": "marlin-24"},
            "format is 'marlin-24'; expected 'pack-quantized' or 'int-quantized'",
        ),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is .*the key is unknown"),
        ({"sparsity_config": {"format": "2:4"}}, "sparsity_config.format is '2:4'"),
        ({"tomorrow": 1}, "quantization_config.tomorrow is 1; the key is unknown"),
        ({"config_groups": {}}, "holds 0 groups"),
        (
            {"config_groups": {"W4A16": ["Linear"]}},
            r"config_groups.W4A16 is \['Linear'\]; it must be a JSON object",
        ),
        ({"config_groups": 4}, "config_groups is 4"),
        ({"group__weights__num_bits": 3}, "group_0.weights.num_bits is 3; expected 4 or 8"),
        ({"group__weights__symmetric": 0}, "weights.symmetric is 0; expected True"),
        ({"group__weights__actorder": "group"}, "weight_g_idx is missing"),
        ({"group__weights__actorder": "column"}, "weights.actorder is 'column'"),
        ({"group__weights__strategy": "block"}, "weights.strategy is 'block'"),
        ({"group__weights__group_size": 16}, "weights.group_size is 16"),
        (
            {"group__weights__type": "float"},
            "weights.type is 'float'; of 4 bits expected 'int'|which is no matrix",
        ),
        ({"group__weights__dynamic": True}, "weights.dynamic is True"),
        ({"group__weights": None}, "weights.strategy is None"),
        (
            {"group__input_activations": {"num_bits": 8, "dynamic": "local"}},
            "input_activations.dynamic is 'local'",
        ),
        ({"group__output_activations": {"num_bits": 8}}, "output_activations is"),
    ],
)
def test_what_is_not_known_is_refused(
    quantised: Path, tmp_path: Path, changes: Any, message: str
) -> None:
    """By key, value and what is supported: numbers read in another sense would answer nonsense."""
    with pytest.raises(CheckpointError, match=message):
        load_model(edited(quantised, tmp_path / "edited", **changes))


def test_zero_points_that_are_promised(quantised: Path, scheme: Scheme, tmp_path: Path) -> None:
    """They must be there: without them every weight would be off by some levels."""
    folder = edited(quantised, tmp_path / "edited", group__weights__symmetric=False)
    with pytest.raises(TensorError, match=r"proj.weight_zero_point is missing|qkv.weight_zero_p"):
        load_model(folder)


@pytest.mark.parametrize("group_size", [32, 64])
def test_folders_with_zero_points(source: Path, tmp_path: Path, group_size: int) -> None:
    """W4A16 whose zeros are not the middle, packed down the outputs: a kernel that passes over them
    gives other weights. Widths leave a rest in the last group. They stay in the file."""
    quantize_folder(source, tmp_path / "plain", Scheme(4, group_size))
    folder = edited(tmp_path / "plain", tmp_path / "zeros", group__weights__symmetric=False)
    tensors = load_file(folder / "model.safetensors")
    generator, meant = torch.Generator().manual_seed(0), {}
    for name in [name for name in tensors if name.endswith("weight_packed")]:
        path = name.removesuffix(".weight_packed")
        scale, (num_outputs, num_inputs) = (
            tensors[f"{path}.weight_scale"],
            tensors[f"{path}.weight_shape"].tolist(),
        )
        zeros = torch.randint(-8, 8, scale.shape, generator=generator)
        words = sum((zeros[n::8] + 8) << 4 * n for n in range(8))
        tensors[f"{path}.weight_zero_point"] = torch.as_tensor(words).to(torch.int32)
        codes = (tensors[name].long()[..., None] >> torch.arange(0, 32, 4) & 15).flatten(1) - 8
        levels = codes.unflatten(1, (-1, group_size)) - zeros[..., None]
        weight = levels * scale.float()[..., None]
        meant[path] = weight.flatten(1)[:num_outputs, :num_inputs]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = load_model(folder)
    for path, weight in meant.items():
        layer = model.get_submodule(model_name(path))
        assert torch.equal(layer.dequantise(torch.float32), weight)  # type: ignore[operator]
        if Path("/proc/self/maps").exists():
            zero_point = layer.weight_zero_point.data_ptr()  # type: ignore[union-attr,operator]
            assert any(zero_point in place and str(folder) in line for place, line in mappings())
    save_model(model, tmp_path / "again")
    assert same_state(load_model(tmp_path / "again"), model)
    assert (
        load_model(tmp_path / "again").config.quantization_config
        == model.config.quantization_config
    )


def test_tensors_must_fit(quantised: Path, tmp_path: Path) -> None:
    """Another group size, zero points and a shape of another layer."""
    target = edited(quantised, tmp_path / "edited")
    tensors, name = load_file(target / "model.safetensors"), HUB_LAYER
    for changed, message in (
        (
            {f"{name}.weight_scale": torch.ones(64, 2, dtype=torch.float16)},
            r"weight_scale is \[64, 2\]",
        ),
        ({f"{name}.weight_zero_point": torch.ones(64, 3)}, "weight_zero_point is unexpected"),
        (
            {f"{name}.weight_packed": torch.ones(tensors[f"{name}.weight_packed"].shape)},
            "of type F32, not of I32",
        ),
        ({f"{name}.weight_shape": torch.tensor([64, 95])}, r"weight_shape is \[64, 95\]"),
    ):
        save_file({**tensors, **changed}, target / "model.safetensors", {"format": "pt"})
        with pytest.raises(TensorError, match=message):
            load_model(target)


def test_a_quantised_folder_is_not_quantised_again(quantised: Path, tmp_path: Path) -> None:
    """Rounding twice is worse than either."""
    with pytest.raises(UsageError, match="already quantised"):
        load_model(quantised, quantization_config="int8")
    with pytest.raises(UsageError, match="already quantised"):
        quantize_folder(quantised, tmp_path / "again", INT8)
    assert [*tmp_path.iterdir()] == []


def test_targets(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of anybody's is written over, but by --force and only another checkpoint."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(source.iterdir())
    for force in (False, True):
        with pytest.raises(UsageError, match="holds no checkpoint"):
            quantize_folder(source, tmp_path / "full", INT8, force=force)
        with pytest.raises(UsageError, match="checkpoint itself"):
            quantize_folder(source, source, INT8, force=force)
    quantize_folder(source, tmp_path / "empty", INT8)
    with pytest.raises(UsageError, match="--force"):
        quantize_folder(source, tmp_path / "empty", INT4)
    quantize_folder(source, tmp_path / "empty", INT4, force=True)
    assert kind_of(load_model(tmp_path / "empty").get_submodule(LAYER)) == (4, 32)
    assert sorted(source.iterdir()) == before
    usage = copy.copy(shutil.disk_usage(tmp_path))._replace(free=1000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs 0\.\d GB, its disk has 0\.0 GB free"):
        quantize_folder(source, tmp_path / "other", INT8)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        quantize_folder(source, tmp_path / "file" / "new", INT8)


def test_the_built_in_model_in_fewer_bits(scheme: Scheme, tmp_path: Path) -> None:
    """Its answer about the example stays;
    `train_demo.evaluate --model FOLDER` asks about held-out scenes."""
    vlm = qwen25vl.load(quantize_folder(DEMO_FOLDER, tmp_path / "demo", scheme))
    assert isinstance(vlm.model.get_submodule(LAYER), PackedLinear)
    scene = str(Path(__file__).parents[2] / "examples" / "scene.png")
    things = "A small carrot at the top right, a large dog on the left and a small purple star"
    assert vlm.ask("Describe the picture.", images=[scene]).text == f"{things} at the bottom right."


def test_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything about it goes to standard error; a wrong call is one line and exit code 2."""
    target = tmp_path / "new"
    assert main(["quantize", str(source), str(target), "--bits", "4", "--group-size", "32"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{target} is ready" in err
    assert kind_of(load_model(target).get_submodule(LAYER)) == (4, 32)
    for arguments, message in (
        ([str(source), str(target), "--bits", "8"], "--force"),
        ([str(target), str(tmp_path / "b"), "--bits", "8"], "already quantised"),
        (
            [str(source), str(tmp_path / "b"), "--bits", "4", "--group-size", "48"],
            "groups of 32, 64, 128",
        ),
        (
            [str(source), str(tmp_path / "b"), "--bits", "8", "--group-size", "32"],
            "group_size is for int4",
        ),
        ([str(source), str(tmp_path / "b"), "--bits", "4"], "larger than the 64 inputs"),
        ([str(source), "", "--bits", "4"], "empty name"),
        ([str(source), str(tmp_path / "b")], "--bits"),
    ):
        assert main(["quantize", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
    assert not (tmp_path / "b").exists()

"""`qwen25vl convert`: the folder that is written loads to the same numbers as the original."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from format_files import gptq, nf4, write_quantised
from gguf_models import write_model
from safetensors.torch import load_file
from test_stored_formats import BNB, CASES, GPTQ, write_case

from qwen25vl import load
from qwen25vl.cli import main
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.errors import UsageError
from qwen25vl.loading.folder import convert_folder, quantize_folder
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import Int4Linear, Int8Linear, PackedLinear

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {
        "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192,
        "rope_scaling": {"mrope_section": [4, 6, 6]},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("convert") / "source"
    return write_checkpoint(
        folder, {"added_tokens": []}, text=text, vision={"out_hidden_size": 128}
    )


def same_numbers(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("name", ["gptq v2 with zeros", "NF4", "MLX", "FP8 in blocks", "LLM.int8"])
def test_folder_of_another_format(name: str, source: Path, tmp_path: Path) -> None:
    """Kept layers keep their codes; the rest has the bits that loading would give it. Nothing of
    the old format is left in config.json, or the new folder would be read as the old one."""
    write_case(name, source, tmp_path / "old")
    made = convert_folder(tmp_path / "old", tmp_path / "new")
    assert same_numbers(load_model(made), load_model(tmp_path / "old", dtype="bfloat16"))
    config = json.loads((made / "config.json").read_text())
    packed = CASES[name].kinds != (torch.nn.Linear,)
    assert ("quantization_config" in config) == packed
    if packed:
        assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["torch_dtype"] == "bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(made)


@pytest.mark.parametrize("kinds", [("Q4_0", "Q6_K"), ("Q4_K", "Q8_0")])
def test_gguf(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """A folder that stands alone: its tokenizer, template and settings come from the file."""
    path, _ = write_model(tmp_path / "old", kinds)
    made = convert_folder(path, tmp_path / "new")
    assert not any(file.is_symlink() for file in made.iterdir())
    assert same_numbers(load_model(made), load_model(path))
    path.unlink()
    assert load(made).ask("What?", max_new_tokens=2).usage.completion_tokens > 0


@pytest.mark.parametrize("name", ["gptq v2 with zeros", "LLM.int8", "NF4"])
def test_to_plain_numbers(name: str, source: Path, tmp_path: Path) -> None:
    """Also what could be kept: for programs that read nothing else."""
    meant = write_case(name, source, tmp_path / "old")
    made = convert_folder(
        tmp_path / "old", tmp_path / "new", dtype=torch.float32, keep_packed=False
    )
    stored = load_file(made / "model.safetensors")
    assert stored.keys() == meant.keys()
    assert all(torch.allclose(stored[key], meant[key], rtol=1e-6, atol=0) for key in meant)


def test_what_cannot_be_kept_is_quantised(tmp_path: Path) -> None:
    """Q4_0 stays as it is, and the error of the rest is stated."""
    path, _ = write_model(tmp_path / "old", ("Q4_0", "Q4_K"))
    with pytest.warns(UserWarning, match="quantised again, to 4 bits; the weights differ from"):
        made = convert_folder(path, tmp_path / "new", scheme=Scheme(4, 64))
    model, other = load_model(made), load_model(path)
    kept = {p for p, layer in other.named_modules() if isinstance(layer, Int4Linear)}
    for layer_path, layer in model.named_modules():
        if isinstance(layer, PackedLinear):
            assert layer.group_size == (32 if layer_path in kept else 64)
        if layer_path in kept:
            assert torch.equal(layer.weight_packed, other.get_submodule(layer_path).weight_packed)
    assert len(kept) == 7


def test_quantize_takes_what_is_worked_out(source: Path, tmp_path: Path) -> None:
    """`qwen25vl quantize` too; what is packed already is refused as before."""
    write_quantised(source, tmp_path / "nf4", BNB, nf4(double=True))
    with pytest.warns(UserWarning, match="quantised again, to 8 bits"):
        made = quantize_folder(tmp_path / "nf4", tmp_path / "new", Scheme(8))
    layers = [m for m in load_model(made).modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 21
    write_quantised(source, tmp_path / "gptq", GPTQ, gptq(4, 32))
    with pytest.raises(UsageError, match="already quantised"):
        quantize_folder(tmp_path / "gptq", tmp_path / "other", Scheme(8))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, kinds, and what does not go together."""
    path, _ = write_model(tmp_path / "old", ("Q4_K",))
    argv: list[Any] = ["convert", str(path), str(tmp_path / "new")]
    assert main(argv) == 0
    assert "is ready" in capsys.readouterr().err
    assert main([*argv, "--to", "int4", "--group-size", "32"]) == 2
    assert "--force to replace" in capsys.readouterr().err
    assert main([*argv, "--to", "int4", "--group-size", "32", "--force"]) == 0
    assert "quantised again, to 4 bits" in capsys.readouterr().err
    layers = [m for m in load_model(tmp_path / "new").modules() if isinstance(m, Int4Linear)]
    assert {layer.group_size for layer in layers} == {32}
    assert main([*argv, "--to", "bfloat16", "--group-size", "32"]) == 2
    assert "--group-size belongs to --to int4" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.gguf"), str(tmp_path / "x")]) == 1
    assert main(["info", str(path)]) == 0
    assert "quantised    gguf" in capsys.readouterr().out

"""AWQ folders: the numbers that their maker meant, what becomes of them, and what is refused."""

import copy
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from awq_files import CONFIG, Weights, change, write_awq
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file

from qwen25vl.cli import main
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.errors import CheckpointError, TensorError, UsageError
from qwen25vl.loading.checkpoint import model_name
from qwen25vl.loading.folder import quantize_folder
from qwen25vl.loading.formats import awq
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import Int4Linear

IDS = torch.arange(1, 40)[None]
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths of several groups of 128 for some layers, of one for others."""
    text = {
        "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256,
        "rope_scaling": {"mrope_section": [4, 6, 6]},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("awq") / "source"
    vision = {"out_hidden_size": 128}
    return write_checkpoint(folder, {"added_tokens": []}, text=text, vision=vision)


@pytest.fixture(scope="module", params=[32, 64, 128])
def written(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Weights]:
    folder = tmp_path_factory.mktemp("awq") / "quantised"
    return folder, write_awq(source, folder, torch.bfloat16, group_size=request.param)


@pytest.fixture
def folder(written: tuple[Path, Weights]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def one_folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("awq") / "one"
    write_awq(source, folder, torch.bfloat16)
    return folder


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()  # type: ignore[no-any-return]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_weights_are_what_their_maker_meant(written: tuple[Path, Weights]) -> None:
    """Words read in another order, zeros of other outputs, an axis turned the wrong way: each gives
    a model that talks, only worse."""
    folder, meant = written
    model = load_model(folder)
    for name, weight in meant.items():
        layer = model.get_submodule(model_name(name).removesuffix(".weight"))
        assert isinstance(layer, Int4Linear)
        assert torch.equal(layer.dequantise(torch.float32), weight), name


def test_logits_are_those_of_the_weights_meant(
    written: tuple[Path, Weights], tmp_path: Path
) -> None:
    """In float32 nothing else is rounded; with the kernels only the activations are."""
    folder, meant = written
    model = load_model(folder, dtype="float32")
    values = json.loads((folder / "config.json").read_text()) | {"quantization_config": None}
    kept = {name: t for name, t in load_file(folder / "model.safetensors").items()
            if not name.endswith(("qweight", "qzeros", "scales"))}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(kept | meant, tmp_path / "model.safetensors", {"format": "pt"})
    plain = load_model(tmp_path, dtype="float32")
    wanted = logits_of(plain)
    assert distance(logits_of(model), wanted) < 1e-5
    assert distance(logits_of(load_model(folder)), wanted) < 0.1


def test_answers_have_the_same_bits_in_company(one_folder: Path) -> None:
    """The one-call decoder, prefills and batches read zero points each in its own way."""
    model = load_model(one_folder)
    rows = [torch.arange(n, n + 5 + n)[None] for n in range(1, 4)]
    alone = [model.generate(ids, max_new_tokens=6, do_sample=False)[0, -6:] for ids in rows]
    width = max(ids.shape[1] for ids in rows)
    padded = torch.cat([torch.nn.functional.pad(ids, (width - ids.shape[1], 0)) for ids in rows])
    mask = torch.cat([torch.arange(width)[None] >= width - ids.shape[1] for ids in rows]).long()
    together = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(together[:, -6:], torch.stack(alone))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_blocks_and_threads_change_nothing(
    one_folder: Path, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are turned around block by block; the last block of either side is smaller."""
    wanted = load_model(one_folder).state_dict()
    monkeypatch.setattr(awq, "INPUTS_AT_A_TIME", 24)
    monkeypatch.setattr(awq, "WORDS_AT_A_TIME", 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        state = load_model(one_folder).state_dict()
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_float16_is_computed_in_bfloat16(source: Path, tmp_path: Path) -> None:
    """AutoAWQ saves float16, in which this model overflows; float32 doubled embeddings and vision,
    and no kernel for 4 bits takes it."""
    write_awq(source, tmp_path / "half", torch.float16)
    with pytest.warns(UserWarning, match="float16 overflows.* computing in bfloat16") as caught:
        model = load_model(tmp_path / "half")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert model.dtype == torch.bfloat16
    assert logits_of(model).isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(tmp_path / "half", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="computing in bfloat16"):
        assert load_model(source, dtype="float16", quantization_config="int8").dtype == (
            torch.bfloat16
        )


def test_saved_as_compressed_tensors(folder: Path, tmp_path: Path) -> None:
    """What is written says that it is asymmetric; the same bits come back, mapped."""
    model = load_model(folder)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    (group,) = config["config_groups"].values()
    assert group["weights"]["symmetric"] is False
    again = load_model(tmp_path / "saved")
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    assert torch.equal(logits_of(again), logits_of(model))


def test_words_of_the_saved_format(one_folder: Path, tmp_path: Path) -> None:
    """compressed-tensors packs zero points down the outputs: read here as it is described."""
    model = load_model(one_folder)
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    packed, scale, zeros = (
        stored[f"{LAYER}.weight_{part}"] for part in ("packed", "scale", "zero_point")
    )
    assert (zeros.dtype, zeros.shape) == (torch.int32, (128 // 8, 256 // 32))
    places = torch.arange(0, 32, 4)
    codes = (packed.long()[..., None] >> places & 15).flatten(1) - 8
    zero = (zeros.T.long()[..., None] >> places & 15).flatten(1).T - 8
    weight = (codes - zero.repeat_interleave(32, 1)) * scale.float().repeat_interleave(32, 1)
    layer = model.get_submodule(model_name(LAYER))
    assert torch.equal(weight, layer.dequantise(torch.float32))


def test_copies(one_folder: Path) -> None:
    """Workers get models pickled; training code moves and casts them."""
    model = load_model(one_folder)
    wanted = logits_of(model)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(logits_of(other), wanted)
    zeros = model.get_submodule(model_name(LAYER)).weight_zero_point.clone()
    assert distance(logits_of(model.half()), wanted) < 0.1
    assert torch.equal(logits_of(model.bfloat16()), wanted)
    assert torch.equal(model.get_submodule(model_name(LAYER)).weight_zero_point, zeros)


def test_quantised_again_is_refused(one_folder: Path, tmp_path: Path) -> None:
    """Rounding twice loses more than the smaller of the two formats does."""
    with pytest.raises(UsageError, match="is already quantised"):
        quantize_folder(one_folder, tmp_path / "again", Scheme(4))
    with pytest.raises(UsageError, match="is already quantised"):
        load_model(one_folder, quantization_config="int4")


def test_info(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it says of memory and time was that of a model in 16 bits, whatever the folder holds."""
    one_folder = tmp_path / "awq"
    write_awq(tiny_folder, one_folder)
    assert main(["info", str(one_folder), "What?"]) == 0
    out = capsys.readouterr().out
    assert "quantised    4 bits in groups of 32 with zero points (awq)" in out
    assert "with int4 weights" in out
    assert main(["info", str(one_folder), "What?", "--quantize", "int4"]) == 2
    assert "already quantised" in capsys.readouterr().err


def test_without_zero_points(one_folder: Path, tmp_path: Path) -> None:
    """zero_point false: zeros that are stored all the same count; where there are none they are
    8."""
    names = load_file(one_folder / "model.safetensors").keys()
    zeros = tuple(name for name in names if name.endswith("qzeros"))
    bare = change(one_folder, tmp_path / "bare", {}, zeros)
    eights = {name: load_file(one_folder / "model.safetensors")[name] for name in zeros}
    eights = {name: torch.full_like(zero, -0x77777778) for name, zero in eights.items()}
    stored = change(one_folder, tmp_path / "stored", eights)
    for folder in (bare, stored):
        values = json.loads((folder / "config.json").read_text())
        values["quantization_config"]["zero_point"] = False
        (folder / "config.json").write_text(json.dumps(values))
    layer = load_model(bare).get_submodule(model_name(LAYER))
    assert layer.weight_zero_point is None
    assert torch.equal(logits_of(load_model(bare)), logits_of(load_model(stored)))


def int32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


DAMAGES: list[tuple[Weights, tuple[str, ...], str]] = [
    ({}, (f"{LAYER}.qzeros",), f"{LAYER}.qzeros is missing"),
    ({}, (f"{LAYER}.qweight",), f"{LAYER}.qweight is missing"),
    ({}, (f"{LAYER}.scales",), f"{LAYER}.scales is missing"),
    ({f"{LAYER}.qweight": int32(128, 32)}, (), f"{LAYER}.qweight is [128, 32], config.json makes"),
    ({f"{LAYER}.qzeros": int32(2, 16)}, (), f"{LAYER}.qzeros is [2, 16], config.json makes it [8"),
    (
        {f"{LAYER}.scales": torch.ones(128, 8).half()},
        (),
        f"{LAYER}.scales is [128, 8], config.json makes it [8, 128] (group_size 32)",
    ),
    (
        {f"{LAYER}.qweight": int32(256, 16).long()},
        (),
        f"{LAYER}.qweight is of type I64, not of I32",
    ),
    (
        {f"{LAYER}.scales": int32(8, 128)},
        (),
        f"{LAYER}.scales is of type I32, not of F16",
    ),
    ({f"{LAYER}.weight": torch.ones(128, 256)}, (), f"{LAYER}.weight is unexpected"),
    ({"lm_head.qweight": int32(128, 12)}, (), "lm_head.qweight is unexpected"),
]


@pytest.mark.parametrize(("tensors", "without", "message"), DAMAGES, ids=str)
def test_damaged_folders(
    one_folder: Path, tmp_path: Path, tensors: Weights, without: tuple[str, ...], message: str
) -> None:
    """A kernel that trusts its pointers must never see them; the error names the tensor."""
    damaged = change(one_folder, tmp_path / "damaged", tensors, without)
    with pytest.raises(TensorError, match=re.escape(message)):
        load_model(damaged)


def test_layers_that_fill_no_group(one_folder: Path, tmp_path: Path) -> None:
    """128 inputs are no whole groups of another group_size than the writer's."""
    source = write_checkpoint(
        tmp_path / "narrow", {"added_tokens": []}, text={"vocab_size": 96, "hidden_size": 64}
    )
    write_awq(source, tmp_path / "awq")
    values = json.loads((tmp_path / "awq" / "config.json").read_text())
    values["quantization_config"]["group_size"] = 128
    (tmp_path / "awq" / "config.json").write_text(json.dumps(values))
    with pytest.raises(TensorError, match=r"qweight has 64 inputs.* not whole groups of 128"):
        load_model(tmp_path / "awq")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"version": "gemv"}, "version is 'gemv'; only 'gemm' is read; take a version in 4 bits and"),
    ({"version": "gemv_fast"}, "version is 'gemv_fast'"),
    ({"version": "exllama"}, "version is 'exllama'"),
    ({"version": None, "format": "marlin"}, "format is 'marlin'; only 'gemm' is read"),
    ({"bits": 3}, "bits is 3; only 4 are read; .*qwen25vl quantize"),
    ({"bits": 8}, "bits is 8; only 4 are read"),
    ({"bits": "4"}, "bits is '4'"),
    ({"group_size": -1}, "group_size is -1; expected 32 or 64 or 128"),
    ({"group_size": 100}, "group_size is 100"),
    ({"zero_point": 1}, "zero_point is 1; expected True or False"),
    ({"modules_to_not_convert": "visual"}, "modules_to_not_convert is 'visual'; it must be a list"),
    ({"kv_cache_bits": 8}, "kv_cache_bits is 8; the key is unknown"),
    ({"quant_method": "abc"}, "quant_method is 'abc'; expected 'compressed-tensors' or 'awq'"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=str)
def test_other_kinds_are_refused_by_name(
    one_folder: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """Read as gemm they would load, and answer nonsense."""
    folder = change(one_folder, tmp_path / "other", {})
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"quantization_config.{message}"):
        load_model(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"version": "GEMM", "modules_to_not_convert": None},
        {"version": None, "format": "gemm", "backend": "auto", "modules_to_not_convert": []},
        {"do_fuse": False, "fuse_max_seq_len": None, "exllama_config": None},
    ],
    ids=str,
)
def test_keys_of_other_writers(one_folder: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    """Keys that say nothing of the numbers."""
    assert awq.read_awq_scheme(CONFIG | config, tmp_path) == Scheme(4, 32, has_zeros=True)

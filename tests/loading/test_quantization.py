"""Weights in fewer bits: the layers against their dequantised twins, error bounds,
and what is quantised."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from torch import nn
from torch.nn import functional as F  # noqa: N812

from qwen25vl import BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.ecosystem.torchao_config import read_scheme
from qwen25vl.errors import NumericsError, OptionError, UsageError
from qwen25vl.kernels.reference import dequantise_int4, pack_int4
from qwen25vl.loading.quantization import FEW_SCALES, MANY_SCALES, quantise
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import Int4Linear, Int8Linear

SCHEMES = [Scheme(8), Scheme(4, group_size=32)]


def linear(
    num_inputs: int, num_outputs: int = 24, bias: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    torch.manual_seed(num_inputs)
    return nn.Linear(num_inputs, num_outputs, bias=bias, dtype=dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("q"), {"added_tokens": []}, tied=False, text={"vocab_size": 96}
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_inputs", [64, 3420, 33])
@pytest.mark.parametrize("num_rows", [1, 5, 100])
def test_layer_equals_its_dequantised_twin(
    scheme: Scheme, dtype: torch.dtype, num_inputs: int, num_rows: int
) -> None:
    """Few and many rows take different ways, odd widths are padded,
    and gpt-fast once forgot the bias."""
    source = linear(num_inputs, dtype=dtype)
    layer = quantise(source, scheme)
    x = torch.randn(2, num_rows, num_inputs, dtype=dtype)
    with torch.no_grad():
        got = layer(x)
        wanted = F.linear(
            x.double(), layer.dequantise(torch.float32).double(), source.bias.double()
        )
    assert got.shape == (2, num_rows, 24)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def heavy_tailed(num_rows: int, num_inputs: int) -> torch.Tensor:
    """Student's t with 4 degrees of freedom: outliers as trained weights have them."""
    normal, squares = (
        torch.randn(num_rows, num_inputs),
        torch.randn(4, num_rows, num_inputs).square().mean(0),
    )
    return normal / squares.sqrt()


def error_ratio(weight: torch.Tensor, scheme: Scheme, divisor: float, num_scales: int) -> float:
    """Squared error of the scales found, over that of scales max /
    divisor and the nearest levels."""
    source = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    source.weight.data = weight
    got = (quantise(source, scheme, num_scales).dequantise(torch.float32) - weight).square().sum()
    groups = weight.unflatten(1, (-1, scheme.inputs_per_scale(weight.shape[1])))
    scale, half = groups.abs().amax(2, keepdim=True) / divisor, 2 ** (scheme.bits - 1)
    plain = ((groups / scale).round().clamp(-half, half - 1) * scale - groups).square().sum()
    return float(got / plain)


@pytest.mark.parametrize("make", [torch.randn, heavy_tailed])
def test_searched_scales_err_less(make: Callable[[int, int], torch.Tensor]) -> None:
    """A quarter off int4's error; int8's is small already."""
    torch.manual_seed(0)
    weight = make(256, 2048)
    for group_size in (32, 128):
        scheme = Scheme(4, group_size)
        assert error_ratio(weight, scheme, 7.5, MANY_SCALES) < 0.77
        assert error_ratio(weight, scheme, 7.5, FEW_SCALES) < 0.78
    for num_scales in (FEW_SCALES, MANY_SCALES):
        assert error_ratio(weight, Scheme(8), 127, num_scales) < 1


def test_each_row_has_its_own_step() -> None:
    """One large row must not coarsen the others;
    the scale's sign says which end has the level more."""
    source = linear(200)
    with torch.no_grad():
        source.weight[3] *= 1000
        source.weight[4] = torch.linspace(-8, 7, 200).round()
        source.weight[5] = -source.weight[4]
    for scheme in SCHEMES:
        layer = quantise(source, scheme)
        error = (layer.dequantise(torch.float32) - source.weight).square().mean(
            1
        ) / source.weight.square().mean(1)
        assert (error < (1e-4 if scheme.bits == 8 else 1e-2)).all()
    layer = quantise(source, Scheme(4, 32), MANY_SCALES)
    assert (layer.weight_scale[4, 0] > 0) != (layer.weight_scale[5, 0] > 0)
    torch.testing.assert_close(
        layer.dequantise(torch.float32)[4:6, :32], source.weight[4:6, :32], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_groups_cut_short_by_the_width(group_size: int) -> None:
    """Zero columns fill up the last group; they may not touch the error or the result's width."""
    layer = quantise(linear(200), Scheme(4, group_size))
    assert layer.codes.shape == (24, -(-200 // group_size) * group_size // 2)
    assert layer.dequantise(torch.float32).shape == (24, 200)
    full = layer.codes[:, 100:]
    assert (full == 0x88).all()  # level 0 twice


def test_weights_that_are_no_numbers() -> None:
    """A scale of NaN would turn every answer into nonsense without a word."""
    source = linear(64)
    with torch.no_grad():
        source.weight[1, 2] = torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        quantise(source, SCHEMES[0])


@pytest.mark.parametrize("scheme", SCHEMES, ids=["int8", "int4"])
def test_rows_of_zeros(scheme: Scheme) -> None:
    """Pruned rows and groups must stay zero, not become 0 / 0."""
    source = linear(64, bias=False)
    with torch.no_grad():
        source.weight[:5] = 0
    layer = quantise(source, scheme)
    assert layer.dequantise(torch.float32)[:5].eq(0).all()
    assert layer(torch.ones(1, 64)).isfinite().all()
    assert layer.bias is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=["int8", "int4"])
def test_parts_change_nothing(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large layers are quantised some rows at a time."""
    whole = quantise(linear(64), scheme)
    monkeypatch.setattr("qwen25vl.loading.quantization.ELEMENTS_AT_A_TIME", 5 * 64)
    parts = quantise(linear(64), scheme)
    assert all(
        torch.equal(value, parts.state_dict()[key]) for key, value in whole.state_dict().items()
    )


def test_packing_order() -> None:
    """Low half first: the order that compressed-tensors reads."""
    levels = torch.arange(-8, 8, dtype=torch.int8).expand(3, 16)
    packed = pack_int4(levels)
    assert packed[0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    scale = torch.ones(3, 2, dtype=torch.float16)
    assert torch.equal(dequantise_int4(packed, scale, 16, torch.float32), levels.float())


@pytest.mark.parametrize("scheme", SCHEMES, ids=["int8", "int4"])
def test_gradients_reach_the_input(scheme: Scheme) -> None:
    """Adapters are trained through quantised layers; the fast way for few rows has no gradient."""
    layer = quantise(linear(64, dtype=torch.bfloat16), scheme)
    x = torch.randn(4, 64, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    wanted = layer.dequantise(torch.float32).sum(0)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), wanted.expand(4, -1), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("int8", Int8Linear),
        ("int4_weight_only", Int4Linear),
        (TorchAoConfig("int8_weight_only"), Int8Linear),
        (TorchAoConfig("int4_weight_only", group_size=32), Int4Linear),
    ],
)
def test_what_is_quantised(
    folder: Path, tmp_path: Path, given: TorchAoConfig | str, kind: type[nn.Module]
) -> None:
    """All text layers, and neither the vision tower nor the embeddings nor the head."""
    if given == "int4_weight_only":  # groups of 128 need wider layers
        sizes = {
            "hidden_size": 128,
            "intermediate_size": 160,
            "rope_scaling": {"mrope_section": [4, 6, 6]},
        }
        text, vision = {"vocab_size": 96, **sizes}, {"out_hidden_size": 128}
        folder = write_checkpoint(
            tmp_path, {"added_tokens": []}, tied=False, text=text, vision=vision
        )
    model, plain = load_model(folder, quantization_config=given), load_model(folder)
    layers = [path for path, module in model.named_modules() if isinstance(module, kind)]
    assert len(layers) == 7 * plain.config.text_config.num_hidden_layers
    assert all(path.startswith("model.language_model.layers.") for path in layers)
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        if name.rpartition(".")[0] not in layers or name.endswith("bias"):
            assert torch.equal(state[name], value), name
        else:
            error = (
                model.get_submodule(name.removesuffix(".weight")).dequantise(torch.float32) - value
            )  # type: ignore[operator]
            assert (
                error.square().mean()
                < (1e-4 if kind is Int8Linear else 2e-2) * value.square().mean()
            )


def test_quantised_model_computes_nearly_the_same(folder: Path) -> None:
    """int8 as good as lossless on a small model, in bfloat16 too."""
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        plain = load_model(folder)(ids).logits
        for dtype, bound in ((torch.float32, 1e-3), (torch.bfloat16, 2e-3)):
            logits = load_model(folder, dtype=dtype, quantization_config="int8")(ids).logits.float()
            assert (logits - plain).square().mean() < bound * plain.square().mean()


def test_too_narrow_for_its_groups(folder: Path) -> None:
    """The layer and both numbers are named, before anything is converted."""
    with pytest.raises(
        UsageError,
        match=r"group_size 128 is larger than the 64 inputs of .*layers\.0\.self_attn\.q_proj",
    ):
        load_model(folder, quantization_config="int4")


@pytest.mark.parametrize("value", ["int3", "fp8", "", 8, {"load_in_4bit": True}])
def test_unknown_quantisation(folder: Path, value: object) -> None:
    """Never ignored."""
    with pytest.raises(OptionError, match="quantization is"):
        load_model(folder, quantization_config=value)  # type: ignore[arg-type]


def test_impossible_settings() -> None:
    """Refused when the object is made."""
    with pytest.raises(OptionError, match="known are int8_weight_only, int4_weight_only"):
        TorchAoConfig("float8_weight_only")
    with pytest.raises(OptionError, match="group_size is for int4"):
        TorchAoConfig("int8_weight_only", group_size=64)
    for group_size in (0, -128, 8, 1.5, 256):
        with pytest.raises(OptionError, match="groups of 32, 64, 128"):
            TorchAoConfig("int4_weight_only", group_size=group_size)  # type: ignore[arg-type]


def test_the_public_configuration() -> None:
    """What is asked for under the names of transformers, or in one word, is one scheme; a server
    sends the object to its workers."""
    config = TorchAoConfig("int4_weight_only", group_size=32, vision=True)
    assert pickle.loads(pickle.dumps(config)) == config
    assert read_scheme(config) == Scheme(4, 32, vision=True)
    assert (
        read_scheme("int8+vision")
        == read_scheme("int8_weight_only+vision")
        == Scheme(8, vision=True)
    )
    assert read_scheme(None) is None
    assert (
        repr(config) == "TorchAoConfig(quant_type='int4_weight_only', group_size=32, vision=True)"
    )
    assert Scheme(4, 32, vision=True).for_layer("model.visual.blocks.0.mlp.up_proj") == Scheme(8)


NAMES = ["q_proj", "proj", "layers.0", "model.language_model.layers.1", "mlp.down_proj", "lm_head",
         "model.language_model.layers.*.self_attn", "layers.0.mlp.gate_proj", "no_such_module",
         "model.language_model.layers.1.mlp.up", "model", r".*\.o_proj"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_named_layers_are_left_alone(folder: Path, name: str) -> None:
    """llm_int8_skip_modules and modules_to_not_convert were taken, and all was quantised."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    plain = load_model(folder)
    linears = [
        path
        for path, module in plain.named_modules()
        if isinstance(module, nn.Linear) and path.startswith("model.language_model.layers.")
    ]
    wanted = [path for path in linears if should_convert_module(path, [name])]
    if name == "layers.0":  # in the middle of a path, as transformers 4 has it
        wanted = [path for path in linears if ".layers.0." not in path]
    given: list[Any] = [
        TorchAoConfig("int8_weight_only", modules_to_not_convert=[name]),
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[name]),
        QuantoConfig("int8", modules_to_not_convert=[name]),
    ]
    for config in given:
        model = load_model(folder, quantization_config=config)
        found = [path for path, module in model.named_modules() if isinstance(module, Int8Linear)]
        assert found == wanted
    state = model.state_dict()
    for path in set(linears) - set(wanted):
        assert torch.equal(state[f"{path}.weight"], plain.state_dict()[f"{path}.weight"])


def test_the_vision_encoder_is_left_alone(folder: Path) -> None:
    """["visual"] is what recipes write."""
    config = TorchAoConfig("int8_weight_only", vision=True, modules_to_not_convert=["visual"])
    assert config.scheme.covers("model.language_model.layers.0.mlp.up_proj")
    assert not config.scheme.covers("model.visual.blocks.0.mlp.up_proj")
    assert TorchAoConfig("int8_weight_only", vision=True).scheme.covers("model.visual.blocks.0.a")


def test_a_partly_quantised_model_is_saved_and_answers(folder: Path, tmp_path: Path) -> None:
    """Layers in different precisions beside each other, in memory and in a file."""
    config = TorchAoConfig(
        "int8_weight_only", modules_to_not_convert=["model.language_model.layers.0", "down_proj"]
    )
    model = load_model(folder, quantization_config=config, dtype="bfloat16")
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    kinds = [{path: type(m) for path, m in each.named_modules()} for each in (model, again)]
    assert kinds[0] == kinds[1]
    ids = torch.tensor([[5, 6, 7, 8]])
    made = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(made, again.generate(ids, max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("names", ["visual", 5, [5], [""], ["layers.["], {"a": 1}.items()], ids=str)
def test_names_that_are_none(names: Any) -> None:
    """A text was taken for a list of its letters in transformers."""
    for make, option in (
        (lambda: TorchAoConfig("int8_weight_only", modules_to_not_convert=names), "modules_to"),
        (lambda: BitsAndBytesConfig(llm_int8_skip_modules=names), "llm_int8_skip_modules"),
        (lambda: QuantoConfig(modules_to_not_convert=names), "modules_to_not_convert"),
    ):
        with pytest.raises(OptionError, match=option):
            make()

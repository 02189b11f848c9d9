"""Quantised models under the calls that change every tensor of a module."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint

from qwen25vl.ecosystem.auto import load_model
from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration as Model
from qwen25vl.errors import UsageError
from qwen25vl.model.packed_linear import PackedLinear

IDS = torch.arange(1, 30)[None]
WIDE = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 160,
    "rope_scaling": {"mrope_section": [4, 6, 6]},
}
KINDS = ["int8", "int4", "int8+vision", "int4+vision"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("packed"), {"added_tokens": []}, dtype=torch.bfloat16, text=WIDE,
        vision={"out_hidden_size": 128},
    )  # fmt: skip


def logits_of(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean() / other.square().mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_another_type_and_back(folder: Path, kind: str, dtype: torch.dtype) -> None:
    """`half()` and `to(bfloat16)` converted the scales too,
    which the kernels read in one type: garbage."""
    model = load_model(folder, quantization_config=kind)
    logits, exact = (
        logits_of(model),
        logits_of(load_model(folder, quantization_config=kind, dtype="float32")),
    )
    scales = {
        path: tensor.clone() for path, tensor in model.named_buffers() if path.endswith("scale")
    }
    model.to(dtype)
    # the scales were rounded from bfloat16 weights in both
    assert distance(logits_of(model), exact) < 1e-3
    model.to(torch.bfloat16)
    assert torch.equal(logits_of(model), logits)
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[path], scale) for path, scale in scales.items())
    assert all(buffers[path].dtype == scale.dtype for path, scale in scales.items())


@pytest.mark.parametrize("kind", KINDS)
def test_moves_that_change_nothing(folder: Path, kind: str) -> None:
    """To the device where it is, to the type that it has, into shared memory."""
    model = load_model(folder, quantization_config=kind)
    logits = logits_of(model)
    assert torch.equal(logits_of(model.to("cpu")), logits)
    assert torch.equal(logits_of(model.bfloat16()), logits)
    assert torch.equal(logits_of(model.share_memory()), logits)
    assert torch.equal(logits_of(model.cpu().eval()), logits)


def test_types_that_words_cannot_have(folder: Path) -> None:
    """`type` converts codes as if they were numbers."""
    with pytest.raises(UsageError, match=r"must stay int32; use model.to\(dtype\)"):
        load_model(folder, quantization_config="int8").type(torch.float32)


def test_a_scale_of_another_type_is_read_in_its_type(folder: Path) -> None:
    """The kernels read addresses; sixteen bits read as thirty-two are other numbers."""
    model = load_model(folder, quantization_config="int8")
    ids, wanted = torch.arange(1, 9)[None], logits_of(model)
    answer = model.generate(ids, max_new_tokens=4)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.weight_scale = module.weight_scale.double()
    assert distance(logits_of(model), wanted) < 5e-3  # torch does not round the activations
    assert model.generate(ids, max_new_tokens=4).shape == answer.shape


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("width", [127, 97, 96, 129, 256])
def test_inputs_of_another_width(folder: Path, kind: str, width: int) -> None:
    """The columns that fill up the last group are no inputs."""
    layer = load_model(folder, quantization_config=kind).get_submodule(
        "model.language_model.layers.0.mlp.up_proj"
    )
    for dtype in (torch.bfloat16, torch.float32):
        with torch.no_grad(), pytest.raises(UsageError, match=r"inputs.* shape.*\[2, "):
            layer(torch.ones(2, width, dtype=dtype))

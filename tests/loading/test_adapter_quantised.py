"""LoRA beside bases that others quantised: the sum is that of the numbers which the codes mean."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import PREFIX, Tensors, linear_sizes, low_rank, write_adapter
from awq_files import write_awq
from checkpoints import write_checkpoint
from gguf_models import write_model
from gguf_models import write_plain as write_plain_gguf
from safetensors.torch import load_file
from test_stored_formats import write_case, write_plain

import qwen25vl
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.hub import resolve_folder

pytestmark = pytest.mark.usefixtures("own_cache")

IDS = torch.arange(1, 40)[None]
SCALE = 2.0  # alpha / r of `write_adapter`
STORED = ("gptq", "gptq v1 with zeros", "W4A16 by output", "W8A16 in groups", "FP8 dynamic")
FORMATS = (*STORED, "awq", "gguf Q4_0", "gguf Q4_K")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {
        "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192,
        "rope_scaling": {"mrope_section": [4, 6, 6]},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("adapted") / "source"
    vision = {"out_hidden_size": 128, "intermediate_size": 61}
    return write_checkpoint(folder, {"added_tokens": []}, text=text, vision=vision)


def write_base(name: str, source: Path, folder: Path) -> tuple[Path, Path]:
    """(a quantised base, an ordinary folder of the same numbers in float32)"""
    if name.startswith("gguf"):
        folder.mkdir()
        path, meant = write_model(folder, (name.split()[1],), "F32")
        return resolve_folder(path), write_plain_gguf(folder / "plain", meant)
    if name == "awq":
        meant = write_awq(source, folder / "base", torch.float32)
        others = load_file(source / "model.safetensors")
        return folder / "base", write_plain(source, folder / "plain", others | meant)
    meant = write_case(name, source, folder / "base")
    return folder / "base", write_plain(source, folder / "plain", meant)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()  # type: ignore[no-any-return]


def add(model: Any, tensors: Tensors) -> None:
    """W + α/r · B·A"""
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            path = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            up = tensors[key.replace("lora_A", "lora_B")]
            model.get_submodule(path).weight.data += SCALE * (up @ down)


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_sum(name: str, source: Path, tmp_path: Path) -> None:
    """Whichever way a base keeps its numbers, or works them out; and what is merged is the same
    sum, of plain layers."""
    base, plain = write_base(name, source, tmp_path / "made")
    expected = load_model(plain, dtype="float32")
    alone = logits(expected)
    std = 2.0 if name == "gguf Q4_K" else 0.1  # beside the large numbers of its random blocks
    sizes = linear_sizes(expected, "q_proj", "o_proj", "down_proj", "gate_proj")
    tensors = low_rank(sizes, std=std)
    add(expected, tensors)
    wanted = logits(expected)
    adapter = write_adapter(tmp_path / "adapter", tensors)
    model = load_model(base, dtype="float32")
    model.load_adapter(adapter)
    assert float((logits(model) - wanted).norm() / wanted.norm()) < 1e-5
    model.disable_adapters()
    assert float((logits(model) - alone).norm() / alone.norm()) < 1e-5
    assert float((wanted - alone).norm() / alone.norm()) > 0.05, "the adapter changes something"
    merged = load_model(
        qwen25vl.merge_adapter(adapter, tmp_path / "merged", model=base), dtype="float32"
    )
    # rounded once, to the type that the base states
    bound = 1e-5 if merged.config.dtype in ("float32", torch.float32) else 0.02
    assert float((logits(merged) - wanted).norm() / wanted.norm()) < bound


@pytest.mark.parametrize("name", ["gptq v1 with zeros", "W4A16 by output", "awq", "gguf Q4_0"])
def test_rows_of_a_mixed_batch_are_as_alone(name: str, source: Path, tmp_path: Path) -> None:
    """With one adapter, with none and with another, in one step: every bit is that of the row
    alone."""
    base, _ = write_base(name, source, tmp_path / "made")
    model: Any = load_model(base, dtype="bfloat16")
    for seed, adapter in enumerate(("a", "b")):
        tensors = low_rank(linear_sizes(model, "q_proj", "down_proj"), seed=seed, std=1.0)
        model.load_adapter(write_adapter(tmp_path / adapter, tensors), adapter)
    names = ["a", "__base__", "b", "a"]
    ids = torch.arange(1, 49).view(4, 12) % 90
    ids[2] = ids[0]
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 4}
    options |= {"min_new_tokens": 4, "do_sample": False}
    together = model.generate(input_ids=ids, adapter_names=names, **options)
    for row, adapter in enumerate(names):
        alone = model.generate(input_ids=ids[row, None], adapter_names=[adapter], **options)
        for step, wanted in enumerate(alone.logits):
            assert torch.equal(together.logits[step][row], wanted[0])
    assert not torch.equal(together.logits[0][0], together.logits[0][2])

"""The options of from_pretrained: each does what it says or is refused."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint

from qwen25vl import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration, memory
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.errors import (
    CheckpointError,
    ConfigError,
    DependencyError,
    OptionError,
    OutOfMemoryError,
    UsageError,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16, as the released checkpoints are."""
    return write_checkpoint(
        tmp_path_factory.mktemp("load"),
        {"added_tokens": []},
        dtype=torch.bfloat16,
        text={"vocab_size": 96},
    )


def edit_config(folder: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **changes}))
    return target


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float32}, torch.float32),
        ({"dtype": "float32"}, torch.float32),
        ({"torch_dtype": torch.float32}, torch.float32),
        ({"torch_dtype": "auto"}, torch.bfloat16),
        ({"dtype": "bfloat16", "torch_dtype": torch.bfloat16}, torch.bfloat16),
    ],
)
def test_dtype(folder: Path, options: dict[str, Any], expected: torch.dtype) -> None:
    """Every parameter has it, under the new name and the old."""
    model = load_model(folder, **options)
    assert {parameter.dtype for parameter in model.parameters()} == {expected} == {model.dtype}


def test_conversion_is_exact(folder: Path) -> None:
    """bfloat16 to float32 loses nothing, so both must hold the same numbers."""
    narrow, wide = load_model(folder).state_dict(), load_model(folder, dtype="float32").state_dict()
    assert all(torch.equal(narrow[key].float(), wide[key]) for key in narrow)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float64"},
        {"dtype": "int8"},
        {"dtype": torch.int8},
        {"dtype": 16},
        {"dtype": "float32", "torch_dtype": "bfloat16"},
    ],
)
def test_impossible_dtype(folder: Path, options: dict[str, Any]) -> None:
    """Two names that disagree must not be settled by chance."""
    with pytest.raises(UsageError, match="dtype"):
        load_model(folder, **options)


def test_float16_on_a_cpu_becomes_float32(folder: Path, tmp_path: Path) -> None:
    """In float16 this model overflows to answers of exclamation marks; the change is said once."""
    with pytest.warns(UserWarning, match="float32") as caught:
        assert load_model(folder, dtype=torch.float16).dtype == torch.float32
    assert len(caught) == 1
    assert caught[0].filename == __file__
    half = edit_config(folder, tmp_path / "half", torch_dtype="float16")
    with pytest.warns(UserWarning, match="float32"):
        assert load_model(half).dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(half, dtype="bfloat16")


@pytest.mark.parametrize("device_map", [None, "auto", "cpu", torch.device("cpu"), {"": "cpu"}])
def test_device(folder: Path, device_map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All spellings of one device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model(folder, device_map=device_map).device == torch.device("cpu")


@pytest.mark.parametrize(
    "device_map", ["balanced", {"model.visual": "cpu", "lm_head": "disk"}, {}, [0]]
)
def test_impossible_device(folder: Path, device_map: Any) -> None:
    """A map over several devices must not end up on one of them in silence."""
    with pytest.raises(UsageError, match="one device"):
        load_model(folder, device_map=device_map)


def test_absent_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before gigabytes are read."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(DependencyError, match="cuda:1 is not available"):
        load_model(folder, device_map="cuda:1")


def test_flash_attention_without_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent change to another kernel."""
    with pytest.raises(DependencyError, match=r"CUDA device, not cpu.*sdpa"):
        load_model(folder, device_map="cpu", attn_implementation="flash_attention_2")
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cuda")
    )
    monkeypatch.setattr("qwen25vl.ecosystem.pretrained.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install flash-attn"):
        load_model(folder, device_map="cuda", attn_implementation="flash_attention_2")


@pytest.mark.parametrize("options", [{"attn_implementation": "flash"}, {"mrope": "hf4"}])
def test_unknown_choices(folder: Path, options: dict[str, Any]) -> None:
    """Refused with the list of what there is."""
    with pytest.raises(OptionError, match="known are"):
        load_model(folder, **options)


def test_every_door_opens_the_same_room(folder: Path) -> None:
    """The ecosystem's two classes; ready to answer, and ready to be trained."""
    for door in (AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration):
        model = door.from_pretrained(str(folder), device_map="auto", attn_implementation="eager")
        assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
        assert not model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.generation_config is not None
        assert model.generation_config.eos_token_id == (151645, 151643)
    with pytest.raises(TypeError):
        AutoModelForImageTextToText.from_pretrained(folder, trust_remote=True)


def test_folder_that_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Each says what is wrong with the folder."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path / "empty")
    with pytest.raises(ConfigError, match="llama"):
        load_model(edit_config(folder, tmp_path / "llama", model_type="llama"))
    other = edit_config(
        folder, tmp_path / "other", quantization_config={"quant_method": "abc", "bits": 4}
    )
    with pytest.raises(
        CheckpointError, match="quant_method is 'abc'; expected 'compressed-tensors' or 'awq'"
    ):
        load_model(other)


def test_progress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that grow to the whole; nothing is printed where stderr is no terminal."""
    calls: list[tuple[str, int, int]] = []
    load_model(folder, progress=lambda *call: calls.append(call))
    load_model(folder)
    model_bytes = sum(parameter.nbytes for parameter in load_model(folder).parameters())
    assert {(stage, total) for stage, _, total in calls} == {("load", model_bytes)}
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1][1] == model_bytes
    assert capsys.readouterr() == ("", "")


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before it starts; mapped weights need no memory of their own."""
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    load_model(folder)
    with pytest.raises(
        OutOfMemoryError, match=r"needs 0\.\d+ GB of memory on cpu, only 0\.0 GB are free"
    ):
        load_model(folder, dtype="float32")
    with pytest.raises(OutOfMemoryError):
        load_model(folder, quantization_config="int8")


def test_available_memory_is_plausible() -> None:
    """A misread unit would refuse every model or none."""
    available = memory.available_bytes(torch.device("cpu"))
    assert available is None or 10**8 < available < 10**14


def test_random_state_is_left_alone(folder: Path) -> None:
    """Loading must not shift the numbers of a seeded experiment."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)

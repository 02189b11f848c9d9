"""Reading and writing weights: both layouts, shards, damage, and what saving must not break."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.checkpoint import hub_name, model_name
from qwen25vl.loading.saving import save_model

SMALL = {"vocab_size": 96}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", {"added_tokens": []}, text=SMALL)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of the weights file; None removes one."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    save_file(
        {k: v for k, v in tensors.items() if v is not None},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def shard(folder: Path) -> dict[str, Any]:
    """Split the one weights file in two with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in (1, 2):
        part = {k: v for k, v in tensors.items() if k.startswith("visual.") == (number == 2)}
        save_file(part, folder / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(part, f"model-0000{number}-of-00002.safetensors")
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def assert_same_state(ours: torch.nn.Module, other: torch.nn.Module) -> None:
    state, other_state = ours.state_dict(), other.state_dict()
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[key], other_state[key]) for key in state)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_both_layouts(stored: str, name: str) -> None:
    """Either spelling leads to the model's; the hub's is the one written."""
    assert model_name(stored) == model_name(name) == name
    assert hub_name(name) == stored


@pytest.mark.parametrize("tied", [True, False])
def test_every_layout_gives_the_same_model(tmp_path: Path, tied: bool) -> None:
    """A layout or a shard whose tensors end in other places would still run,
    and answer nonsense."""
    options: dict[str, Any] = {"text": SMALL, "tied": tied}
    model = load_model(write_checkpoint(tmp_path / "hub", {"added_tokens": []}, **options))
    assert_same_state(
        model,
        load_model(
            write_checkpoint(tmp_path / "new", {"added_tokens": []}, nested=True, **options)
        ),
    )
    shard(tmp_path / "hub")
    assert_same_state(model, load_model(tmp_path / "hub"))


def test_every_number_is_the_files(folder: Path) -> None:
    """A parameter that keeps its random start, or is left without memory, must be impossible."""
    state = load_model(folder).state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(state.pop(model_name(name)), tensor)
    assert not state


def test_weights_are_views_and_writing_spares_the_file(folder: Path) -> None:
    """A copy would double the memory; training that writes through the mapping
    would destroy the checkpoint."""
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    maps = Path("/proc/self/maps")
    if maps.exists():
        ranges = [
            line.split()[0].split("-")
            for line in maps.read_text().splitlines()
            if str(folder) in line
        ]
        for weight in model.parameters():
            assert any(int(low, 16) <= weight.data_ptr() < int(high, 16) for low, high in ranges)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


def test_all_problems_in_one_error(folder: Path) -> None:
    """Repairing a checkpoint one error at a time takes as many runs as it has errors."""
    rewrite(
        folder,
        **{
            "model.norm.weight": None,
            "visual.blocks.9.norm1.weight": torch.ones(48),
            "model.layers.0.mlp.up_proj.weight": torch.ones(3, 64),
            "visual.merger.ln_q.weight": torch.ones(48, dtype=torch.int32),
        },
    )
    with pytest.raises(TensorError) as raised:
        load_model(folder)
    message = str(raised.value)
    assert "4 tensors do not match" in message
    assert "model.norm.weight is missing" in message
    assert "visual.blocks.9.norm1.weight is unexpected" in message
    assert "model.layers.0.mlp.up_proj.weight is [3, 64], config.json makes it [96, 64]" in message
    assert "visual.merger.ln_q.weight is of type I32" in message
    assert "\n" not in message


def test_long_lists_are_cut(folder: Path) -> None:
    """A wrong config.json makes hundreds of tensors misfit; the message stays readable."""
    rewrite(folder, **{f"visual.blocks.{i}.norm1.weight": torch.ones(48) for i in range(10, 50)})
    with pytest.raises(TensorError, match=r"40 tensors do not match.*and 20 more"):
        load_model(folder)


def test_head_beside_tied_embeddings(folder: Path) -> None:
    """Some saves repeat the tied head: that is fine; another head is used, and it is said."""
    embeddings = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, **{"lm_head.weight": embeddings.clone()})
    assert load_model(folder).lm_head is None
    rewrite(folder, **{"lm_head.weight": embeddings + 1})
    with pytest.warns(UserWarning, match="both are stored and differ; the head is used as it is"):
        model = load_model(folder)
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, embeddings + 1)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


def test_missing_untied_head(folder: Path) -> None:
    """An untied head that the files lack must not start at random."""
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": False}))
    with pytest.raises(TensorError, match=r"lm_head\.weight is missing"):
        load_model(folder)


def test_tables_of_old_saves_are_passed_over(folder: Path) -> None:
    """Rotary tables are computed; saves of older versions hold them."""
    rewrite(
        folder,
        **{
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
            "visual.rotary_pos_emb.inv_freq": torch.ones(3),
        },
    )
    load_model(folder)


def test_one_tensor_under_two_names(folder: Path) -> None:
    """Which of the two would win must not depend on their order."""
    rewrite(folder, **{"model.language_model.norm.weight": torch.ones(64)})
    with pytest.raises(CheckpointError, match="are the same tensor"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_file(folder: Path, keep: int) -> None:
    """A download that broke off must not become a bus error while the model runs."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut off"):
        load_model(folder)


def test_missing_shard(folder: Path) -> None:
    """The file is named."""
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load_model(folder)


def test_index_that_promises_too_much(folder: Path) -> None:
    """The tensor and the file are named."""
    index = shard(folder)
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"model-00001-of-00002\.safetensors lacks.*model\.extra\.weight"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../x.safetensors"}}', "\xff"],
)
def test_damaged_index(folder: Path, content: str) -> None:
    """An index may be damaged, or lead out of the folder."""
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_model(folder)


def test_pickles_are_refused(folder: Path) -> None:
    """Opening a pickle runs what it says; the message tells so and what to do."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_saved_folder_loads_here_and_in_transformers(
    tmp_path: Path, tied: bool, max_shard_bytes: int
) -> None:
    """The hub's layout: what we save must be every tool's checkpoint."""
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    source = write_checkpoint(tmp_path / "source", {"added_tokens": []}, text=SMALL, tied=tied)
    model = load_model(source)
    save_model(model, tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    assert len([*(tmp_path / "saved").glob("*.safetensors")]) > 1 or max_shard_bytes > 100_000

    again = load_model(tmp_path / "saved")
    assert_same_state(model, again)
    assert (again.config, again.generation_config) == (model.config, model.generation_config)

    reference, report = Reference.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = reference.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_saving_into_its_own_folder(folder: Path) -> None:
    """The model is mapped from the files that are written over, and old shards beside new files
    would be read."""
    model = load_model(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for max_shard_bytes in (100_000, 10**9):
        save_model(model, folder, max_shard_bytes=max_shard_bytes)
        assert all(
            torch.equal(value, expected[key])
            for key, value in load_model(folder).state_dict().items()
        )
    assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_dtype_is_saved(folder: Path, tmp_path: Path) -> None:
    """config.json must tell the dtype of the weights beside it, not of those loaded."""
    load_model(folder, dtype="bfloat16").save_pretrained(tmp_path / "saved")
    assert load_model(tmp_path / "saved").dtype == torch.bfloat16


def test_fresh_model_is_saved(folder: Path, tmp_path: Path) -> None:
    """A model that was never loaded has no generation config."""
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder))
    model.save_pretrained(tmp_path / "saved")
    assert_same_state(model, load_model(tmp_path / "saved", dtype=torch.float32))


def test_unwritable_folder(folder: Path, tmp_path: Path) -> None:
    """A typed error, and nothing half written."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        load_model(folder).save_pretrained(tmp_path / "file")

"""From names and folders to folders, without a network."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from qwen25vl.errors import CheckpointError, HubError
from qwen25vl.hub import resolve_folder

NAME = "Qwen/Qwen2.5-VL-3B-Instruct"


def write_cache(cache: Path, name: str, *files: str) -> Path:
    """What huggingface_hub leaves behind after a download."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def raise_from_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def snapshot_download(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named like a hub model must not be looked up on the hub."""
    raise_from_hub(monkeypatch, AssertionError("the hub was asked"))
    (tmp_path / "Qwen" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("Qwen/model") == Path("Qwen/model")
    assert resolve_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "path", ["./model", "/no/such/model", "a/b/c", "model", "~/no-such-model", "", "owner/model/"]
)
def test_path_that_leads_nowhere(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped path must be called a missing folder, not an unknown hub model."""
    raise_from_hub(monkeypatch, AssertionError("the hub was asked"))
    monkeypatch.chdir("/")
    if path == "":
        assert resolve_folder(path) == Path()
    else:
        with pytest.raises(CheckpointError, match="does not exist"):
            resolve_folder(path)


@pytest.mark.parametrize("name", ["x.gguf", "./x.safetensors", "/no/such/x.GGUF", "models/x.gguf"])
def test_a_missing_file_is_called_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called a folder; and models/x.gguf, beside other files, was looked for on the hub."""
    raise_from_hub(monkeypatch, AssertionError("the hub was asked"))
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=rf"^the file {re.escape(name)} does not exist$"):
        resolve_folder(name)


def test_file_instead_of_folder(tmp_path: Path) -> None:
    """People give the weights file itself, or another file of the folder: it is the folder that
    they mean. A file that is no checkpoint says what it is."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tmp_path / "model.safetensors").touch()
    assert resolve_folder(tmp_path / "model.safetensors") == tmp_path
    assert resolve_folder(tmp_path / "config.json") == tmp_path
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(CheckpointError, match="is a file, and neither GGUF nor safetensors"):
        resolve_folder(tmp_path / "notes.txt")
    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match="is a pickle file"):
            resolve_folder(tmp_path / name)


def test_cache_answers_offline(tmp_path: Path) -> None:
    """Offline, a cached model must load; its cache_dir must be honoured."""
    snapshot = write_cache(tmp_path, NAME, "config.json")
    assert resolve_folder(NAME, cache_dir=tmp_path) == snapshot
    assert (
        resolve_folder(NAME, cache_dir=tmp_path, local_files_only=True, files="processor")
        == snapshot
    )


def test_offline_without_cache(tmp_path: Path) -> None:
    """The reason and the remedy must be on one line."""
    with pytest.raises(HubError, match=f"HF_HUB_OFFLINE forbids.*hf download {NAME}"):
        resolve_folder(NAME, cache_dir=tmp_path)
    with pytest.raises(HubError, match="local_files_only forbids"):
        resolve_folder(NAME, cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "shows no model"),
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "no revision 'v9'"),
        (errors.HFValidationError, "owner/name"),
        (errors.LocalTokenNotFoundError, "hf auth login"),
        (OSError, "cannot be downloaded from the hub: OSError"),
    ],
)
def test_every_failure_is_one_line(
    kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub client's own errors are long, and some are no OSError: none may reach the caller."""
    raise_from_hub(monkeypatch, kind.__new__(kind))
    with pytest.raises(HubError, match=message) as raised:
        resolve_folder(NAME, revision="v9")
    assert "\n" not in str(raised.value)


def test_processor_does_not_fetch_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Loading a processor must not download gigabytes;
    loading a model must not download pickles."""
    wanted: list[list[str]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        wanted.append(options["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    resolve_folder(NAME, files="processor")
    resolve_folder(NAME)
    processor, everything = wanted
    assert not [pattern for pattern in processor if "safetensors" in pattern]
    assert {"model.safetensors", "model-*.safetensors", "config.json"} <= set(everything)
    assert not [pattern for pattern in everything if pattern.endswith((".bin", ".pt", "*"))]

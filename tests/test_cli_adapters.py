"""Adapters on the command line, over the built-in model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from adapter_files import linear_sizes, low_rank, write_adapter
from checkpoints import write_processor_files

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.demo import FOLDER, folder_on_disk

SCENE = str(Path(__file__).parents[1] / "examples" / "scene.png")
QUESTION = "What colour is the star?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters that change what is said."""
    model = qwen25vl.load().model
    sizes = linear_sizes(model, "q_proj", "down_proj", "o_proj")
    place = tmp_path_factory.mktemp("cli")
    base = str(folder_on_disk(FOLDER))
    return [
        str(
            write_adapter(
                place / name, low_rank(sizes, seed=seed, std=0.2), base_model_name_or_path=base
            )
        )
        for seed, name in enumerate(("one", "two"))
    ]


def said(name: str | None, folders: list[str]) -> str:
    vlm = qwen25vl.load(adapter=dict(zip(("one", "two"), folders, strict=True)))
    return vlm.ask(QUESTION, images=[SCENE], adapter=name, max_new_tokens=6).text


def run(*arguments: str) -> int:
    return main(["run", QUESTION, "-i", SCENE, "--max-new-tokens", "6", *arguments])


def test_run(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The first adapter answers; a folder needs no name; an adapter in the model's place too."""
    one, two, base = (said(name, folders) for name in ("one", "two", "__base__"))
    assert len({one, two, base}) == 3
    for arguments, text in (
        (["--adapter", f"a={folders[0]}", "--adapter", f"b={folders[1]}"], one),
        (["--adapter", f"b={folders[1]}", "--adapter", f"a={folders[0]}"], two),
        (["--adapter", folders[1]], two),
        (["-m", folders[0]], one),
    ):
        assert run(*arguments) == 0
        assert capsys.readouterr().out == f"{text}\n"


def test_chat(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """/adapter takes another one, or none, from the next question on."""
    lines = []
    for command in ("", "/adapter two", "/adapter", "/adapter tow"):
        lines += [*([command] if command else []), f"/image {SCENE}", QUESTION, "/reset"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    given = [
        f"--adapter={name}={folder}" for name, folder in zip(("one", "two"), folders, strict=True)
    ]
    assert main(["chat", "--max-new-tokens", "6", *given]) == 2
    out, err = capsys.readouterr()
    base = said("__base__", folders)
    assert out.splitlines() == [said("one", folders), said("two", folders), base, base]
    assert "there is no adapter 'tow'; did you mean 'two'?" in err


def test_mistakes(folders: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, words in (
        (["--adapter", "a="], "--adapter a= has an empty part; expected NAME=FOLDER"),
        (["--adapter", folders[0], "--adapter", folders[1]], "two adapters have the name default"),
        (["--adapter", f"a={tmp_path}"], "is not a LoRA adapter: it has no adapter_config.json"),
        (["--adapter", "a=./nowhere"], "the adapter folder ./nowhere does not exist"),
        (["--adapter", "a=./x.safetensors"], "the file ./x.safetensors does not exist"),
    ):
        assert run(*arguments) in (1, 2)
        assert words in capsys.readouterr().err


def test_another_processor(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--processor and processor= take the tokenizer and the rest from elsewhere."""
    tokenizer = json.loads((folder_on_disk(FOLDER) / "tokenizer.json").read_text())
    write_processor_files(tmp_path, tokenizer)
    assert run("--processor", str(tmp_path)) == 0
    assert capsys.readouterr().out.strip()
    vlm = qwen25vl.load(processor=tmp_path)
    assert Path(vlm.processor.folder) == tmp_path


def test_info_of_an_adapter(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It tells the size of the base."""
    assert main(["info", folders[0]]) == 0
    assert "parameters" in capsys.readouterr().out

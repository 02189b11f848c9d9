"""The examples are what people copy; each runs as it stands, on the built-in model."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["ask.py", "stream.py", "ecosystem.py"])
def test_examples_about_the_scene(name: str) -> None:
    """An example that fails is worse than none."""
    assert "large dog" in run(name)


def test_video_example() -> None:
    """What moves, and at which rate it was looked at."""
    said = run("video.py")
    assert "car moves to the right" in said
    assert "8 frames, 1.0 s between two grids" in said


def test_boxes_example(tmp_path: Path) -> None:
    """Two animals and one thing that is none."""
    said = run("boxes.py", str(tmp_path / "out.png"))
    assert [line.split()[0] for line in said.splitlines()] == ["owl", "cat"]
    assert (tmp_path / "out.png").stat().st_size


@pytest.mark.slow
def test_finetuning_example(tmp_path: Path) -> None:
    """What PEFT trains on the built-in model is loaded back, and is seen in the answer."""
    pytest.importorskip("peft")
    assert run("finetune.py", str(tmp_path)) == "['LEFT!', 'The dog is on the left.']\n"


def test_server_example() -> None:
    """It asks over HTTP, and the server ends although nobody reads its last line any more."""
    pytest.importorskip("uvicorn")
    assert run("ask_server.py") == "The dog is to the left of the carrot, so yes.\n"


def test_examples_are_short() -> None:
    """30 lines at most."""
    assert all(
        len(path.read_text(encoding="utf-8").splitlines()) <= 30 for path in EXAMPLES.glob("*.py")
    )

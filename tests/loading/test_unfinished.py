"""Writing a quantised folder: interrupted, killed, and twice at the same time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint

from qwen25vl.cli import main
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.errors import CheckpointError, UsageError
from qwen25vl.loading.folder import quantize_folder
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import Int8Linear

INT8, INT4 = Scheme(8), Scheme(4, group_size=32)
LAYER = "model.language_model.layers.1.mlp.down_proj"
MOMENTS = ["conversion.quantise", "folder.shutil.copyfile", "folder.flush", "folder.put_in_place"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c") / "source"
    return write_checkpoint(
        folder, {"added_tokens": []}, dtype=torch.bfloat16, text={"vocab_size": 96}
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_half_way(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ctrl-C left a hidden folder as large as the model; and the next try works."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"qwen25vl.loading.{moment}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize_folder(source, tmp_path / "new", INT8)
    assert [path.name for path in tmp_path.iterdir()] == []
    quantize_folder(source, tmp_path / "new", INT8)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert isinstance(load_model(tmp_path / "new").get_submodule(LAYER), Int8Linear)


@pytest.fixture(scope="module")
def killed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each moment, in which a quantising process was killed then."""
    folder = tmp_path_factory.mktemp("killed")
    program = f"""if True:
        import os, signal, unittest.mock
        from pathlib import Path
        from qwen25vl.loading.folder import quantize_folder
        from qwen25vl.loading.scheme import Scheme
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        for moment in {MOMENTS}:
            if (child := os.fork()) == 0:
                with unittest.mock.patch("qwen25vl.loading." + moment, die):
                    target = Path({str(folder)!r}, moment, "new")
                    quantize_folder({str(source)!r}, target, Scheme(8))
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
    """
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_half_way(source: Path, killed: Path, moment: str) -> None:
    """Nothing by the new name, nothing that loads before all is there, and the next try works and
    says what it found."""
    place = killed / moment
    assert [path.name for path in place.iterdir()] == [".new.unfinished"]
    if moment in ("conversion.quantise", "folder.shutil.copyfile"):
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            load_model(place / ".new.unfinished")
    with pytest.warns(
        UserWarning, match=r"\.new\.unfinished, left behind by a killed run, is replaced"
    ):
        quantize_folder(source, place / "new", INT8)
    assert [path.name for path in place.iterdir()] == ["new"]
    assert isinstance(load_model(place / "new").get_submodule(LAYER), Int8Linear)


def test_two_runs_into_one_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one deleted what the first had written, and both failed with a bare errno. Now it
    is refused by name, under any spelling; other folders are free; afterwards the folder holds a
    checkpoint."""
    (tmp_path / "link").symlink_to(tmp_path)
    refused: list[str] = []

    def second(stage: str, done: int, total: int) -> None:
        if not refused:
            for target in (tmp_path / "new", tmp_path / "link" / ".." / tmp_path.name / "new"):
                assert main(["quantize", str(source), str(target), "--bits", "8", "--force"]) == 2
                refused.append(capsys.readouterr().err)
            quantize_folder(source, tmp_path / "newer", INT8)

    quantize_folder(source, tmp_path / "new", INT8, progress=second)
    assert len(refused) == 2
    for line in refused:
        assert f"another process is writing {tmp_path / 'new'} at this moment" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "new", "newer"]
    assert isinstance(load_model(tmp_path / "new").get_submodule(LAYER), Int8Linear)
    with pytest.raises(UsageError, match="already holds a checkpoint"):
        quantize_folder(source, tmp_path / "new", INT8)


def test_the_folder_that_is_replaced_comes_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between the two renames of --force,
    the old checkpoint was under a hidden name."""
    target = quantize_folder(source, tmp_path / "new", INT8)
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if path.name == ".new.unfinished":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_folder(source, target, INT4, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert isinstance(load_model(target).get_submodule(LAYER), Int8Linear)


def test_ctrl_c_in_the_command(source: Path, tmp_path: Path) -> None:
    """A real SIGINT, while weights are written: exit code 130, one line, an empty place."""
    program = """if True:
        import os, signal, sys
        from qwen25vl.loading import conversion
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
        quantise = conversion.quantise
        conversion.quantise = lambda *a: os.kill(os.getpid(), signal.SIGINT) or quantise(*a)
        from qwen25vl.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    argv = [
        sys.executable,
        "-c",
        program,
        "quantize",
        str(source),
        str(tmp_path / "new"),
        "--bits",
        "8",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == (
        f"qwen25vl: interrupted: {tmp_path / 'new'} was not written, and nothing is left of what "
        "was begun\n"
    )
    assert [*tmp_path.iterdir()] == []

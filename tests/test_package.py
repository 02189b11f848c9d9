"""What the package carries: attribution for the weights, and the built-in model from an archive."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import qwen25vl
from qwen25vl.demo import FOLDER
from train_demo.things import FONT_PACKAGES, NEVER_TRAINED, PACKAGES

ROOT = Path(__file__).parents[1]


def test_attribution_ships_with_the_weights() -> None:
    """Drawings under CC BY need their makers' names wherever the weights go: in the wheel's licence
    files, and beside the weights, from where a quantised copy takes it too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license-files"] == ["LICENSE", "src/qwen25vl/demo/NOTICE"]
    notice = " ".join((FOLDER / "NOTICE").read_text(encoding="utf-8").split())
    for name, package in PACKAGES.items():
        versioned = package.rpartition("@")
        assert (f"{versioned[0]} {versioned[2]}" in notice) == (name != NEVER_TRAINED), package
    for font in FONT_PACKAGES:
        assert font.replace("-", " ").title() in notice
    for licence in ("creativecommons.org/licenses/by/4.0", "apache.org", "/mit", "openfontlicense"):
        assert licence in notice


def test_a_quantised_copy_keeps_it(tmp_path: Path) -> None:
    from qwen25vl.loading.folder import quantize_folder
    from qwen25vl.loading.scheme import Scheme

    target = quantize_folder(FOLDER, tmp_path / "int8", Scheme(8))
    assert (target / "NOTICE").read_bytes() == (FOLDER / "NOTICE").read_bytes()


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "without_the_model"])
def test_from_an_archive(is_whole: bool, tmp_path: Path) -> None:
    """The built-in model was looked for beside a file that an archive does not have. Unpacked, it
    is gone when the process ends; where the archive lacks it, one line says so."""
    source = Path(qwen25vl.__file__).parent
    archive = tmp_path / "app.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for path in source.rglob("*"):
            name = path.relative_to(source.parent)
            is_left_out = path.suffix in (".pyc", ".so", ".cpp", ".h") or path.is_dir()
            if not is_left_out and (is_whole or path.name != "config.json"):
                file.write(path, name)
    program = f"""if True:
        import sys
        # without the finder of the editable installation
        sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
        sys.path.insert(0, {str(archive)!r})
        import qwen25vl
        assert qwen25vl.__file__.startswith({str(archive)!r}), qwen25vl.__file__
        from qwen25vl.cli import main
        sys.exit(main(["run", "Describe a dog.", "--max-new-tokens", "5"]))
    """
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "QWEN25VL_KERNELS": "torch"}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, bool(done.stdout.strip())) == (
        (0, True) if is_whole else (1, False)
    ), done.stderr
    if not is_whole:
        assert done.stderr.splitlines()[-1].startswith("qwen25vl: the demo model is missing")
    assert [*temporary.iterdir()] == []


@pytest.mark.parametrize("user", [{}, {"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "7"}])
def test_idle_threads_spin_as_the_user_says_or_for_a_while(user: dict[str, str]) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    others = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os, qwen25vl; print([os.environ.get(n) for n in {names}])"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, env=others | user, check=True)
    expected = [user.get(name) for name in names] if user else ["2000", "active", "200"]
    assert done.stdout.strip() == str(expected)

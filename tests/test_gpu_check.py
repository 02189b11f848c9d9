"""The check of a GPU, on the CPU: whoever is lent a GPU for half an hour should not find faults of
the program there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import gpu_check
import gpu_steps

SCRIPT = gpu_check.ROOT / "benchmarks" / "gpu_check.sh"
FEW = "machine,parity,devices,quantised,flash,demo,pipeline,tests,speed,speed_int4"


def test_every_step_on_small_models(tmp_path: Path) -> None:
    """A program that is only run where it is needed is broken there. Everything but transformers,
    whose import takes longer than all steps; none may fail."""
    file = tmp_path / "new" / "check.json"
    arguments = ["--device", "cpu", "--small", "--only", FEW, "--json", str(file)]
    environment = {name: v for name, v in os.environ.items() if name != "QWEN25VL_KERNELS"}
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment | {"PYTHON": sys.executable},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["step"] for row in rows} == {*FEW.split(",")}
    assert all(row["result"] == "ok" or row["step"] == "flash" for row in rows)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {len(gpu_check.COLUMNS) + 1}
    speeds = [row for row in rows if row["check"].startswith(("vision", "prefill"))]
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in speeds)


def run_program(
    text: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """The rows where the steps' program is another one."""
    program = tmp_path / "program.py"
    first = '{"step": "speed", "check": "one", "result": "ok"}'
    start = f"import os, sys, time\nopen(sys.argv[1], 'a').write({first!r} + chr(10))\n"
    program.write_text(start + text)
    monkeypatch.setattr(gpu_check, "PROGRAM", program)
    step = gpu_check.Step("speed", 60)
    return gpu_check.run([step], ["speed", "cpu", "small"], [], tmp_path, seconds)


@pytest.mark.parametrize(
    ("text", "result", "note"),
    [
        ("time.sleep(60)", "failed: not done after 1 s", ""),
        ("os.abort()", "failed: ended by SIGABRT", ""),
        ("raise RuntimeError('no driver')", "failed: ended with 1", "RuntimeError: no driver"),
    ],
)
def test_a_step_that_does_not_end_well_is_a_row(
    text: str, result: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One crash of a driver used up the whole lease; what had been found before it counts."""
    rows = run_program(text, 1.0 if "sleep" in text else 30.0, tmp_path, monkeypatch)
    assert [row["result"] for row in rows] == ["ok", result]
    assert note in rows[1]["note"]
    assert all(row["step"] == "speed" for row in rows)


def test_no_time_and_no_packages_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that does not run says why."""
    (row,) = run_program("", 0.0, tmp_path, monkeypatch)
    assert row["result"] == "skipped: no time was left"
    step = gpu_check.Step("flash", 60, ("no_such_package", "json"))
    assert gpu_check.missing(step) == ["no_such_package"]
    assert gpu_check.run([step], [], [], tmp_path, -1.0)[0]["check"] == "flash"


def test_a_failed_check_does_not_end_its_step() -> None:
    """The other numbers of a step are wanted all the same."""

    def steps(job: gpu_steps.Job) -> Iterator[gpu_steps.Check]:
        yield "one", lambda: "fine"
        yield "two", lambda: gpu_steps.require(False, "off by 1")
        yield "three", lambda: str(1 // 0)
        yield "four", lambda: {"seconds": 0.5}
        raise OSError("the end")

    rows = [*gpu_steps.run(steps, gpu_steps.Job(torch.device("cpu"), True))]
    assert [(row["check"], row["result"].partition(" by zero")[0]) for row in rows] == [
        ("one", "ok"),
        ("two", "failed: off by 1"),
        ("three", "failed: ZeroDivisionError: integer division or modulo"),
        ("four", "ok"),
        ("steps", "failed: OSError: the end"),
    ]
    assert (rows[0]["note"], rows[3]["seconds"]) == ("fine", 0.5)


def test_the_minimum_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rows of the same import error say less than one line."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.lacking("cpu") == ""
    assert "sees no CUDA device" in gpu_check.lacking("cuda")
    monkeypatch.setattr(gpu_check, "MINIMUM", ("torch", "no_such_package"))
    assert gpu_check.lacking("cpu").startswith("missing packages: no_such_package; give a folder")


def test_packages_from_elsewhere(tmp_path: Path) -> None:
    """A virtual environment, by its folder, or a plain folder of packages."""
    assert gpu_check.package_folders(None) == []
    assert gpu_check.package_folders(tmp_path) == [str(tmp_path)]
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    assert gpu_check.package_folders(tmp_path) == [str(packages)]


def test_times_of_transformers_stand_beside_ours() -> None:
    """One line for each thing that was measured; what only one has stands alone."""
    ours = {"check": "a", "result": "ok", "engine": "ours", "seconds": 0.5, "peak_bytes": 10**9}
    theirs = ours | {"engine": "transformers", "seconds": 1.5, "peak_bytes": 2 * 10**9}
    rows = [ours, theirs, theirs | {"check": "b"}, ours | {"check": "c", "seconds": None}]
    assert gpu_check.table(rows).splitlines()[2:] == [
        "| a | ok | 500.00 ms | 1500.00 ms | 3.00× | 1.00 GB / 2.00 GB |  |",
        "| c | ok |  |  |  | 1.00 GB |  |",
        "| b | ok |  | 1500.00 ms |  | 2.00 GB |  |",
    ]

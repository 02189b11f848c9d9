"""Whether a GPU gives what the CPU gives, and how fast: one Markdown table and one JSON file.

    bash benchmarks/gpu_check.sh
    bash benchmarks/gpu_check.sh --device cpu --small    # a quick test of this program itself

The package is used from the source folder, without an installation. Each step of gpu_steps.py is a
process of its own with a time limit (with --small all are one): one that fails, hangs or crashes is
a row of the table. Steps whose packages are missing are skipped, with a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("gpu_steps.py")
MINIMUM = ("torch", "safetensors", "tqdm")
PROCESSOR = ("numpy", "PIL", "tokenizers", "jinja2")
COLUMNS = ("check", "result", "here", "transformers", "faster", "peak memory", "note")
ALL_SECONDS = 460


@dataclass(frozen=True)
class Step:
    """needs: packages without which it is skipped; seconds: after which it is ended."""

    name: str
    seconds: int
    needs: tuple[str, ...] = ()


STEPS = (
    Step("machine", 60),
    Step("parity", 60),
    Step("devices", 60),
    Step("quantised", 60),
    Step("flash", 60, ("flash_attn",)),
    Step("demo", 90, PROCESSOR),
    Step("pipeline", 60, PROCESSOR),
    Step("tests", 90, ("pytest",)),
    Step("speed", 180),
    Step("speed_transformers", 120, ("transformers",)),
    Step("speed_int4", 90),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda", help="what is checked against the CPU")
    parser.add_argument("--small", action="store_true", help="tiny models only, for a quick test")
    parser.add_argument("--packages", type=Path, help="a folder of packages or an environment")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu_check.json")
    parser.add_argument("--only", help="steps, separated by commas")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="for everything")
    options = parser.parse_args()
    paths = [str(ROOT / "src"), *package_folders(options.packages)]
    sys.path += paths  # behind this Python's own packages, whose torch knows the GPU
    if problem := lacking(options.device):
        print(f"gpu_check: {problem}", file=sys.stderr)
        return 2
    steps = choose(options.only)
    end = time.monotonic() + options.seconds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        ready = [step for step in steps if not missing(step)]
        rows += [
            skipped(step, f"no {', '.join(missing(step))} here") for step in set(steps) - set(ready)
        ]
        size = "small" if options.small else "whole"
        for group in [ready] if options.small else [[step] for step in ready]:
            names = ",".join(step.name for step in group)
            print(names, file=sys.stderr, flush=True)
            rows += run(
                group, [names, options.device, size], paths, Path(folder), end - time.monotonic()
            )
    names = [step.name for step in steps]
    rows.sort(key=lambda row: names.index(row["step"]))
    print(table(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    everything = {"device": options.device, "small": options.small, "rows": rows}
    options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"written to {options.json}", file=sys.stderr)
    return int(any(row["result"].startswith("failed") for row in rows))


def package_folders(folder: Path | None) -> list[str]:
    """A folder of packages, or those of a virtual environment."""
    if folder is None:
        return []
    found = sorted(folder.resolve().glob("lib*/python3*/site-packages"))
    return [str(path) for path in found] or [str(folder.resolve())]


def lacking(device: str) -> str:
    """What is missing of the minimum; "" if nothing is."""
    if sys.version_info < (3, 11):  # noqa: UP036  whoever has an older one shall read this
        return f"this is Python {sys.version.split()[0]}; it needs 3.11 or newer"
    if missing := [name for name in MINIMUM if find_spec(name) is None]:
        return f"missing packages: {', '.join(missing)}; give a folder that has them, --packages"
    if device == "cpu":
        return ""
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; try --device cpu --small"
    return ""


def choose(only: str | None) -> list[Step]:
    if only is None:
        return list(STEPS)
    names = only.split(",")
    known = [step.name for step in STEPS]
    if unknown := sorted({*names} - {*known}):
        raise SystemExit(f"no such step: {', '.join(unknown)}; there are {', '.join(known)}")
    return [step for step in STEPS if step.name in names]


def missing(step: Step) -> list[str]:
    return [name for name in step.needs if find_spec(name) is None]


def run(
    group: list[Step], arguments: list[str], paths: list[str], folder: Path, seconds_left: float
) -> list[dict[str, Any]]:
    """The rows of some steps in one process, with one more where it did not come to its end."""
    seconds = min(sum(step.seconds for step in group), seconds_left)
    if seconds <= 0:
        return [skipped(step, "no time was left") for step in group]
    written, errors = folder / "rows", folder / "errors"
    written.write_text("")
    environment = os.environ | {"GPU_CHECK_PATHS": os.pathsep.join(paths)}
    command = [sys.executable, str(PROGRAM), str(written)]
    with errors.open("w") as log:
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        outcome = wait(process, seconds)
    rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    if outcome:
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        name = rows[-1]["step"] if rows else group[0].name
        note = lines[-1] if lines else ""
        rows.append({"step": name, "check": name, "result": f"failed: {outcome}", "note": note})
    return rows


def wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """How a process ended, "" where nothing went wrong; at the limit it is ended with its own."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"not done after {seconds:.0f} s"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with {code}" if code else ""


def skipped(step: Step, why: str) -> dict[str, Any]:
    return {"step": step.name, "check": step.name, "result": f"skipped: {why}", "note": ""}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the times of transformers stand beside ours of the same name."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    theirs = {each["check"]: each for each in rows if each.get("engine") == "transformers"}
    for each in rows:
        if each.get("engine") == "ours":
            lines.append(line(each, each, theirs.pop(each["check"], {})))
        elif each.get("engine") != "transformers":
            lines.append(line(each, {}, {}))
    lines += [line(each, {}, each) for each in theirs.values()]  # what only they have
    return "\n".join(lines)


def line(row: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    seconds = ours.get("seconds"), theirs.get("seconds")
    cells = [
        row["check"],
        row["result"],
        *map(show_seconds, seconds),
        f"{seconds[1] / seconds[0]:.2f}×" if all(seconds) else "",
        " / ".join(show_bytes(one.get("peak_bytes")) for one in (ours, theirs) if one),
        row.get("note", ""),
    ]
    return "| " + " | ".join(cell.replace("|", "¦") for cell in cells) + " |"


def show_seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f} ms"


def show_bytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())

"""The same work on this package and on other engines, in interleaved runs, each engine in a process
of its own.

    python benchmarks/peers.py FOLDER [--int4 FOLDER --int8 FOLDER] [--openvino FOLDER] [--llama
    FILE] [--runs 3]

FOLDER is a checkpoint in bfloat16; random weights serve as well as real ones for speed. --int4 and
--int8 are what `qwen25vl quantize` made of it (left out, the weights are quantised while loading).
transformers takes part where it is installed. benchmarks/README.md says how to install the others
and convert for them.

Prints the median of every stage for every engine, and for ours how many times faster it is than the
best of the others. Where the weights of all do not fit in memory together, an engine holds them
only during its turn.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from qwen25vl.memory import available_bytes

ENGINES = Path(__file__).parent / "engines"
OURS = {"ours bf16": None, "ours int8": "int8", "ours int4": "int4"}
HEADROOM_BYTES = 2_500_000_000  # per engine, beside its weights
MEMORY = ("peak memory", "anonymous", "mapped")


class Engine:
    """A process that works when it is told to; its first answer is how long it took to load."""

    def __init__(self, script: str, python: str, job: dict[str, Any], warm_runs: int) -> None:
        command = [python, str(ENGINES / script), json.dumps(job)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.load = self.read()
        for _ in range(warm_runs):
            self.run()

    def read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("RESULT"):
                return json.loads(line.removeprefix("RESULT"))
        raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended without a result")  # type: ignore[arg-type]

    def run(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.read() | self.load

    def close(self) -> None:
        self.process.communicate()


def plan(options: argparse.Namespace) -> dict[str, tuple[str, str, dict[str, Any], int]]:
    """Name -> (script, Python, job, bytes of its weights) of every engine that takes part."""
    side = round(options.picture / 28)
    job = {"picture": options.picture, "new_tokens": options.tokens, "threads": options.threads}
    job |= {"prompt_tokens": side * side + 32, "more": options.more}
    size = bytes_of(options.folder)
    found: dict[str, tuple[str, str, dict[str, Any], int]] = {}
    for name, quantize in OURS.items():
        folder = vars(options).get(quantize or "")
        ours = job | {
            "folder": str(folder or options.folder),
            "quantize": None if folder else quantize,
        }
        found[name] = ("run_ours.py", sys.executable, ours, bytes_of(folder) if folder else size)
    if find_spec("transformers"):
        found["transformers"] = (
            "run_transformers.py",
            sys.executable,
            job | {"folder": str(options.folder)},
            size,
        )
    if options.openvino:
        theirs = job | {"openvino": str(options.openvino)}
        found["openvino"] = (
            "run_openvino.py",
            options.openvino_python,
            theirs,
            2 * bytes_of(options.openvino),
        )
    if options.llama:
        theirs = job | {"llama": str(options.llama)}
        found["llama.cpp"] = (
            "run_llama.py",
            options.llama_python,
            theirs,
            2 * bytes_of(options.llama),
        )
    wanted = options.only.split(",") if options.only else [*found]
    if unknown := set(wanted) - found.keys():
        raise SystemExit(
            f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(found)}"
        )
    return {name: found[name] for name in wanted}


def bytes_of(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(
        file.stat().st_size for file in files if file.suffix in (".safetensors", ".bin", ".gguf")
    )


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every engine's runs, taken in turns."""
    engines = plan(options)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    needed = sum(size + HEADROOM_BYTES for *_, size in engines.values())
    one_at_a_time = options.one_at_a_time or needed > (available_bytes(torch.device("cpu")) or 0)
    open_engines: dict[str, Engine] = {}
    for run in range(options.runs):
        for name, (script, python, job, _) in engines.items():
            print(f"run {run + 1} of {options.runs}: {name}", file=sys.stderr, flush=True)
            engine = open_engines.pop(name, None) or Engine(script, python, job, options.warm_runs)
            results[name].append(engine.run())
            if one_at_a_time or run == options.runs - 1:
                engine.close()
            else:
                open_engines[name] = engine
    return results


def medians(results: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Engine -> stage -> median."""
    return {
        name: {stage: median(run[stage] for run in runs) for stage in runs[0]}
        for name, runs in results.items()
    }


def print_table(found: dict[str, dict[str, float]]) -> None:
    """A line for each stage; behind each of ours, in brackets, the best other's time over it."""
    stages = dict.fromkeys(stage for engine in found.values() for stage in engine)
    others = [name for name in found if name not in OURS]
    print("| seconds |" + "".join(f" {name} |" for name in found) + "\n|---|" + "---|" * len(found))
    for stage in stages:
        best = min((found[name][stage] for name in others if stage in found[name]), default=None)
        cells = []
        for name, engine in found.items():
            value = engine.get(stage)
            if value is None:
                cells.append("")
            elif stage in MEMORY:
                cells.append(f"{value / 1e9:.2f} GB")
            elif "share" in stage:
                cells.append(f"{value:.0%}")
            else:
                ratio = (
                    f" ({best / value:.2f}×)" if best and name in OURS and stage != "load" else ""
                )
                cells.append(f"{value:.3f}{ratio}")
        print(f"| {stage} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--int4", type=Path, help="the checkpoint as `qwen25vl quantize --bits 4` wrote it"
    )
    parser.add_argument("--int8", type=Path, help="the same with --bits 8")
    parser.add_argument("--openvino", type=Path, help="folder as optimum-cli wrote it")
    parser.add_argument(
        "--openvino-python", default=sys.executable, help="the Python that has openvino_genai"
    )
    parser.add_argument("--llama", type=Path, help="GGUF file of the text model")
    parser.add_argument(
        "--llama-python", default=sys.executable, help="the Python that has llama_cpp"
    )
    parser.add_argument(
        "--only", help="engines to run, by their names in the table, with commas between"
    )
    parser.add_argument("--picture", type=int, default=1024, help="side of the picture in pixels")
    parser.add_argument("--tokens", type=int, default=33, help="tokens to write")
    parser.add_argument("--runs", type=int, default=3, help="runs that count")
    parser.add_argument(
        "--warm-runs", type=int, default=1, help="runs before them, each time an engine starts"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one-at-a-time", action="store_true", help="never two engines in memory")
    parser.add_argument(
        "--more",
        action="store_true",
        help="longer contexts, batches, larger pictures, start-up too",
    )
    parser.add_argument("--json", action="store_true", help="print every run as JSON")
    options = parser.parse_args()
    results = measure(options)
    if options.json:
        print(json.dumps(results, indent=1))
        return
    first = next(iter(results.values()))
    print(
        f"{options.picture}² pixels, {options.threads} threads, medians of {len(first)} "
        "interleaved runs\n"
    )
    print_table(medians(results))


if __name__ == "__main__":
    main()

"""The steps of gpu_check.py, in a process of their own:

    python benchmarks/gpu_steps.py FILE STEP,STEP,… DEVICE small|whole

A step is a function that gives checks: a name and what to do, which gives a note for the table or
raises. The rows are written to FILE one by one, so that those of a step that hangs are not lost.
"""

from __future__ import annotations

import copy
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path += os.environ.get("GPU_CHECK_PATHS", "").split(os.pathsep)

import torch
from gpu_models import Check, Job, error, logits_of, require, small_inputs, small_model

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MAX_CHARACTERS = 160


def machine(job: Job) -> Iterator[Check]:
    def describe() -> str:
        parts = [f"Python {sys.version.split()[0]}", f"torch {torch.__version__}"]
        for package in ("transformers", "flash_attn"):
            try:
                parts.append(f"{package} {__import__(package).__version__}")
            except Exception:  # whatever such a package does when it is imported
                parts.append(f"no {package}")
        if job.device.type == "cuda":
            found = torch.cuda.get_device_properties(job.device)
            parts.append(
                f"{found.name}, {found.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
            )
        from qwen25vl.kernels.library import describe as kernels

        return ", ".join([*parts, f"{os.cpu_count()} cores", f"kernels: {kernels()}"])

    yield "machine", describe


def parity(job: Job) -> Iterator[Check]:
    """A random small model on the device, on the CPU, and in float64."""
    exact = logits_of(small_model(torch.float64))
    for dtype, floor in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 1e-2)):
        name = str(dtype).removeprefix("torch.")

        def compare(dtype: torch.dtype = dtype, floor: float = floor) -> str:
            model = small_model(dtype)
            here = error(logits_of(copy.deepcopy(model).to(job.device)), exact)
            if dtype == torch.float16:
                return require(here < floor, f"off by {here:.1e}")
            on_cpu = error(logits_of(model), exact)
            limit = max(floor, 2 * on_cpu)
            return require(here < limit, f"off by {here:.1e}, the CPU by {on_cpu:.1e}")

        if dtype != torch.float16 or job.device.type == "cuda":
            yield f"logits in {name}", compare

    def answers() -> str:
        model = small_model()
        there = copy.deepcopy(model).to(job.device)
        inputs = small_inputs()
        options = {"max_new_tokens": 12, "do_sample": False, "max_repeated_tokens": 0}
        ours = there.generate(**{k: v.to(job.device) for k, v in inputs.items()}, **options)
        same = torch.equal(ours.cpu(), model.generate(**inputs, **options))
        return require(same, f"two answers of 12 tokens are {'' if same else 'not '}the CPU's")

    yield "answers in float32", answers


def devices(job: Job) -> Iterator[Check]:
    """Loading to a device by each of its names; saving from there."""
    from qwen25vl import Qwen2_5_VLForConditionalGeneration as Model

    exact = logits_of(small_model())
    best = "cuda" if torch.cuda.is_available() else "cpu"
    names: dict[str, Any] = {'device_map="auto"': ("auto", best)}
    names[f'device_map="{job.device}"'] = (str(job.device), job.device.type)
    names[f'device_map={{"": "{job.device}"}}'] = ({"": str(job.device)}, job.device.type)
    with tempfile.TemporaryDirectory() as folder:
        small_model().to(job.device).save_pretrained(folder)
        for name, (device_map, kind) in names.items():

            def load(device_map: Any = device_map, kind: str = kind) -> str:
                model = Model.from_pretrained(folder, device_map=device_map)
                require(model.device.type == kind, f"on {model.device}")
                off = error(logits_of(model), exact)
                return require(off < 1e-4, f"on {model.device}, off by {off:.1e}")

            yield name, load


def quantised(job: Job) -> Iterator[Check]:
    """Layers in 8 and 4 bits, which a GPU computes in torch: against the same layers on the CPU."""
    from qwen25vl import Qwen2_5_VLForConditionalGeneration as Model

    with tempfile.TemporaryDirectory() as folder:
        small_model().save_pretrained(folder)
        for scheme in ("int8", "int4", "int4+vision"):
            for dtype in (torch.float32, torch.bfloat16):

                def compare(scheme: str = scheme, dtype: torch.dtype = dtype) -> str:
                    def load(dtype: torch.dtype, device: Any) -> torch.Tensor:
                        model = Model.from_pretrained(
                            folder, quantization_config=scheme, dtype=dtype, device_map=device
                        )
                        return logits_of(model)

                    exact = load(torch.float32, "cpu")
                    here, on_cpu = (error(load(dtype, at), exact) for at in (job.device, "cpu"))
                    limit = max(1e-4, 2 * on_cpu)
                    return require(here < limit, f"off by {here:.1e}, the CPU by {on_cpu:.1e}")

                yield f"{scheme} in {str(dtype).removeprefix('torch.')}", compare


def flash(job: Job) -> Iterator[Check]:
    from qwen25vl import Qwen2_5_VLForConditionalGeneration as Model

    def compare() -> str:
        exact = logits_of(small_model(torch.float64))
        with tempfile.TemporaryDirectory() as folder:
            small_model(torch.bfloat16).save_pretrained(folder)
            options: dict[str, Any] = {"device_map": job.device, "dtype": torch.bfloat16}
            found = {
                name: error(
                    logits_of(Model.from_pretrained(folder, attn_implementation=name, **options)),
                    exact,
                )
                for name in ("flash_attention_2", "sdpa")
            }
        off, usual = found.values()
        return require(off < max(2e-2, 2 * usual), f"off by {off:.1e}, sdpa by {usual:.1e}")

    yield "flash_attention_2", compare


def demo(job: Job) -> Iterator[Check]:
    """The built-in model's answers to a picture and a clip, against those of the CPU."""
    import qwen25vl

    questions: list[tuple[str, dict[str, Any]]] = [
        ("Describe the picture.", {"images": [EXAMPLES / "scene.png"]}),
        ("Detect every animal in JSON.", {"images": [EXAMPLES / "boxes.png"]}),
        ("When does the apple appear?", {"videos": [EXAMPLES / "appears.gif"]}),
    ]

    def ask(device: Any, **options: Any) -> list[str]:
        vlm = qwen25vl.load(device=device, **options)
        media = questions[:1] if job.is_small else questions
        return [vlm.ask(question, max_new_tokens=64, **given).text for question, given in media]

    expected = ask("cpu", dtype="float32")
    for name, options in (
        ("float32", {"dtype": "float32"}),
        ("bfloat16", {"dtype": "bfloat16"}),
        ("int4", {"quantize": "int4"}),
    ):

        def compare(name: str = name, options: dict[str, Any] = options) -> str:
            found = ask(job.device, **options)
            same = sum(one == other for one, other in zip(found, expected, strict=True))
            note = f"{same} of {len(found)} answers are the CPU's in float32; {found[0]}"
            return require(same == len(found) or name != "float32", note)

        yield f"demo model in {name}", compare


def pipeline(job: Job) -> Iterator[Check]:
    import qwen25vl

    def ask() -> str:
        pipe = qwen25vl.pipeline(device=0)
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
        require(pipe.device.type == wanted, f"on {pipe.device}, not on {wanted}")
        content = [{"type": "image", "path": str(EXAMPLES / "scene.png")}]
        content.append({"type": "text", "text": "Describe the picture."})
        messages = [{"role": "user", "content": content}]
        (found,) = pipe(messages, max_new_tokens=32, return_full_text=False)
        return f"on {pipe.device}: {found['generated_text']}"

    yield "pipeline(device=0)", ask


def tests(job: Job) -> Iterator[Check]:
    """The tests that make sense on a device."""

    def run() -> str:
        import pytest

        os.environ["QWEN25VL_TEST_DEVICE"] = str(job.device)
        written = io.StringIO()
        with redirect_stdout(written):
            options = ["-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
            options += ["-p", "no:warnings"]
            code = pytest.main([*options, str(ROOT / "tests" / "engine" / "test_on_gpu.py")])
        lines = written.getvalue().strip().splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
        return require(code == 0, "; ".join(failed[:3]) or lines[-1])

    yield "tests of the engine", run


def note_of(problem: BaseException) -> str:
    text = " ".join(str(problem).split()) or "no message"
    kind = "" if isinstance(problem, AssertionError) else f"{type(problem).__name__}: "
    return kind + text


def run(step: Callable[[Job], Iterator[Check]], job: Job) -> Iterator[dict[str, Any]]:
    """The rows of a step; where one of its checks fails, the others still run."""
    checks = step(job)
    while True:
        check, start = step.__name__, time.monotonic()
        try:
            check, work = next(checks)
            found = work()
            row = found if isinstance(found, dict) else {"note": found}
            row = {"check": check, "result": "ok"} | row
        except StopIteration:
            return
        except Exception as problem:
            row = {"check": check, "result": f"failed: {note_of(problem)[:MAX_CHARACTERS]}"}
        row["note"] = row.get("note", "")[:MAX_CHARACTERS]
        yield row | {"took_seconds": round(time.monotonic() - start, 2)}


def main() -> None:
    import gpu_speed

    file, names, device, size = sys.argv[1:]
    job = Job(torch.device(device), size == "small")
    if job.is_small:
        torch.set_num_threads(1)  # more would wait for each other longer than they compute
    with Path(file).open("a", encoding="utf-8") as rows:
        for name in names.split(","):
            step = globals().get(name) or getattr(gpu_speed, name)
            for row in run(step, job):
                print(json.dumps({"step": name, **row}, ensure_ascii=False), file=rows, flush=True)


if __name__ == "__main__":
    main()

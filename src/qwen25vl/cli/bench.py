"""`qwen25vl bench`: what this machine can do, and how near to it each stage of an answer comes.

The functions that time a stage take a model and a request and nothing else; `benchmarks/peers.py` uses them too.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from qwen25vl import cost
from qwen25vl.answer import Stopwatch
from qwen25vl.cli.checks import check
from qwen25vl.cli.opening import open_model, say
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import UsageError
from qwen25vl.generation.config import GenerationConfig
from qwen25vl.generation.generate import generate_tokens
from qwen25vl.inputs import ModelInputs
from qwen25vl.kernels.limits import Limits, measure_limits
from qwen25vl.kernels.native import describe
from qwen25vl.loading.random import random_model, released_config
from qwen25vl.model.cache import KVCache
from qwen25vl.model.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.prepare import prepare_picture

NUM_TEXT_TOKENS = 32
NUM_NEW_TOKENS = 33


@dataclass(frozen=True)
class Row:
    """One line of the table. rate: operations or bytes per second; limit: of the machine, in the same unit."""

    stage: str
    seconds: float
    tokens_per_second: float | None = None
    rate: float | None = None
    limit: float | None = None
    limit_name: str = ""


def bench(arguments: argparse.Namespace) -> int:
    if arguments.runs < 1 or (arguments.threads or 1) < 1:
        raise UsageError("--runs and --threads must be at least 1")
    if arguments.random and arguments.model:
        raise UsageError("give either -m or --random")
    check(arguments)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    say("measuring the machine")
    limits = measure_limits()
    with peak_memory() as peak:
        say("loading the model")
        model, settings, load = open_timed(arguments)
        picture = arguments.image[0] if arguments.image else drawn_picture(1024)
        rows = [*load, *measure(model, settings, picture, limits, arguments.runs)]
    about = {
        "model": f"{arguments.random} with random weights" if arguments.random else arguments.model or "built-in",
        "weights": f"{arguments.quantize or str(model.dtype).removeprefix('torch.')}",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "kernels": describe(),
    }
    memory = dict(peak)
    if arguments.json:
        print(
            json.dumps(
                {**about, "limits": asdict(limits), "rows": [asdict(r) for r in rows], "memory": memory}, indent=1
            )
        )
    else:
        print(table(about, limits, rows, memory))
    return 0


def open_timed(
    arguments: argparse.Namespace,
) -> tuple[Qwen2_5_VLForConditionalGeneration, ImageSettings, list[Row]]:
    """The model, how it wants its pictures, and the row for loading it (there is none where nothing is loaded)."""
    if arguments.random:
        dtype = torch.float32 if arguments.dtype == "float32" else torch.bfloat16
        return random_model(released_config(arguments.random), arguments.quantize, dtype), ImageSettings(), []
    start = time.perf_counter()
    vlm = open_model(arguments)
    return vlm.model, vlm.processor.image_processor, [Row("loading", time.perf_counter() - start)]


@torch.inference_mode()
def measure(
    model: Qwen2_5_VLForConditionalGeneration, settings: ImageSettings, picture: Any, limits: Limits, runs: int
) -> Iterator[Row]:
    """Time each stage `runs` times, after one run to warm up."""
    config, text = model.config, model.config.text_config
    prepare, inputs = time_preprocessing(model.config, settings, picture, runs + 2)
    grids = inputs.image_grid_thw.tolist()  # type: ignore[union-attr]
    num_tokens = inputs.input_ids.shape[1]
    tasks = []
    for run in range(runs + 1):
        say(f"picture to answer, {run or 'warming up'}")
        tasks.append(time_task(model, fresh(inputs, run), NUM_NEW_TOKENS))
    task = {stage: median(run[stage] for run in tasks[1:]) for stage in tasks[0]}
    operations = cost.vision_operations(config.vision_config, grids)
    vision, prefill = task["images"], task["prefill"] + task["first token"]
    yield Row("preprocessing", prepare)
    yield Row("vision encoder", vision, num_patches(grids) / 4 / vision, operations / vision, limits.bf16, "bf16")
    quantised = (
        weight_bytes(model, "model.language_model.layers.") < cost.layer_weights(text) * text.num_hidden_layers * 1.5
    )
    name, limit = ("int8", limits.int8) if quantised else ("bf16", limits.bf16)
    yield Row("prefill", prefill, num_tokens / prefill, cost.text_operations(text, num_tokens) / prefill, limit, name)
    yield Row("first token", prepare + vision + prefill)
    yield Row("whole task", prepare + sum(task.values()))
    for context, batch in ((num_tokens, 1), (num_tokens, 4), (num_tokens, 8), (500, 1), (8000, 1)):
        if context + 64 > text.max_position_embeddings:
            continue
        say(f"decoding {batch} after {context} tokens")
        took = median(time_decode(model, context, batch, 16) for _ in range(runs))
        moved = read_per_token(model) + batch * cost.cache_bytes(text, context, model.dtype.itemsize)
        name = f"decode ×{batch}" if context == num_tokens else f"decode at {context}"
        yield Row(name, took, batch / took, moved / took, limits.read, "read")


def drawn_picture(width: int, height: int | None = None) -> Image.Image:
    """A picture with something everywhere, the same each time."""
    height = height or width
    noise = torch.randint(0, 255, (3, height // 8 + 1, width // 8 + 1), generator=torch.Generator().manual_seed(0))
    pixels = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]
    return Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).contiguous().numpy())


def time_preprocessing(
    config: Qwen2_5_VLConfig, settings: ImageSettings, picture: Any, runs: int
) -> tuple[float, ModelInputs]:
    """Seconds from a picture to its patches, and a prompt of them and a few words around them."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        prepared = prepare_picture(picture, {}, settings)
        times.append(time.perf_counter() - start)
    patches, grid = prepared.patches, prepared.grid
    slots = [config.image_token_id] * (len(patches) // settings.merge_size**2)
    words = list(range(1, NUM_TEXT_TOKENS - 1))
    ids = [*words[:20], config.vision_start_token_id, *slots, config.vision_end_token_id, *words[20:]]
    ids_tensor = torch.tensor([ids])
    return median(times[1:]), ModelInputs(ids_tensor, torch.ones_like(ids_tensor), patches, torch.tensor([grid]))


def fresh(inputs: ModelInputs, run: int) -> ModelInputs:
    """The same picture to the eye, another one to a cache of pictures."""
    assert inputs.pixel_values is not None
    return replace(inputs, pixel_values=inputs.pixel_values + run * 2**-6)


def time_task(model: Qwen2_5_VLForConditionalGeneration, inputs: ModelInputs, num_new: int) -> dict[str, float]:
    """Seconds of each stage of an answer of `num_new` tokens, as `generate` goes through them."""
    watch = Stopwatch()
    for _ in generate_tokens(model, inputs, GenerationConfig(max_new_tokens=num_new), progress=watch.report):
        pass
    return watch.seconds


def time_decode(model: Qwen2_5_VLForConditionalGeneration, context: int, batch: int, num_tokens: int) -> float:
    """Seconds of one step that writes a token to each of `batch` sequences of `context` tokens."""
    text, language = model.config.text_config, model.model.language_model
    caches = [KVCache(text, model.dtype, capacity=context + num_tokens + 3) for _ in range(batch)]
    for cache in caches:
        cache.storage.normal_()
        cache.length = cache.next_position = context
    token_ids = torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        positions = torch.tensor([cache.length for cache in caches]).expand(3, -1)
        hidden = language.run(language.embed_tokens(token_ids), positions, [1] * batch, caches)
        token_ids.copy_(model.compute_logits(hidden).argmax(-1))

    step()
    step()
    start = time.perf_counter()
    for _ in range(num_tokens):
        step()
    return (time.perf_counter() - start) / num_tokens


def weight_bytes(model: torch.nn.Module, prefix: str = "") -> int:
    """Bytes of the parameters and buffers whose path begins so."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return sum(tensor.numel() * tensor.itemsize for path, tensor in tensors if path.startswith(prefix))


def read_per_token(model: Qwen2_5_VLForConditionalGeneration) -> int:
    """Bytes of the weights that a step of decoding reads: the layers and the head."""
    head = model.lm_head if model.lm_head is not None else model.model.language_model.embed_tokens
    return weight_bytes(model, "model.language_model.layers.") + weight_bytes(head)


def num_patches(grids: Sequence[Sequence[int]]) -> int:
    return sum(t * h * w for t, h, w in grids)


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Bytes at the peak of what happens inside, sampled: resident in all, anonymous, and mapped from files."""
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "mapped"}
    peak, done, status = dict.fromkeys(names.values(), 0), threading.Event(), Path("/proc/self/status")

    def look() -> None:
        while status.exists():
            stopping = done.wait(0.02)
            for name, kilobytes in re.findall(
                r"^(VmRSS|RssAnon|RssFile):\s+(\d+) kB", status.read_text(), re.MULTILINE
            ):
                peak[names[name]] = max(peak[names[name]], int(kilobytes) * 1024)
            if stopping:
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield peak
    done.set()
    thread.join()


def processor_name() -> str:
    import platform

    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def table(about: dict[str, Any], limits: Limits, rows: Sequence[Row], memory: dict[str, int]) -> str:
    lines = [f"{name:11}{value}" for name, value in about.items()]
    lines.append(
        f"{'limits':11}bfloat16 {limits.bf16 / 1e12:.2f} TFLOPS, int8 {limits.int8 / 1e12:.2f} TOPS, "
        f"reading {limits.read / 1e9:.1f} GB/s"
    )
    lines.append(f"\n{'stage':16}{'seconds':>9}{'tokens/s':>10}{'reached':>14}{'of limit':>15}")
    for row in rows:
        tokens = f"{row.tokens_per_second:.1f}" if row.tokens_per_second else ""
        reached = share = ""
        if row.rate and row.limit:
            unit, scale = ("GB/s", 1e9) if row.limit_name == "read" else ("TFLOPS", 1e12)
            reached, share = f"{row.rate / scale:.2f} {unit}", f"{row.rate / row.limit:.0%} {row.limit_name}"
        lines.append(f"{row.stage:16}{row.seconds:>9.4f}{tokens:>10}{reached:>14}{share:>15}")
    if memory["resident"]:
        words = ", ".join(f"{value / 1e9:.2f} {name}" for name, value in memory.items())
        lines.append(f"\npeak memory in GB: {words}")
    return "\n".join(lines)

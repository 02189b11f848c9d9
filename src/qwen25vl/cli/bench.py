"""`qwen25vl bench`: what this machine can do, and how near to it each stage of an answer comes.

The functions that time a stage take a model and a request and nothing else; `benchmarks/peers.py`
uses them too.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from qwen25vl.answer import Stopwatch
from qwen25vl.cli.checks import check
from qwen25vl.cli.opening import open_model, say
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.engine.generate import stream
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.kernels.library import describe
from qwen25vl.measure import cost
from qwen25vl.measure.limits import Limits, measure_limits, measure_reading
from qwen25vl.measure.random_model import random_model, released_config
from qwen25vl.memory import process_bytes
from qwen25vl.model.cache import KVCache, cache_bytes
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.prepare import prepare_picture

NUM_NEW_TOKENS = 33


@dataclass(frozen=True)
class Row:
    """A stage; amount: what it computes or reads, in operations or bytes; limit: which of the
    machine's bounds it; bound: how fast that was just then, where it was measured again."""

    stage: str
    seconds: float
    num_tokens: int = 0
    amount: float = 0
    limit: str = ""
    bound: float = 0

    def to_dict(self, limits: Limits) -> dict[str, Any]:
        row: dict[str, Any] = {"stage": self.stage, "seconds": self.seconds}
        if self.num_tokens:
            row["tokens_per_second"] = self.num_tokens / self.seconds
        if self.limit:
            rate, bound = self.amount / self.seconds, self.bound or getattr(limits, self.limit)
            row |= {"per_second": rate, "limit": self.limit, "of_limit": rate / bound}
        return row


@torch.inference_mode()
def bench(arguments: argparse.Namespace) -> int:
    if arguments.serve:
        from qwen25vl.cli.bench_serve import bench_server

        return bench_server(arguments)
    if arguments.runs < 1 or (arguments.threads or 1) < 1:
        raise UsageError("--runs and --threads must be at least 1")
    if arguments.random and arguments.model:
        raise UsageError("give either -m or --random")
    check(arguments)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    say("loading the model")
    start = time.perf_counter()
    if arguments.random:
        model = random_model(released_config(arguments.random), arguments.quantize)
        settings = ImageSettings()
    else:
        vlm = open_model(arguments)
        model, settings = vlm.model, vlm.processor.image_processor.settings
    rows = [Row("making it up" if arguments.random else "loading", time.perf_counter() - start)]
    picture = arguments.image[0] if arguments.image else drawn_picture(1024)
    prepare, inputs = time_preprocessing(model.config, settings, picture, arguments.runs + 2)
    rows += time_stages(model, inputs, prepare, arguments.runs)
    memory = process_bytes()
    say("measuring the machine")
    limits = measure_limits()
    rows += time_decoding(model, inputs.input_ids.shape[1], arguments.runs)
    about = {
        "model": name_of_model(arguments),
        "weights": arguments.quantize or str(model.dtype).removeprefix("torch."),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "kernels": describe(),
    }
    found = [row.to_dict(limits) for row in rows]
    everything = {**about, "limits": asdict(limits), "stages": found, "memory": memory}
    if arguments.json:
        print(json.dumps(everything, indent=1))
    else:
        print(table(about, limits, found, memory))
    return 0


def name_of_model(arguments: argparse.Namespace) -> str:
    if arguments.random:
        return f"{arguments.random} with random weights"
    return arguments.model or "built-in"


def time_stages(
    model: Qwen2_5_VLForConditionalGeneration, inputs: ModelInputs, prepare: float, runs: int
) -> Iterator[Row]:
    """The stages of an answer to a picture, as `generate` goes through them; prepare:
    seconds of preprocessing."""
    config, text, num_tokens = model.config, model.config.text_config, inputs.input_ids.shape[1]
    tasks = []
    for run in range(runs + 1):
        say(f"from picture to answer: {f'run {run} of {runs}' if run else 'warming up'}")
        tasks.append(time_task(model, inputs, NUM_NEW_TOKENS if run else 2))
    task = {stage: median(run[stage] for run in tasks[1:]) for stage in tasks[0]}
    vision, prefill = task["images"], task["prefill"] + task["first token"]
    operations = cost.vision_operations(config.vision_config, inputs["image_grid_thw"].tolist())
    layers = text.num_hidden_layers * cost.layer_weights(text)
    limit = "int8" if layer_bytes(model) < 1.5 * layers else "bf16"
    yield Row("preprocessing", prepare)
    yield Row(
        "vision encoder",
        vision,
        int((inputs.input_ids == config.image_token_id).sum()),
        operations,
        "bf16",
    )
    yield Row("prefill", prefill, num_tokens, cost.text_operations(text, num_tokens), limit)
    yield Row("first token", prepare + vision + prefill)
    yield Row(f"task, {NUM_NEW_TOKENS} tokens", prepare + sum(task.values()))


def time_decoding(
    model: Qwen2_5_VLForConditionalGeneration, num_tokens: int, runs: int
) -> Iterator[Row]:
    """One step of decoding: of 1, 4 and 8 sequences after `num_tokens`, and of one after 500 and
    8,000. How fast memory is read is measured anew after each: on a shared machine it changes by
    the minute."""
    text, item = model.config.text_config, model.dtype.itemsize
    head = (item if model.int8_head is None else 1) * text.vocab_size * text.hidden_size
    for context, batch in ((num_tokens, 1), (num_tokens, 4), (num_tokens, 8), (500, 1), (8000, 1)):
        if context + 64 > text.max_position_embeddings:
            continue
        say(f"decoding {batch} after {context} tokens")
        took = median(time_decode(model, context, batch, 16) for _ in range(runs))
        amount = layer_bytes(model) + head + batch * cache_bytes(text, context, item)
        yield Row(f"decode ×{batch} at {context}", took, batch, amount, "read", measure_reading(2))


def drawn_picture(width: int, height: int | None = None) -> Image.Image:
    """A picture with something everywhere."""
    return Image.effect_noise((width, height or width), 80).convert("RGB")


def time_preprocessing(
    config: Qwen2_5_VLConfig, settings: ImageSettings, picture: Any, runs: int
) -> tuple[float, ModelInputs]:
    """Seconds from a picture to its patches after one run to warm up,
    and a prompt of them among 32 words."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        prepared = prepare_picture(picture, {}, settings)
        times.append(time.perf_counter() - start)
    assert isinstance(prepared.patches, torch.Tensor)  # nothing was asked to be deferred
    slots = [config.image_token_id] * (len(prepared.patches) // settings.merge_size**2)
    ids = torch.tensor(
        [
            [
                *range(1, 21),
                config.vision_start_token_id,
                *slots,
                config.vision_end_token_id,
                *range(1, 11),
            ]
        ],
        dtype=torch.int64,
        device="cpu",
    )
    return median(times[1:]), ModelInputs(
        ids,
        torch.ones_like(ids),
        prepared.patches,
        torch.tensor([prepared.grid], dtype=torch.int64, device="cpu"),
    )


def time_task(
    model: Qwen2_5_VLForConditionalGeneration, inputs: ModelInputs, num_new: int, **options: Any
) -> dict[str, float]:
    """Seconds of each stage of an answer of `num_new` tokens:
    images, prefill, first token, decode."""
    watch, config = (
        Stopwatch(),
        GenerationConfig(max_new_tokens=num_new, max_repeated_tokens=0, **options),
    )
    for _ in stream(model.engine, inputs, config, progress=watch.report):
        pass
    return watch.seconds


def time_decode(
    model: Qwen2_5_VLForConditionalGeneration, context: int, batch: int, num_tokens: int
) -> float:
    """Seconds of one step that writes a token to each of `batch` sequences of `context` tokens."""
    text, language = model.config.text_config, model.model.language_model
    caches = [KVCache(text, model.dtype, capacity=context + num_tokens + 3) for _ in range(batch)]
    for cache in caches:
        cache.storage.fill_(0.01)
        cache.length = cache.next_position = context
    token_ids = torch.zeros(batch, dtype=torch.long, device="cpu")

    def step() -> None:
        positions = torch.tensor(
            [cache.length for cache in caches], dtype=torch.int64, device="cpu"
        ).expand(3, -1)
        hidden = language.run(language.embed_tokens(token_ids), positions, [1] * batch, caches)
        token_ids.copy_(model.compute_logits(hidden).argmax(-1))

    step()
    step()
    start = time.perf_counter()
    for _ in range(num_tokens):
        step()
    return (time.perf_counter() - start) / num_tokens


def layer_bytes(model: Qwen2_5_VLForConditionalGeneration) -> int:
    """Bytes of the decoder layers' weights as they are stored."""
    layers = model.model.language_model.layers
    return sum(
        tensor.numel() * tensor.itemsize for tensor in (*layers.parameters(), *layers.buffers())
    )


def processor_name() -> str:
    path = Path("/proc/cpuinfo")
    found = (
        re.search(r"model name\s*: (.*)", path.read_text(encoding="utf-8"))
        if path.exists()
        else None
    )
    return found[1] if found else platform.processor() or platform.machine()


def table(
    about: dict[str, Any], limits: Limits, stages: list[dict[str, Any]], memory: dict[str, int]
) -> str:
    lines = [f"{name:11}{value}" for name, value in about.items()]
    lines.append(
        f"{'limits':11}bfloat16 {limits.bf16 / 1e12:.2f} TFLOPS, int8 {limits.int8 / 1e12:.2f} "
        f"TOPS, reading {limits.read / 1e9:.1f} GB/s"
    )
    if memory:
        lines.append(
            f"{'memory':11}"
            + ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in memory.items())
        )
    lines.append(f"\n{'stage':20}{'seconds':>9}{'tokens/s':>10}{'reached':>14}{'of the limit':>15}")
    for row in stages:
        tokens = f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else ""
        reached = share = ""
        if "limit" in row:
            unit, scale = ("GB/s", 1e9) if row["limit"] == "read" else ("TFLOPS", 1e12)
            reached, share = (
                f"{row['per_second'] / scale:.2f} {unit}",
                f"{row['of_limit']:.0%} {row['limit']}",
            )
        lines.append(
            f"{row['stage']:20}{row['seconds']:>9.4f}{tokens:>10}{reached:>14}{share:>15}".rstrip()
        )
    return "\n".join(lines)

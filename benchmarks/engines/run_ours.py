"""This package. Job: folder, quantize, picture (side in pixels), new_tokens, threads, more."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from protocol import Run, memory, serve, timed

from qwen25vl import Qwen2_5_VLForConditionalGeneration
from qwen25vl.cli.bench import (
    drawn_picture,
    layer_bytes,
    time_decode,
    time_preprocessing,
    time_task,
)
from qwen25vl.measure.limits import measure_limits
from qwen25vl.model.cache import cache_bytes
from qwen25vl.processing.image import ImageSettings

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"


def open_engine(job: dict[str, Any]) -> Run:
    torch.set_num_threads(job["threads"])
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        job["folder"], dtype="bfloat16", quantization_config=job["quantize"]
    )
    first_use, _ = timed(lambda: time_decode(model, 1, 1, 1))
    settings, config, side = ImageSettings(), model.config, job["picture"]
    picture = drawn_picture(side)
    _, inputs = time_preprocessing(config, settings, picture, 2)
    num_runs, held = 0, {"first use": first_use}

    def run() -> dict[str, float]:
        nonlocal num_runs, held
        num_runs += 1
        preprocessing, _ = time_preprocessing(config, settings, picture, 4)
        task = time_task(model, inputs, job["new_tokens"])
        if num_runs == 1:  # before anything else than the task needs memory
            held |= memory()
        limits = measure_limits()
        seconds = {
            "preprocessing": preprocessing,
            "vision": task["images"],
            "prefill": task["prefill"] + task["first token"],
            "decode": task["decode"] / (job["new_tokens"] - 1),
            "task": preprocessing + sum(task.values()),
        }
        text = config.text_config
        head_item = 2 if model.int8_head is None else 1
        read = layer_bytes(model) + head_item * text.vocab_size * text.hidden_size
        read += cache_bytes(text, inputs.input_ids.shape[1])
        return (
            seconds
            | {"decode share of read limit": read / seconds["decode"] / limits.read}
            | more()
            | held
        )

    def more() -> dict[str, float]:
        """What only this engine is asked for."""
        if not job["more"]:
            return {}
        context = inputs.input_ids.shape[1]
        found = {f"decode ×{batch}": time_decode(model, context, batch, 16) for batch in (4, 8)}
        found |= {
            f"decode at {tokens}": time_decode(model, tokens, 1, 16) for tokens in (500, 8000)
        }
        found["preprocessing 4000×3000"], _ = time_preprocessing(
            config, settings, drawn_picture(4000, 3000), 3
        )
        for factor in (2, 4):
            _, larger = time_preprocessing(
                config, settings, drawn_picture(round(side * factor**0.5)), 2
            )
            pixels = larger.pixel_values.bfloat16()
            grid_thw = larger.image_grid_thw
            found[f"vision ×{factor} pixels"], _ = timed(partial(model.visual, pixels, grid_thw))
        found["start to first token"] = start_to_first_token()
        return found

    return run


def start_to_first_token() -> float:
    """Seconds of `qwen25vl run` with the built-in model,
    from the shell to the first letter of its answer."""
    command = [sys.executable, "-m", "qwen25vl", "run", "Describe the picture.", "-i", str(SCENE)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - start


if __name__ == "__main__":
    with torch.inference_mode():
        serve(open_engine)

"""OpenVINO GenAI. Job: openvino (the converted folder), picture, new_tokens, threads.

Its preprocessing is part of `vision`."""

from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Run, serve, timed

QUESTION = "Describe the picture in a few words, and then in a few more."


def open_engine(job: dict[str, Any]) -> Run:
    pipeline = openvino_genai.VLMPipeline(
        job["openvino"], "CPU", INFERENCE_NUM_THREADS=job["threads"]
    )
    options = openvino_genai.GenerationConfig(
        max_new_tokens=job["new_tokens"], ignore_eos=True, do_sample=False
    )
    random = np.random.default_rng(0)

    def run() -> dict[str, float]:
        pixels = random.integers(0, 255, (job["picture"], job["picture"], 3), dtype=np.uint8)
        task, answer = timed(
            lambda: pipeline.generate(
                QUESTION, images=[openvino.Tensor(pixels)], generation_config=options
            )
        )
        metrics = answer.perf_metrics
        vision = metrics.get_prepare_embeddings_duration().mean / 1000
        prefill = metrics.get_ttft().mean / 1000 - vision
        return {
            "vision": vision,
            "prefill": prefill,
            "decode": metrics.get_tpot().mean / 1000,
            "task": task,
        }

    return run


if __name__ == "__main__":
    serve(open_engine)

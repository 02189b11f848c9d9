"""The same work on this package and on transformers, stage by stage, in interleaved runs, each in its own process.

    python benchmarks/peers.py FOLDER [--picture 1024] [--tokens 16] [--runs 3]

FOLDER is a checkpoint (random weights serve as well as real ones for speed). Stages: vision encoder, prefill (the
prompt with its visual tokens given), decode. Prints the median of each and the ratio transformers / ours; above 1 is
faster. Needs memory for the weights twice.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

IMAGE, START, END = 151655, 151652, 151653


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def run_ours(model: Any, inputs: dict[str, torch.Tensor], num_tokens: int) -> dict[str, float]:
    vision, tokens = timed(lambda: model.visual(inputs["pixel_values"], inputs["image_grid_thw"]))
    positions, _ = model.model.get_rope_index(inputs["input_ids"], inputs["image_grid_thw"])

    def prefill() -> Any:
        embeds = model.model.embed(inputs["input_ids"][0], tokens)[None]
        return model(inputs_embeds=embeds, position_ids=positions, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        nonlocal out
        for _ in range(num_tokens):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)

    took, out = timed(prefill)
    return {"vision": vision, "prefill": took, "decode": timed(decode)[0] / num_tokens}


def run_theirs(model: Any, inputs: dict[str, torch.Tensor], num_tokens: int) -> dict[str, float]:
    grid = inputs["image_grid_thw"]
    vision, tokens = timed(lambda: model.model.visual(inputs["pixel_values"], grid_thw=grid).pooler_output)
    ids = inputs["input_ids"]
    positions, deltas = model.model.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).long(), image_grid_thw=grid)

    def prefill() -> Any:
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == IMAGE)[..., None], tokens)
        return model(inputs_embeds=embeds, position_ids=positions, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        nonlocal out
        for index in range(num_tokens):
            position = (ids.shape[1] + index + deltas).expand(3, 1, 1)
            out = model(out.logits[:, -1:].argmax(-1), position_ids=position, past_key_values=out.past_key_values)

    took, out = timed(prefill)
    return {"vision": vision, "prefill": took, "decode": timed(decode)[0] / num_tokens}


def work(engine: str, folder: str, inputs: dict[str, torch.Tensor], num_tokens: int, pipe: Any) -> None:
    """A process of its own per engine, with the memory allocator as its users have it; one run per message."""
    model: Any
    if engine == "ours":
        from qwen25vl import Qwen2_5_VLForConditionalGeneration

        model, run = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype="bfloat16"), run_ours
    else:
        from transformers import Qwen2_5_VLForConditionalGeneration as Reference

        model, run = Reference.from_pretrained(folder, dtype=torch.bfloat16).eval(), run_theirs
    with torch.inference_mode():
        while pipe.recv():
            pipe.send(run(model, inputs, num_tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--picture", type=int, default=1024, help="side of the picture in pixels")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to decode")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    side = round(options.picture / 28) * 2
    ids = [151644, *range(1000, 1020), START, *[IMAGE] * (side * side // 4), END, *range(2000, 2010)]
    pixels = torch.randn(side * side, 1176, generator=torch.Generator().manual_seed(0)).bfloat16()
    grid = torch.tensor([[1, side, side]])
    inputs = {"input_ids": torch.tensor([ids]), "image_grid_thw": grid, "pixel_values": pixels}

    context = multiprocessing.get_context("spawn")
    pipes, rows, processes = {}, {}, []
    for engine in ("ours", "transformers"):
        pipes[engine], far_end = context.Pipe()
        rows[engine] = []
        process = context.Process(
            target=work, args=(engine, options.folder, inputs, options.tokens, far_end), daemon=True
        )
        process.start()
        processes.append(process)
    for _ in range(options.runs + 1):  # the first run warms up
        for engine, pipe in pipes.items():
            pipe.send(True)
            rows[engine].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    print(f"{len(ids)} prompt tokens, {torch.get_num_threads()} threads, median of {options.runs} interleaved runs")
    print(f"{'stage':10}{'ours':>12}{'transformers':>15}{'ratio':>8}")
    for stage in ("vision", "prefill", "decode"):
        a, b = (median(run[stage] for run in rows[name][1:]) for name in ("ours", "transformers"))
        print(f"{stage:10}{a:>10.3f} s{b:>13.3f} s{b / a:>8.2f}")


if __name__ == "__main__":
    main()

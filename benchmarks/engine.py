"""What the engine promises about time, on a model of released shapes with random weights.

    python benchmarks/engine.py [--size 3b] [--quantize int4] [--only again,batch,gap]

again: time to the first token of a second question about the same picture, and of the turns of a
conversation. batch: tokens per second of 1, 8 and 32 answers at once. gap: the longest gap between
two tokens of an answer while a picture is encoded and a long prompt is read, and how much longer
all of it takes than one after the other.
"""

import argparse
import threading
import time
from collections.abc import Iterator
from statistics import median

import torch

from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.engine.generate import ChunkStream
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.inputs import ModelInputs, Patches
from qwen25vl.measure.random_model import random_model, released_config

Model = Qwen2_5_VLForConditionalGeneration
GRID = (1, 74, 74)  # of a picture of 1036 × 1036 pixels
CONTEXT = 1000  # tokens of each prompt of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="3b")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--only", default="again,batch,gap")
    arguments = parser.parse_args()
    model = random_model(released_config(arguments.size), arguments.quantize)
    rows = {"again": ask_again, "batch": write_together, "gap": measure_gap}
    for name in arguments.only.split(","):
        for row in rows[name](model):
            print(row, flush=True)


def text(num_tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, 100_000, (num_tokens,), generator=generator).tolist()


def prompt(model: Model, ids: list[int], picture: int | None = None, seed: int = 0) -> ModelInputs:
    """Some text, a picture by number, and the ids."""
    if picture is None:
        row = torch.tensor([ids])
        return ModelInputs(row, torch.ones_like(row))
    slots = [model.config.image_token_id] * (GRID[1] * GRID[2] // 4)
    row = torch.tensor([[*text(20), *slots, *ids]])
    generator = torch.Generator().manual_seed(picture)
    patches = torch.randn(GRID[1] * GRID[2], 1176, generator=generator).bfloat16()
    return ModelInputs(row, torch.ones_like(row), Patches([patches]), torch.tensor([GRID]))


def start(
    model: Model,
    inputs: ModelInputs,
    num_new: int,
    prefixes: PrefixCache | None = None,
    visual: VisualCache | None = None,
) -> ChunkStream:
    return model.stream(
        inputs,
        None,
        max_new_tokens=num_new,
        eos_token_id=(),
        max_repeated_tokens=0,
        prefix_cache=prefixes,
        visual_cache=visual,
    )


def first_token(stream: ChunkStream) -> float:
    begin = time.perf_counter()
    next(stream)
    return time.perf_counter() - begin


def ask_again(model: Model) -> Iterator[str]:
    prefixes, visual = PrefixCache(2**30), VisualCache(2**28)
    history = text(20, 1)
    seconds = []
    new_tokens = []
    for turn in range(10):
        stream = start(model, prompt(model, history, picture=1), 12, prefixes, visual)
        seconds.append(first_token(stream))
        new_tokens.append(20 + GRID[1] * GRID[2] // 4 + len(history) - stream.num_reused)
        answer = [chunk.token for chunk in stream]
        history = [*history, *answer, *text(20, 2 + turn)]
    other = start(model, prompt(model, text(25, 99), picture=1), 2, prefixes, visual)
    second = first_token(other)
    ratio = seconds[0] / second
    yield f"first question {seconds[0]:.2f} s, a second one {second:.2f} s: 1/{ratio:.0f}"
    turns = ", ".join(f"{s:.2f}" for s in seconds[1:])
    yield f"turns 2 to 10 of a conversation: {turns} s for {new_tokens[1:]} tokens"


def write_together(model: Model) -> Iterator[str]:
    """All prompts begin alike, so that a kept cache spares reading them; their answers do not
    depend on that."""
    prefixes = PrefixCache(2**30)
    ids = text(CONTEXT)
    for _ in start(model, prompt(model, ids), 2, prefixes):
        pass
    alone = 0.0
    for count in (1, 8, 32):
        num_new = 33 if count < 32 else 17
        rows = torch.tensor([[*ids[:-1], 1000 + row] for row in range(count)])
        stream = start(model, ModelInputs(rows, torch.ones_like(rows)), num_new, prefixes)
        for _ in range(count):
            next(stream)  # the first token of each
        begin = time.perf_counter()
        for _ in stream:
            pass
        rate = count * (num_new - 1) / (time.perf_counter() - begin)
        alone = alone or rate
        yield f"{count} answers: {rate:.1f} tokens/s, {rate / alone:.2f}×"


def measure_gap(model: Model) -> Iterator[str]:
    """One answer of 100 tokens; beside it a question about a picture and a prompt of 4,000
    tokens."""
    jobs = [(prompt(model, text(20), picture=2), 2), (prompt(model, text(4000, 3)), 2)]
    begin = time.perf_counter()
    for inputs, count in jobs:
        for _ in start(model, inputs, count):
            pass
    one_by_one = time.perf_counter() - begin

    jobs = [(prompt(model, text(20), picture=3), 2), (prompt(model, text(4000, 4)), 2)]
    finished: list[float] = []

    def work(inputs: ModelInputs, count: int) -> None:
        for _ in start(model, inputs, count):
            pass
        finished.append(time.perf_counter())

    writer = start(model, prompt(model, text(200, 5)), 2000)
    next(writer)
    gaps, steps = [], []
    for _ in range(10):
        steps.append(first_token(writer))
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    begin = last = time.perf_counter()
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    num_written = 0
    while len(finished) < len(jobs):
        next(writer)
        num_written += 1
        gaps.append(time.perf_counter() - last)
        last = time.perf_counter()
    together = max(finished) - begin
    writer.close()
    for thread in threads:
        thread.join()
    expected = one_by_one + num_written * median(steps)
    yield (
        f"longest gap {max(gaps):.2f} s, median {median(gaps):.2f} s, "
        f"budget {model.engine.pace.step_seconds} s"
    )
    yield (
        f"picture and prompt alone {one_by_one:.1f} s, and {num_written} tokens of "
        f"{median(steps):.3f} s: {expected:.1f} s; together {together:.1f} s, "
        f"{together / expected - 1:+.1%}"
    )


if __name__ == "__main__":
    main()

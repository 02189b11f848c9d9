"""How much prompt lookup brings: on texts that repeat themselves, on texts that do not, and at
which cost of a pass.

    python benchmarks/prompt_lookup.py                          # the built-in model
    python benchmarks/prompt_lookup.py --random 3b --quantize int4

Weights without knowledge copy nothing, so the answer is prescribed: the model's passes are real,
and the token that it "chooses" is the next of a given text, whatever its logits say. Each text is
written in turns with and without lookup, after `--context` tokens of prompt; the ratio of median
times is printed with the passes taken, then the time of one pass over 1, 2, 4, … rows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from qwen25vl.generation import generate as loop

import qwen25vl
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.inputs import ModelInputs
from qwen25vl.measure.random_model import random_model, released_config
from qwen25vl.model.cache import KVCache


def texts(context: int, length: int, vocab: int) -> dict[str, tuple[list[int], list[int]]]:
    """(prompt, answer) by name; tokens are drawn with frequencies as 1/rank,
    as words of a language are."""
    dice = random.Random(0)
    weights = [1 / (rank + 3) for rank in range(min(vocab, 5000) - 100)]

    def draw(n: int) -> list[int]:
        return [100 + t for t in dice.choices(range(len(weights)), weights, k=n)]

    prompt = draw(context)
    start = dice.randrange(context - min(length, context // 2))
    copied = [
        t if dice.random() < 0.95 else draw(1)[0] for t in (prompt * 2)[start : start + length]
    ]
    keys, table = draw(24), []
    while len(table) < length:  # a table or JSON: the same keys, other values
        table += [token for key in range(0, 24, 6) for token in (*keys[key : key + 6], *draw(3))]
    return {
        "copies its prompt": (prompt, (prompt * 2)[start : start + length]),
        "copies 95 % of it": (prompt, copied),
        "keys and values": (prompt, table[:length]),
        "repeats nothing": (prompt, draw(length)),
        # every pair recurs, few go on alike
        "misleads": (prompt, dice.choices(range(100, 112), k=length)),
    }


def write(
    model: Any, prompt: Sequence[int], answer: Sequence[int], num_tokens: int
) -> tuple[float, int]:
    """Seconds after the first token, and passes, to write the prescribed answer."""
    config = GenerationConfig(
        max_new_tokens=len(answer),
        prompt_lookup_num_tokens=num_tokens,
        eos_token_id=(),
        max_repeated_tokens=0,
    )
    choose, compute, written, passes = loop.choose_tokens, model.compute_logits, [0], [0]

    def prescribed(scores: torch.Tensor, *rest: Any) -> torch.Tensor:
        choose(scores, *rest)  # its time counts
        written[0] += 1
        return torch.tensor([answer[written[0] - 1]])

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        passes[0] += 1
        return compute(hidden)  # type: ignore[no-any-return]

    ids = torch.tensor([prompt])
    inputs = ModelInputs(ids, torch.ones_like(ids))
    loop.choose_tokens, model.compute_logits = prescribed, counted  # type: ignore[assignment]
    try:
        steps = loop.generate_tokens(model, inputs, config)
        next(steps)
        start = time.perf_counter()
        for _ in steps:
            pass
        return time.perf_counter() - start, passes[0] - 1
    finally:
        loop.choose_tokens = choose
        del model.compute_logits


@torch.inference_mode()
def pass_seconds(model: Any, context: int, num_rows: int, runs: int = 7) -> float:
    """Median seconds of one pass over so many rows of one sequence after `context` tokens,
    logits included."""
    text = model.model.language_model
    cache = KVCache(model.config.text_config, model.dtype, model.device, context + num_rows)
    cache.storage.normal_()
    embeds = text.embed_tokens(torch.arange(100, 100 + num_rows))
    seconds = []
    for _ in range(runs):
        cache.length = context
        start = time.perf_counter()
        model.compute_logits(
            text.run(
                embeds, torch.arange(context, context + num_rows).expand(3, -1), [num_rows], [cache]
            )
        )
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", help="checkpoint folder or hub name (the built-in model)")
    parser.add_argument(
        "--random", choices=("3b", "7b"), help="random weights of a released model's size instead"
    )
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--num-tokens",
        type=int,
        nargs="+",
        default=[10],
        help="prompt_lookup_num_tokens to try (10)",
    )
    parser.add_argument("--context", type=int, default=600)
    parser.add_argument("--length", type=int, default=120)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    if given.random:
        model = random_model(released_config(given.random), given.quantize)
    else:
        model = qwen25vl.load(given.model, quantize=given.quantize, dtype=given.dtype).model
    for name, (prompt, answer) in texts(
        given.context, given.length, model.config.text_config.vocab_size
    ).items():
        tried: dict[int, list[tuple[float, int]]] = {n: [] for n in (0, *given.num_tokens)}
        for _ in range(given.runs):
            for num_tokens, results in tried.items():
                results.append(write(model, prompt, answer, num_tokens))
        plain = statistics.median(seconds for seconds, _ in tried[0])
        for num_tokens in given.num_tokens:
            seconds = statistics.median(seconds for seconds, _ in tried[num_tokens])
            print(
                f"{name:18} lookup {num_tokens:3}: {plain / seconds:5.2f} times as fast "
                f"({tried[num_tokens][0][1]} passes instead of {tried[0][0][1]})",
                flush=True,
            )
    single = pass_seconds(model, given.context, 1)
    for num_rows in (1, 2, 4, 8, 16, 32):
        seconds = pass_seconds(model, given.context, num_rows)
        print(
            f"a pass over {num_rows:2} rows: {1e3 * seconds:8.2f} ms, {seconds / single:5.2f} of "
            "one row"
        )


if __name__ == "__main__":
    main()

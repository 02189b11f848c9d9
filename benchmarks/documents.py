"""Pages a second of a folder as a batch job, against a loop of `ask`, and the memory of long jobs.

    python benchmarks/documents.py                                # the built-in model, 60 pages
    python benchmarks/documents.py --model FOLDER --pages 20 --side 896 --new 200
    python benchmarks/documents.py --pages 1000 --side 112 --replicas 2
    python benchmarks/documents.py --memory 1000 10000            # of so many pages

Both ways load the model once, ask the same question about the same files and take the likeliest
tokens; the texts are compared.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from PIL import Image, ImageDraw

import qwen25vl
from qwen25vl.documents.report import Report
from qwen25vl.documents.results import Result
from qwen25vl.memory import process_bytes

QUESTION = "What is in the picture?"
WORDS = "invoice total amount date number street city due paid item price tax sum page of".split()


def draw(number: int, side: int) -> Image.Image:
    """A page of words and lines, another one for each number."""
    draws = random.Random(number)
    picture = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(picture)
    for row in range(8, side - 16, 20):
        words = " ".join(draws.choice(WORDS) for _ in range(side // 48))
        pen.text((8, row), words, fill="black")
    pen.rectangle((8, 8, side - 8, 8 + draws.randrange(side // 2)), outline="red", width=2)
    return picture


def draw_folder(folder: Path, number: int, side: int) -> list[Path]:
    paths = [folder / f"{each:05}.png" for each in range(number)]
    for each, path in enumerate(paths):
        draw(each, side).save(path)
    return paths


def yield_from(results: Generator[Result, None, Report], texts: dict[str, str | None]) -> Report:
    """Fills in the texts; returns what the job says of itself."""
    while True:
        try:
            result = next(results)
        except StopIteration as stop:
            report: Report = stop.value
            return report
        texts[result.source] = result.text


def compare(arguments: argparse.Namespace) -> None:
    vlm = qwen25vl.load(arguments.model, quantize=arguments.quantize)
    with tempfile.TemporaryDirectory() as name:
        paths = draw_folder(Path(name), arguments.pages, arguments.side)
        vlm.ask(QUESTION, [paths[0]], max_new_tokens=2)
        vlm.prefix_cache = vlm.visual_cache = None
        start = time.perf_counter()
        options = {"max_new_tokens": arguments.new, "temperature": 0.0}
        alone = {str(path): vlm.ask(QUESTION, [path], **options).text for path in paths}
        loop = time.perf_counter() - start
        start = time.perf_counter()
        results = qwen25vl.batch(
            name, QUESTION, model=arguments.model if arguments.replicas > 1 else vlm,
            replicas=arguments.replicas, max_new_tokens=arguments.new,
            max_in_flight=arguments.in_flight,
        )  # fmt: skip
        texts: dict[str, str | None] = {}
        report = yield_from(results, texts)
        whole = time.perf_counter() - start
    print(f"{arguments.pages} pages of {arguments.side}×{arguments.side}, {arguments.new} tokens")
    print(f"  loop of ask   {arguments.pages / loop:7.2f} pages/s   {loop:6.1f} s")
    print(f"  batch         {arguments.pages / whole:7.2f} pages/s   {whole:6.1f} s")
    times = report.rate * loop / arguments.pages
    print(f"  once started  {report.rate:7.2f} pages/s   {times:6.2f} ×")
    print(f"  equal texts   {sum(texts[path] == text for path, text in alone.items())}")


def measure_memory(arguments: argparse.Namespace) -> None:
    vlm = qwen25vl.load(arguments.model, quantize=arguments.quantize)
    with tempfile.TemporaryDirectory() as name:
        pages = [draw(each, 112) for each in range(20)]
        for number in arguments.memory:
            path = Path(name) / f"{number}.pdf"
            many = [pages[each % 20] for each in range(number)]
            many[0].save(path, save_all=True, append_images=many[1:])
            output = Path(name) / f"{number}.jsonl"
            results = qwen25vl.batch(path, QUESTION, model=vlm, output=output, max_new_tokens=1)
            most = 0
            for done, _ in enumerate(results):
                if done % 50 == 0:
                    resident = process_bytes()
                    most = max(most, resident["anonymous"] + resident["mapped"])
            print(f"{number:7} pages: {most / 2**20:.0f} MiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="default: the built-in model")
    parser.add_argument("--quantize")
    parser.add_argument("--pages", type=int, default=60)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--new", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--in-flight", type=int)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--memory", type=int, nargs="+", metavar="PAGES")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()

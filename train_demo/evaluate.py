"""Ask the built-in model about scenes that it has never seen, and count the right answers.

python -m train_demo.evaluate [--model FOLDER] [--scenes 100] [--misses]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from PIL import Image

import qwen25vl
from train_demo.questions import ABILITIES, ask
from train_demo.scenes import COLOURS, SHAPES, SIZES, Scene, draw, make_scene

HELD_OUT_SEED = "held out"
REQUIRED = ("description", "colour", "count")
NAMES = re.compile(f"(?:{'|'.join(SIZES)}) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})")


def held_out_scenes(num_scenes: int, seed: str = HELD_OUT_SEED) -> Iterator[tuple[Scene, Image.Image, Random]]:
    """Scenes in pictures of any size from 120 to 480 pixels a side, and what chooses the questions about each."""
    for index in range(num_scenes):
        rng = Random(f"{seed}/{index}")
        width = rng.randint(120, 480)
        height = min(480, max(120, round(width * rng.uniform(0.6, 1.6))))
        scene = make_scene(rng, width, height)
        yield scene, draw(scene, rng), rng


def is_right(ability: str, answer: str, expected: str) -> bool:
    """A description must name the same things, by size, colour and shape; other answers must be the same."""
    if ability == "description":
        return sorted(NAMES.findall(answer)) == sorted(NAMES.findall(expected))
    return answer.strip() == expected


def answer_scene(
    vlm: qwen25vl.VisionLanguageModel, scene: Scene, picture: Image.Image, rng: Random
) -> dict[str, tuple[str, str, str]]:
    """ability -> (question, expected, answer), for those abilities that the scene has a question for."""
    answers = {}
    for ability in ABILITIES:
        if turn := ask(rng, scene, ability):
            question, expected = turn
            answers[ability] = question, expected, vlm.ask(question, images=[picture], max_new_tokens=80).text
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint folder; by default the one in the package")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--misses", action="store_true", help="print every wrong answer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = qwen25vl.load(options.model)
    right: dict[str, list[bool]] = {
        ability: [] for ability in (*ABILITIES, "description with places", "all required")
    }
    for number, (scene, picture, rng) in enumerate(held_out_scenes(options.scenes)):
        answers = answer_scene(vlm, scene, picture, rng)
        scores = {ability: is_right(ability, answer, expected) for ability, (_, expected, answer) in answers.items()}
        scores["description with places"] = answers["description"][2] == answers["description"][1]
        scores["all required"] = all(scores[ability] for ability in REQUIRED)
        for ability, score in scores.items():
            right[ability].append(score)
            if options.misses and not score and ability in answers:
                question, expected, answer = answers[ability]
                print(f"scene {number} {scene.width}×{scene.height} {scene.ground}: {question} {expected} — {answer}")
    print("| ability | right | asked |\n|---|---|---|")
    for ability, scores_of in right.items():
        print(f"| {ability} | {sum(scores_of)} | {len(scores_of)} |")


if __name__ == "__main__":
    main()

"""Ask the built-in model about pictures and clips of a seed that it was never trained on, and count
what is right.

    python -m train_demo.evaluate [--model FOLDER] [--examples 500] [--only colour,boxes] [--misses]
    [--enlarge] python -m train_demo.evaluate --model FOLDER --seed choosing      # to choose
    between checkpoints: other questions

Scenes have 16 to 576 visual tokens (about 100 to 680 pixels a side), words 16 to 256, each picture
of a pair 16 to 100, the frames of clips 16 to 36, areas twice as large as often as the smaller
ones. Questions go through `qwen25vl.load().ask()`; frames stay as they are, with --enlarge they are
enlarged to 128 tokens, as all videos are unless `min_pixels` is given. The last row tells on how
many of 100 questions transformers, given the same checkpoint and the same inputs, writes the same
text.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

import qwen25vl
from qwen25vl.answer import Answer
from qwen25vl.demo import FOLDER as DEMO_FOLDER
from train_demo.clips import DESCRIBE, RATES, Clip, ask_clip, draw_clip, make_clip
from train_demo.data import choose_size, original_size
from train_demo.pairs import make_pair
from train_demo.questions import PLACES, Turn, ask, describe
from train_demo.scenes import MIN_PIXELS, Box, draw, make_scene
from train_demo.texts import make_lines, make_table
from train_demo.things import FOLDER, Atlas

HELD_OUT_SEED = "held out"
REFERENCE, NUM_COMPARED = "same text as transformers", 100
RARER = 0  # every area as often
COUNTS = (1, 2, 2, 3, 3, 4, 5)
Scores = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A question, what it is about, and the answer expected;
    `boxes` in pixels of the picture, with labels."""

    turn: Turn
    pictures: Sequence[Image.Image]
    rate: float = 0
    boxes: Sequence[tuple[str, Box]] = ()

    def messages(self) -> list[dict[str, Any]]:
        media: list[dict[str, Any]] = [
            {"type": "image", "image": picture} for picture in self.pictures
        ]
        if self.rate:
            media = [{"type": "video", "video": list(self.pictures), "fps": self.rate}]
        return [{"role": "user", "content": [*media, {"type": "text", "text": self.turn.question}]}]


def scene_cases(
    ability: str, share_of_shapes: float = 0.4, counts: Sequence[int] = COUNTS
) -> Callable[..., Case | None]:
    def make(rng: Random, atlas: Atlas) -> Case | None:
        size = choose_size(rng, 16, 576, RARER)
        scene = make_scene(rng, *original_size(rng, size), rng.choice(counts), share_of_shapes)
        picture, scene = draw(scene, rng, atlas)
        turn = ask(rng, scene, ability)
        if turn is None:
            return None
        meant = {thing for _, thing in turn.told}
        boxes = [
            (thing.label, box)
            for thing, box in zip(scene.things, scene.boxes, strict=True)
            if thing in meant
        ]
        return Case(turn, [picture], boxes=boxes if ability == "boxes" else ())

    return make


def naming_case(rng: Random, atlas: Atlas) -> Case:
    """One thing alone: what it is."""
    size = choose_size(rng, 16, 576, RARER)
    scene = make_scene(rng, *original_size(rng, size), 1, share_of_shapes=0)
    picture, scene = draw(scene, rng, atlas)
    return Case(Turn("Describe the picture.", describe(scene)), [picture])


def text_case(kind: str) -> Callable[[Random, Atlas], Case]:
    def make(rng: Random, atlas: Atlas) -> Case:
        width, height = original_size(
            rng, choose_size(rng, 16 if kind == "lines" else 25, 256, RARER)
        )
        if kind == "lines":
            (picture, _), turns = make_lines(rng, atlas, width, height, easy=False)
        else:
            (picture, _), turns = make_table(rng, atlas, width, height)
        return Case(
            next(turn for turn in turns if kind == "lines" or "JSON" in turn.question), [picture]
        )

    return make


def pair_case(rng: Random, atlas: Atlas) -> Case | None:
    scenes, turns = make_pair(rng, *original_size(rng, choose_size(rng, 16, 100, RARER)))
    return Case(turns[0], [draw(scene, rng, atlas)[0] for scene in scenes]) if turns else None


def clip_case(
    is_meant: Callable[[Turn], bool], rate: int | None = None
) -> Callable[[Random, Atlas], Case | None]:
    def make(rng: Random, atlas: Atlas) -> Case | None:
        clip: Clip = make_clip(rng, *original_size(rng, choose_size(rng, 16, 36, RARER)))
        turn = next(filter(is_meant, ask_clip(rng, clip)), None)
        chosen = rate or rng.choice(RATES)
        if turn is None or chosen * clip.seconds < 4:
            return None
        frames, _ = draw_clip(clip, chosen, rng, atlas)
        return Case(turn, frames, rate=chosen)

    return make


def equal(case: Case, answer: Answer) -> Scores:
    return {"": answer.text.strip() == case.turn.answer}


def concluded(case: Case, answer: Answer) -> Scores:
    """The number, or yes or no, that stands behind what was seen;
    the whole answer where nothing does."""
    said, wanted = (text.strip().rpartition(", so ")[2] for text in (answer.text, case.turn.answer))
    return {"": said == wanted}


def described(case: Case, answer: Answer) -> Scores:
    """All things with size, colour and noun, and their places, in any order;
    of two their relation, as told."""
    said, wanted = (
        sorted(re.split(", | and ", text.strip().lower().rstrip(".")))
        for text in (answer.text, case.turn.answer)
    )
    return {"": said == wanted}


def named(case: Case, answer: Answer) -> Scores:
    """The noun alone: without article and size in front and the place behind."""

    def noun(text: str) -> str:
        return re.sub(
            f" (?:{'|'.join(PLACES)})[.]?$", "", re.sub("^An? (?:small|large) ", "", text)
        )

    return {"": noun(answer.text) == noun(case.turn.answer)}


def located(case: Case, answer: Answer) -> Scores:
    """Boxes with the right label found at IoU 0.5, each counted once; the IoU of those found."""
    wanted, found = list(case.boxes), []
    for said in answer.boxes:
        shares = {
            other: overlap((said.x1, said.y1, said.x2, said.y2), other[1])
            for other in wanted
            if other[0] == said.label
        }
        best = max(shares, key=shares.__getitem__, default=None)
        if best and shares[best] >= 0.5:
            found.append(shares[best])
            wanted.remove(best)
    return {
        "found": len(found),
        "said": len(answer.boxes),
        "there": len(case.boxes),
        "overlap": sum(found),
    }


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def read(case: Case, answer: Answer) -> Scores:
    """Characters by the edits between both texts; words one by one, each in its own place."""
    said, wanted = answer.text.strip(), case.turn.answer
    words = wanted.split()
    right = sum(a == b for a, b in zip(said.split(), words, strict=False))
    most = max(len(said), len(wanted))  # too much is wrong as well
    return {"characters": most - edits(said, wanted), "of characters": most,
            "words": right, "of words": max(len(said.split()), len(words))}  # fmt: skip


def edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def extracted(case: Case, answer: Answer) -> Scores:
    wanted = json.loads(case.turn.answer.strip("`").removeprefix("json"))
    try:
        said = json.loads(answer.text.strip().strip("`").removeprefix("json"))
    except ValueError:
        said = None
    fields = said if isinstance(said, dict) else {}
    right = sum(fields.get(key) == value for key, value in wanted.items())
    return {"valid": isinstance(said, dict), "fields": right, "of fields": len(wanted | fields)}


def timed(case: Case, answer: Answer) -> Scores:
    """The second, within a half."""
    said, wanted = (
        re.findall(r"(\d+(?:[.]\d+)?) second", text) for text in (answer.text, case.turn.answer)
    )
    return {"": len(said) == 1 and abs(float(said[0]) - float(wanted[0])) <= 0.5}


def is_when(turn: Turn) -> bool:
    return "second" in turn.answer and turn.question not in DESCRIBE


ABILITIES: dict[str, tuple[Callable[..., Case | None], Callable[..., Scores]]] = {
    "description": (scene_cases("description"), described),
    "things in trained styles": (naming_case, named),
    "things in a never-seen style": (naming_case, named),
    "colour": (scene_cases("colour", 0.7), equal),
    "count": (scene_cases("count"), concluded),
    "yes or no": (scene_cases("whether"), concluded),
    "presence": (scene_cases("presence"), equal),
    "where": (scene_cases("where"), equal),
    "comparison": (scene_cases("comparison"), equal),
    "boxes": (scene_cases("boxes"), located),
    "reading": (text_case("lines"), read),
    "key-value JSON": (text_case("table"), extracted),
    "two pictures": (pair_case, equal),
    "direction": (
        clip_case(lambda turn: "moves" in turn.answer and turn.question not in DESCRIBE),
        equal,
    ),
    "order of events": (
        clip_case(lambda turn: "then" in turn.answer or "appears" in turn.answer.split()[-2:]),
        equal,
    ),
    **{f"second of an event at fps {rate}": (clip_case(is_when, rate), timed) for rate in RATES},
    "absent things denied": (scene_cases("absent"), equal),
}
RATIOS = {  # printed figure: (counted, of)
    "": ("", "cases"), "F1": ("found", "said + there"),
    "mean IoU of the found": ("overlap", "found"), "characters": ("characters", "of characters"),
    "words": ("words", "of words"), "valid": ("valid", "cases"), "fields": ("fields", "of fields"),
}  # fmt: skip
GOALS: dict[str, Sequence[float]] = {  # for each printed figure
    "description": [0.95], "things in trained styles": [0.95],
    "things in a never-seen style": [0.60], "colour": [0.98], "count": [0.95], "yes or no": [0.97],
    "presence": [0.97], "boxes": [0.95, 0.85], "reading": [0.97, 0.90],
    "key-value JSON": [0.99, 0.90], "two pictures": [0.95], "direction": [0.97],
    "order of events": [0.95], **{f"second of an event at fps {rate}": [0.90] for rate in RATES},
    "absent things denied": [0.97], REFERENCE: [1.0],
}  # fmt: skip


def cases(ability: str, atlases: tuple[Atlas, Atlas], num_cases: int, seed: str) -> Iterator[Case]:
    make, _ = ABILITIES[ability]
    index = 0
    while num_cases:
        case = make(Random(f"{seed}/{ability}/{index}"), atlases["never" in ability])
        index += 1
        if case is not None:
            num_cases -= 1
            yield case


def measure(
    vlm: qwen25vl.VisionLanguageModel,
    ability: str,
    atlases: tuple[Atlas, Atlas],
    num_cases: int,
    seed: str,
    misses: bool,
    enlarge: bool,
) -> Scores:
    """The figures of one ability, each from 0 to 1."""
    totals: Scores = {"cases": 0}
    for case in tqdm(
        cases(ability, atlases, num_cases, seed),
        ability,
        total=num_cases,
        leave=False,
        disable=None,
    ):
        smallest = MIN_PIXELS if case.rate and not enlarge else None
        answer = vlm.ask(case.messages(), min_pixels=smallest, max_new_tokens=200)
        scores = ABILITIES[ability][1](case, answer) | {"cases": 1}
        for name, score in scores.items():
            totals[name] = totals.get(name, 0) + score
        if misses and answer.text.strip() != case.turn.answer:
            print(f"{ability}: {case.turn.question!r} {case.turn.answer!r} — {answer.text!r}")
    if "said" in totals:
        totals = {
            **totals,
            "found": 2 * totals["found"],
            "said + there": totals["said"] + totals["there"],
        }
        totals["overlap"] *= 2
    return {
        name: totals[right] / max(1, totals[of])
        for name, (right, of) in RATIOS.items()
        if right in totals and of in totals
    }


def share_equal(folder: Path, atlases: tuple[Atlas, Atlas], num_cases: int, seed: str) -> float:
    """Share of cases, the abilities in turn, that transformers answers with the same text.

    In float32, for sums are taken in another order;
    and with the positions that transformers gives clips.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    reference: Any = Reference.from_pretrained(folder, dtype=torch.float32).eval()
    model = qwen25vl.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, mrope="hf5"
    )
    processor = qwen25vl.AutoProcessor.from_pretrained(folder)
    streams = [cases(ability, atlases, num_cases, seed) for ability in ABILITIES]
    num_equal = 0
    for number in tqdm(range(num_cases), REFERENCE, leave=False, disable=None):
        case = next(streams[number % len(streams)])
        inputs = processor.apply_chat_template(
            case.messages(),
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            min_pixels=MIN_PIXELS,
        )
        ids, config = inputs.input_ids, model.config
        types = (ids == config.image_token_id) + 2 * (ids == config.video_token_id)
        theirs = reference.generate(
            **inputs, mm_token_type_ids=types, max_new_tokens=200, do_sample=False
        )
        ours = model.generate(**inputs, max_new_tokens=200, do_sample=False)
        num_equal += processor.batch_decode(ours) == processor.batch_decode(theirs)
    return num_equal / num_cases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="a checkpoint folder; by default the one in the package"
    )
    parser.add_argument(
        "--things",
        type=Path,
        default=FOLDER,
        help="where train_demo.things wrote pictures and fonts",
    )
    parser.add_argument("--examples", type=int, default=500, help="for each ability")
    parser.add_argument("--seed", default=HELD_OUT_SEED, help="of the questions")
    parser.add_argument("--only", help="abilities, with commas between")
    parser.add_argument("--misses", action="store_true", help="print every wrong answer")
    parser.add_argument(
        "--enlarge", action="store_true", help="the frames of clips, as of any video"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = qwen25vl.load(options.model)
    atlases = Atlas(options.things), Atlas(options.things, held_out=True)
    print("| ability | questions | figure | goal | reached |\n|---|---|---|---|---|")
    for ability in options.only.split(",") if options.only else (*ABILITIES, REFERENCE):
        if ability == REFERENCE:
            num_cases = NUM_COMPARED
            figures = {
                "": share_equal(options.model or DEMO_FOLDER, atlases, num_cases, options.seed)
            }
        else:
            num_cases = options.examples
            figures = measure(
                vlm, ability, atlases, num_cases, options.seed, options.misses, options.enlarge
            )
        for (name, share), goal in zip_longest(figures.items(), GOALS.get(ability, ())):
            meant = f"{goal:.2f}" if goal else ""
            print(
                f"| {ability} | {num_cases} | {name or 'right'} | {meant} | {share:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

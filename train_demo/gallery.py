"""Draw the pictures and clips of examples/, ask the built-in model about them,
and write examples/README.md.

    python -m train_demo.gallery [--model FOLDER] [--things FOLDER]

The answers on that page are the model's own, right or wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from PIL import Image

import qwen25vl
from train_demo.clips import Clip, Track, draw_clip
from train_demo.scenes import PLACES, SIZES, THING_SIZES, Scene, Thing, draw
from train_demo.texts import write
from train_demo.things import FOLDER, KINDS, Atlas

EXAMPLES = Path(__file__).parents[1] / "examples"
FRAMES_PER_SECOND = 2
SEED = 22  # of the accidents: styles, grounds, fonts
HEAD = """# What the built-in model can do

Pictures and clips that it never saw, chosen to show what it can do, and its own answers, right \
or wrong, as
`python -m train_demo.gallery` wrote them. It knows a drawn world only, and how often it is right \
there, ability by
ability, is in [train_demo](../train_demo/README.md#how-often-it-is-right). The things are from \
Noto Color Emoji
(Apache-2.0), Twemoji, EmojiOne 2 (CC BY 4.0), Fluent Emoji (MIT) and OpenMoji (CC BY-SA 4.0).
"""


@dataclass(frozen=True)
class Exhibit:
    """Files of examples/, the questions asked about them one after another,
    and what else goes with the call."""

    title: str
    files: Sequence[str]
    questions: Sequence[str]
    system: str | None = None
    drawing: str = ""  # the file for the picture with the boxes of the answer


EXHIBITS = (
    Exhibit("A scene", ["scene.png"], [
        "Describe the picture.", "What colour is the star?", "How many animals are there?",
        "Where is the dog?", "Is the dog to the left of the carrot?",
        "Which is larger, the dog or the carrot?",
    ]),
    Exhibit("What is not there", ["scene.png"],
            ["Is there a bus in the picture?", "What colour is the square?"]),
    Exhibit("One word", ["scene.png"], ["How many things are there?", "What colour is the star?"],
            "Answer in one word."),
    Exhibit("Boxes", ["boxes.png"], ["Detect every animal in JSON."], drawing="boxes-answer.png"),
    Exhibit("Points", ["boxes.png"], ["Point to the cat. Answer in JSON."]),
    Exhibit("Things in a style it was not trained on", ["openmoji.png"], ["Describe the picture."]),
    Exhibit("Words", ["words.png"], ["Read the text in the picture."]),
    Exhibit("A receipt", ["receipt.png"],
            ["Read this receipt and output JSON.", "What is the total?"]),
    Exhibit("Two pictures", ["left.png", "right.png"], ["What is different?"]),
    Exhibit("A movement", ["moves.gif"], ["Which way does the car move?"]),
    Exhibit("When, and in which order", ["appears.gif"], [
        "When does the apple appear?", "In which order do the things appear?",
    ]),
)  # fmt: skip


def place(noun: str, size: str, where: str, width: int, height: int, colour: str = "") -> Thing:
    """A thing in the middle of one of the PLACES."""
    number = PLACES.index(where)
    low, high = (SIZES if colour else THING_SIZES)[size]
    diameter = (low + high) / 2 * (width * height) ** 0.5
    margin = 0.57 * diameter
    x = min(max((number % 3 + 0.5) / 3 * width, margin), width - margin)
    y = min(max((number // 3 + 0.5) / 3 * height, margin), height - margin)
    return Thing(KINDS.get(noun, "shape"), noun, size, colour, number, x, y, diameter)


def scene(width: int, height: int, ground: str, *things: tuple[str, ...]) -> Scene:
    """`things` as (noun, size, place) or (noun, size, place, colour)."""
    placed = [
        place(noun, size, where, width, height, *colour) for noun, size, where, *colour in things
    ]
    return Scene(width, height, ground, tuple(sorted(placed, key=lambda thing: thing.place)))


def draw_pictures(atlas: Atlas, unseen: Atlas) -> dict[str, Image.Image]:
    table = [
        ["Receipt"],
        ["milk", "1.20"],
        ["bread", "2.35"],
        ["apples", "3.10"],
        ["total", "6.65"],
    ]
    pair = scene(
        168,
        168,
        "plain",
        ("cat", "large", "on the left"),
        ("circle", "small", "on the right", "red"),
    )
    other = replace(pair, things=(pair.things[0], replace(pair.things[1], colour="blue")))
    scenes = {
        "scene.png": scene(
            252, 196, "stripes", ("dog", "large", "on the left"),
            ("carrot", "small", "at the top right"),
            ("star", "small", "at the bottom right", "purple"),
        ),
        "boxes.png": scene(
            196, 168, "dots", ("owl", "small", "at the top left"),
            ("cat", "large", "in the centre"), ("key", "small", "at the bottom right"),
        ),
        "left.png": pair,
        "right.png": other,
    }  # fmt: skip
    pictures = {
        name: draw(drawn, Random(f"{SEED}/{name}"), atlas, spoil=False)[0]
        for name, drawn in scenes.items()
    }
    strange = scene(
        224, 168, "gradient", ("elephant", "large", "on the left"), ("key", "small", "on the right")
    )
    pictures["openmoji.png"] = draw(strange, Random(f"{SEED}/openmoji"), unseen, spoil=False)[0]
    for name, rows, size in (("words.png", [["Fresh coffee"], ["open 24"]], (224, 112)),
                             ("receipt.png", table, (224, 196))):  # fmt: skip
        written = write(Random(f"{SEED}/{name}"), atlas, rows, *size)
        assert written, name
        pictures[name] = written[0]
    return pictures


def draw_clips(atlas: Atlas) -> dict[str, list[Image.Image]]:
    car = place("car", "large", "in the centre", 140, 140)
    apple = place("apple", "large", "at the top left", 140, 140)
    mouse = place("mouse", "large", "at the bottom right", 140, 140)
    clips = {
        "moves.gif": (Track(car, 0, 4, "to the right"),),
        "appears.gif": (Track(apple, 4, 6), Track(mouse, 1, 6)),
    }
    frames = {}
    for name, tracks in clips.items():
        whole = Scene(140, 140, "plain", tuple(track.thing for track in tracks))
        clip = Clip(whole, tracks, int(tracks[0].end))
        frames[name], _ = draw_clip(clip, FRAMES_PER_SECOND, Random(f"{SEED}/{name}"), atlas)
        for number, frame in enumerate(frames[name]):  # equal frames would become one in the file
            frame.putpixel((0, 0), (number % 2 * 8,) * 3)
    return frames


def show(vlm: qwen25vl.VisionLanguageModel, exhibit: Exhibit) -> str:
    """The exhibit's section of the page."""
    paths = [EXAMPLES / name for name in exhibit.files]
    clips = [path for path in paths if path.suffix == ".gif"]
    chat = vlm.chat(system=exhibit.system)
    lines = [
        f"## {exhibit.title}",
        "",
        " ".join(f"![{name}]({name})" for name in exhibit.files),
        "",
    ]
    if exhibit.system:
        lines += [f"System: {exhibit.system}", ""]
    for number, question in enumerate(exhibit.questions):
        media = (
            {"images": [path for path in paths if path not in clips], "videos": clips}
            if number == 0
            else {}
        )
        answer = chat.ask(question, **media)  # type: ignore[arg-type]
        lines += [f"> **{question}**", ">"]
        lines += [f"> {line}" if line else ">" for line in answer.text.split("\n")]
        lines += [""]
        if exhibit.drawing:
            answer.draw().save(EXAMPLES / exhibit.drawing)
            lines += [f"![{exhibit.drawing}]({exhibit.drawing})", ""]
    return "\n".join(lines)


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
    options = parser.parse_args()
    atlas = Atlas(options.things)
    for name, picture in draw_pictures(atlas, Atlas(options.things, held_out=True)).items():
        picture.save(EXAMPLES / name, optimize=True)
    for name, frames in draw_clips(atlas).items():
        frames[0].save(
            EXAMPLES / name,
            save_all=True,
            append_images=frames[1:],
            duration=1000 // FRAMES_PER_SECOND,
            loop=0,
        )
    vlm = qwen25vl.load(options.model)
    page = "\n".join([HEAD, *(show(vlm, exhibit) for exhibit in EXHIBITS)])
    (EXAMPLES / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Questions about a scene and their one right answer, in many wordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random

from train_demo.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

Turn = tuple[str, str]
NUMBERS = ("None.", "One.", "Two.", "Three.")

DESCRIBE = (
    "Describe the picture.", "Describe this picture.", "Describe the image.", "Describe this image.",
    "Describe the scene.", "Please describe the picture.", "What do you see?", "What can you see in the picture?",
    "What is in the picture?", "What is in this image?", "What's in this picture?", "What does the picture show?",
    "What is shown here?", "Tell me what you see.", "Tell me what is in the image.",
)  # fmt: skip
COLOUR = (
    "What colour is {it}?", "What color is {it}?", "Which colour is {it}?", "Which color does {it} have?",
    "What colour does {it} have?", "What is the colour of {it}?", "Tell me the colour of {it}.",
    "Name the color of {it}.",
)  # fmt: skip
COUNT = (
    "How many {them} are there?", "How many {them} are in the picture?", "How many {them} do you see?",
    "How many {them} can you see in the image?", "How many {them} are shown?", "Count the {them}.",
    "Please count the {them} in the picture.", "What is the number of {them}?",
)  # fmt: skip
SHAPE = ("What shape is {it}?", "Which shape is {it}?", "What is {it}?", "What kind of shape is {it}?")
WHERE = ("Where is {it}?", "Where is {it} in the picture?", "Where can I find {it}?", "In which place is {it}?")


def describe(scene: Scene) -> str:
    """Every thing with size, colour, shape and place, in reading order."""
    parts = [f"a {thing.name} {PLACES[thing.place]}" for thing in scene.things]
    text = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
    return sentence(text)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def ask_description(_: Random, scene: Scene, wording: str) -> Turn:
    return wording, describe(scene)


def ask_colour(rng: Random, scene: Scene, wording: str) -> Turn | None:
    names = "the {shape}", "the {size} {shape}", "the {size} shape", "the shape {place}"
    return ask_about_one(rng, scene, names, wording, lambda thing: thing.colour)


def ask_shape(rng: Random, scene: Scene, wording: str) -> Turn | None:
    names = "the {colour} shape", "the {size} {colour} shape", "the {size} shape", "the shape {place}"
    return ask_about_one(rng, scene, names, wording, lambda thing: f"a {thing.shape}")


def ask_where(rng: Random, scene: Scene, wording: str) -> Turn | None:
    names = "the {shape}", "the {colour} shape", "the {colour} {shape}", "the {size} {colour} {shape}"
    return ask_about_one(rng, scene, names, wording, lambda thing: PLACES[thing.place])


def ask_about_one(
    rng: Random, scene: Scene, names: Sequence[str], wording: str, answer: Callable[[Thing], str]
) -> Turn | None:
    """Ask about a thing under a name that fits no other thing of the scene."""
    named = [
        (name.format(**vars(thing) | {"place": PLACES[thing.place]}), thing)
        for thing in scene.things
        for name in names
    ]
    uses = Counter(name for name, _ in named)
    unique = [(name, thing) for name, thing in named if uses[name] == 1]
    if not unique:
        return None
    name, thing = rng.choice(unique)
    return wording.format(it=name), sentence(f"{name} is {answer(thing)}")


def ask_count(rng: Random, scene: Scene, wording: str) -> Turn:
    colour, size, shape = rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), rng.choice(SHAPES)
    if rng.random() < 0.75:
        thing = rng.choice(scene.things)
        colour, size, shape = thing.colour, thing.size, thing.shape
    kinds: tuple[tuple[str, Callable[[Thing], bool]], ...] = (
        (rng.choice(("shapes", "objects", "things")), lambda _: True),
        (f"{shape}s", lambda thing: thing.shape == shape),
        (f"{colour} shapes", lambda thing: thing.colour == colour),
        (f"{size} shapes", lambda thing: thing.size == size),
        (f"{colour} {shape}s", lambda thing: (thing.colour, thing.shape) == (colour, shape)),
    )
    them, is_meant = rng.choice(kinds)
    return wording.format(them=them), NUMBERS[sum(map(is_meant, scene.things))]


ABILITIES: dict[str, tuple[Callable[[Random, Scene, str], Turn | None], tuple[str, ...]]] = {
    "description": (ask_description, DESCRIBE),
    "colour": (ask_colour, COLOUR),
    "count": (ask_count, COUNT),
    "shape": (ask_shape, SHAPE),
    "where": (ask_where, WHERE),
}


def ask(rng: Random, scene: Scene, ability: str) -> Turn | None:
    """One question of an ability and its answer; None where the scene allows none."""
    make, wordings = ABILITIES[ability]
    return make(rng, scene, rng.choice(wordings))


def converse(rng: Random, scene: Scene, abilities: Iterable[str]) -> list[Turn]:
    """Several questions about one scene."""
    return [turn for ability in abilities if (turn := ask(rng, scene, ability))]

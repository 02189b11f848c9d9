"""Two pictures and questions about both: the same or not, what differs, which of them shows it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from train_demo.questions import PLACES, Turn, ask, described, find_told, sentence
from train_demo.scenes import COLOURS, SHAPES, Scene, Thing, make_scene
from train_demo.things import KINDS, with_article

SAME = (
    "Are the two pictures the same?",
    "Do both pictures show the same?", "Is there a difference between the pictures?",
    "Are these two pictures equal?",
)  # fmt: skip
DIFFERENCE = (
    "What is different?",
    "What differs between the pictures?",
    "Name the difference.",
    "What has changed?",
)
WHICH = (
    "Which picture shows {it}?",
    "In which picture is {it}?",
    "Which of the pictures shows {it}?",
)
ALIKE = "The two pictures show the same."


def change(rng: Random, scene: Scene) -> tuple[Scene, str, list[Thing]]:
    """The scene with one difference, that difference in words, and the things that these tell."""
    number = rng.randrange(len(scene.things))
    old = scene.things[number]
    where = PLACES[old.place]
    how = rng.choice(
        ("colour", "noun", "gone") if old.colour and len(scene.things) > 1 else ("noun",)
    )
    if how == "gone":
        rest = scene.things[:number] + scene.things[number + 1 :]
        told = f"{where} picture 1 shows {with_article(old.label)} and picture 2 shows nothing"
        return replace(scene, things=rest), sentence(told), [old]
    if how == "colour":
        new = replace(
            old, colour=rng.choice([colour for colour in COLOURS if colour != old.colour])
        )
    elif old.colour:
        new = replace(old, noun=rng.choice([shape for shape in SHAPES if shape != old.noun]))
    else:
        noun = rng.choice([noun for noun in KINDS if noun != old.noun])
        new = replace(old, noun=noun, kind=KINDS[noun])
    things = (*scene.things[:number], new, *scene.things[number + 1 :])
    told = (
        f"{where} picture 1 shows {with_article(old.label)} and picture 2 shows "
        f"{with_article(new.label)}"
    )
    return replace(scene, things=things), sentence(told), [old, new]


def make_pair(rng: Random, width: int, height: int) -> tuple[list[Scene], list[Turn]]:
    """Two scenes, alike or with one difference or with nothing in common,
    and questions about them."""
    first = make_scene(rng, width, height, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.3:
        second = make_scene(rng, width, height, rng.choice((1, 2, 3)))
        turns = [which(rng, [first, second]) for _ in range(2)]
        turns.append(about_one(rng, [first, second]))
        return [first, second], [turn for turn in turns if turn]
    is_same = rng.random() < 0.5
    second, answer, things = (first, ALIKE, []) if is_same else change(rng, first)
    told = find_told(answer, things, [thing.label for thing in things])
    question = rng.choice(SAME)
    verdict = "yes" if is_same != ("difference" in question) else "no"
    turns = [
        Turn(question, f"{answer.rstrip('.')}, so {verdict}.", verdict, told=told),
        Turn(rng.choice(DIFFERENCE), answer, told=told),
    ]
    rng.shuffle(turns)
    scenes = [first, second]
    turns += [
        turn for turn in (which(rng, scenes), about_one(rng, scenes)) if turn and rng.random() < 0.6
    ]
    return scenes, turns


def which(rng: Random, scenes: list[Scene]) -> Turn | None:
    labels = [[thing.label for thing in scene.things] for scene in scenes]
    only = [
        (thing, number)
        for number in (0, 1)
        for thing in sorted(scenes[number].things, key=lambda thing: thing.label)
        if labels[number].count(thing.label) == 1 and thing.label not in labels[1 - number]
    ]
    if not only:
        return None
    thing, number = rng.choice(only)
    question = rng.choice(WHICH).format(it=with_article(thing.label))
    answer = f"Picture {number + 1} shows {with_article(thing.label)}."
    return Turn(question, answer, named=((thing.label, thing),))


def about_one(rng: Random, scenes: list[Scene]) -> Turn | None:
    """A description or a count of one of the two."""
    number = rng.randrange(2)
    if rng.random() < 0.5:
        return described(f"Describe picture {number + 1}.", scenes[number])
    if not (turn := ask(rng, scenes[number], "count")):
        return None
    question = turn.question.removesuffix(" in the picture?").rstrip("?.")
    return turn._replace(question=f"Look at picture {number + 1}. {question}?")

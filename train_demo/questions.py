"""Questions about a scene and their one right answer, in many wordings.

Every maker takes (rng, scene) and gives a Turn, or None where the scene allows no such question.
Answers are whole sentences that name what they speak of before they tell its property, and mostly
tell what is there before they say yes or no: the model reads the answer off its own words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from qwen25vl.processing.image import smart_resize
from train_demo.scenes import (
    COLOURS,
    MAX_PIXELS,
    MIN_PIXELS,
    PLACES,
    SHAPES,
    SIDES,
    Box,
    Scene,
    Thing,
    side,
)
from train_demo.things import KINDS, plural, with_article


class Turn(NamedTuple):
    """A question, its answer, the same in one word where there is one, and what its parts mean."""

    question: str
    answer: str
    short: str = ""
    named: tuple[tuple[str, Thing | None], ...] = ()  # None: nothing that is there
    # number in the answer, where in pixels of the picture
    letters: tuple[tuple[int, float, float], ...] = ()
    # where in the answer a thing comes next, or none (at its end)
    told: tuple[tuple[int, Thing | None], ...] = ()


Named = tuple[str, Thing]
Maker = Callable[[Random, Scene], Turn | None]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPE_FORMS = (
    "the {noun}", "the {colour} {noun}", "the {colour} shape", "the {size} {noun}",
    "the {size} {colour} {noun}", "the {size} shape",
)  # fmt: skip
THING_FORMS = ("the {noun}", "the {noun}", "the {size} {noun}", "the {kind}")

OTHER = "other"  # the kind of things that share no everyday word

DESCRIBE = (
    "Describe the picture.", "Describe this picture.", "Describe the image.",
    "Describe this image.", "Describe the scene.", "Please describe the picture.",
    "What do you see?", "What can you see in the picture?", "What is in the picture?",
    "What is in this image?", "What's in this picture?", "What does the picture show?",
    "What is shown here?", "Tell me what you see.", "Tell me what is in the image.",
)  # fmt: skip
COLOUR = (
    "What colour is {it}?", "What color is {it}?", "Which colour is {it}?",
    "Which color does {it} have?", "What colour does {it} have?", "What is the colour of {it}?",
    "Tell me the colour of {it}.", "Name the color of {it}.",
)  # fmt: skip
COUNT = (
    "How many {them} are there?", "How many {them} are in the picture?",
    "How many {them} do you see?", "How many {them} can you see in the image?",
    "How many {them} are shown?", "Count the {them}.", "Please count the {them} in the picture.",
    "What is the number of {them}?",
)  # fmt: skip
SHAPE = ("What shape is {it}?", "Which shape is {it}?", "What kind of shape is {it}?")
NAME = (
    "What is {place}?",
    "What is there {place}?",
    "What stands {place}?",
    "What do you see {place}?",
)
KIND = (
    "Which {kind} is in the picture?",
    "What {kind} is this?",
    "Which {kind} do you see?",
    "Name the {kind}.",
)
WHERE = (
    "Where is {it}?",
    "Where is {it} in the picture?",
    "Where can I find {it}?",
    "In which place is {it}?",
)
BESIDE = (
    "Where is {it} relative to {other}?",
    "Where is {it}, seen from {other}?",
    "On which side of {other} is {it}?",
)
IS_THERE = (
    "Is there {it}?", "Is there {it} in the picture?",
    "Do you see {it}?", "Can you see {it}?", "Does the picture show {it}?",
)  # fmt: skip
DETECT = (
    "Detect {them} in the picture and output their coordinates in JSON.", "Detect {them} in JSON.",
    "Detect {them} and answer in JSON.", "Find {them}. Answer in JSON.",
    "Locate {them}, output in JSON.",
    "Outline the position of {them} and output all the coordinates in JSON format.",
)  # fmt: skip
POINT = (
    "Point to {them}. Answer in JSON.", "Point to {them} in JSON.",
    "Point at {them} and output the points in JSON.",
)  # fmt: skip


COORDINATE = re.compile(r"(?<=[\[ ])\d+(?=[,\]])")


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def describe(scene: Scene) -> str:
    """Every thing with size, colour and noun:
    two by their relation, others with their places in reading order."""
    if len(scene.things) == 2:
        a, b = scene.things
        return sentence(f"a {a.name} {side(a, b)} a {b.name}")
    return sentence(listed([f"a {thing.name} {PLACES[thing.place]}" for thing in scene.things]))


def ask_description(rng: Random, scene: Scene) -> Turn:
    return described(rng.choice(DESCRIBE), scene)


def described(question: str, scene: Scene) -> Turn:
    answer = describe(scene)
    return Turn(
        question,
        answer,
        told=find_told(answer, scene.things, [thing.name for thing in scene.things]),
    )


def find_told(
    answer: str, things: Sequence[Thing], names: Sequence[str]
) -> tuple[tuple[int, Thing | None], ...]:
    """Where an answer comes to each of the things that it tells under these names,
    and where it ends.

    That is at what parts it from the one before (a comma or "and") and at its article.
    """
    told: list[tuple[int, Thing | None]] = []
    end = 0
    for thing, name in zip(things, names, strict=True):
        article = with_article(name)
        start = answer.lower().index(article.lower(), end)
        parted = max(answer.rfind(mark, end, start) for mark in (",", " and"))
        told += [(place, thing) for place in (parted, start) if place >= end]
        end = start + len(article)
    if not things:
        return ()
    conclusion = answer.rfind(", so ", end)
    return (*told, (conclusion if conclusion >= 0 else len(answer) - 1, None))


def forms(thing: Thing, hidden: str = "") -> list[str]:
    """Names of a thing that do not tell its `hidden` property."""
    if thing.colour:
        templates = SHAPE_FORMS
    elif thing.kind == OTHER:
        templates = THING_FORMS[:-1]
    else:
        templates = THING_FORMS
    return [
        form.format(**vars(thing)) for form in templates if not hidden or "{" + hidden not in form
    ]


def refer(rng: Random, scene: Scene, hidden: str = "", shapes_only: bool = False) -> Named | None:
    """A name that fits one thing of the scene and no other, and that thing."""
    named = [
        (name, thing) for thing in scene.things for name in dict.fromkeys(forms(thing, hidden))
    ]
    uses = Counter(name for name, _ in named)
    unique = [
        (name, thing)
        for name, thing in named
        if uses[name] == 1 and not (shapes_only and not thing.colour)
    ]
    if not unique:
        return None
    # each thing as often, whatever the number of its names
    chosen = rng.choice([thing for _, thing in unique])
    return rng.choice([pair for pair in unique if pair[1] is chosen])


def absent(rng: Random, scene: Scene) -> str:
    """The name of something that is not there, often one that shares a property with what is."""
    here = {part for thing in scene.things for part in (thing.noun, thing.label, thing.name)}
    while True:
        model = rng.choice(scene.things)
        if model.colour or rng.random() < 0.3:
            noun = rng.choice(SHAPES)
        elif rng.random() < 0.5:
            noun = rng.choice([noun for noun, kind in KINDS.items() if kind == model.kind])
        else:
            noun = rng.choice(tuple(KINDS))
        name = noun
        if noun in SHAPES and rng.random() < 0.6:
            name = f"{rng.choice((model.colour or 'red', *COLOURS))} {noun}"
        if name not in here:
            return name


def none_of(name: str) -> str:
    return f"There is no {name} in the picture."


def ask_colour(rng: Random, scene: Scene) -> Turn | None:
    if not (found := refer(rng, scene, "colour", shapes_only=True)):
        return None
    name, thing = found
    return Turn(
        rng.choice(COLOUR).format(it=name),
        sentence(f"{name} is {thing.colour}"),
        thing.colour,
        (found,),
    )


def ask_shape(rng: Random, scene: Scene) -> Turn | None:
    if not (found := refer(rng, scene, "noun", shapes_only=True)):
        return None
    name, thing = found
    return Turn(
        rng.choice(SHAPE).format(it=name),
        sentence(f"{name} is a {thing.noun}"),
        thing.noun,
        (found,),
    )


def ask_name(rng: Random, scene: Scene) -> Turn | None:
    """What stands in a place, or which thing is of a kind that only one thing is of."""
    thing = rng.choice(scene.things)
    if (
        thing.kind not in ("shape", OTHER)
        and rng.random() < 0.4
        and [t.kind for t in scene.things].count(thing.kind) == 1
    ):
        question = rng.choice(KIND).format(kind=thing.kind)
        return Turn(
            question, sentence(f"the {thing.kind} is {with_article(thing.noun)}"), thing.noun
        )
    place = PLACES[thing.place]
    label = with_article(thing.label)
    return Turn(rng.choice(NAME).format(place=place), sentence(f"{place} is {label}"), thing.noun)


def ask_where(rng: Random, scene: Scene) -> Turn | None:
    if not (found := refer(rng, scene)):
        return None
    name, thing = found
    return Turn(
        rng.choice(WHERE).format(it=name),
        sentence(f"{name} is {PLACES[thing.place]}"),
        named=(found,),
    )


def two_apart(rng: Random, scene: Scene) -> tuple[Named, Named, str] | None:
    """(a name, another, on which side of the other it is)"""
    one, other = refer(rng, scene), refer(rng, scene)
    if not one or not other or one[1] is other[1] or not (where := side(one[1], other[1])):
        return None
    return one, other, where


def ask_beside(rng: Random, scene: Scene) -> Turn | None:
    if not (found := two_apart(rng, scene)):
        return None
    one, two, where = found
    it, other = one[0], two[0]
    return Turn(
        rng.choice(BESIDE).format(it=it, other=other),
        sentence(f"{it} is {where} {other}"),
        named=(one, two),
    )


def ask_count(rng: Random, scene: Scene) -> Turn:
    thing = rng.choice(scene.things)
    kinds: list[tuple[str, str, Callable[[Thing], bool]]] = [
        ("thing", "things", lambda _: True),
        (thing.noun, plural(thing.noun), lambda other: other.noun == thing.noun),
        (thing.noun, plural(thing.noun), lambda other: other.noun == thing.noun),
        (f"{thing.size} thing", f"{thing.size} things", lambda other: other.size == thing.size),
    ]
    if thing.kind != OTHER:
        kinds.append((thing.kind, plural(thing.kind), lambda other: other.kind == thing.kind))
    if thing.colour:
        kinds += [
            (
                f"{thing.colour} shape",
                f"{thing.colour} shapes",
                lambda other: other.colour == thing.colour,
            ),
            (
                thing.label,
                f"{thing.colour} {plural(thing.noun)}",
                lambda other: other.label == thing.label,
            ),
        ]
    one, many, is_meant = rng.choice(kinds)
    things = [other for other in scene.things if is_meant(other)]
    named: tuple[tuple[str, None], ...] = ()
    if rng.random() < 0.12:
        name = absent(rng, scene)
        many, things, named = plural(name), [], ((plural(name), None),)
    question, number = rng.choice(COUNT).format(them=many), NUMBERS[len(things)]
    if not things:
        return Turn(question, f"There are no {many}.", "none", named)
    places = listed([f"{with_article(other.label)} {PLACES[other.place]}" for other in things])
    answer = sentence(f"{places}, so {number} {one if len(things) == 1 else many}")
    return Turn(
        question, answer, number, told=find_told(answer, things, [other.label for other in things])
    )


def ask_presence(rng: Random, scene: Scene) -> Turn:
    is_here = rng.random() < 0.5
    thing = rng.choice(scene.things)
    name = (
        rng.choice((thing.noun, thing.label, thing.label, thing.name))
        if is_here
        else absent(rng, scene)
    )
    question = rng.choice(IS_THERE).format(it=with_article(name))
    answer = f"Yes, there is {with_article(name)}." if is_here else f"No, there is no {name}."
    named = [
        (name, other) for other in scene.things if name in (other.noun, other.label, other.name)
    ]
    if not is_here:
        return Turn(question, answer, "no", ((name, None),))
    return Turn(question, answer, "yes", tuple(named) if len(named) == 1 else ())


def ask_whether(rng: Random, scene: Scene) -> Turn | None:
    """Yes or no about a colour or a side."""
    if rng.random() < 0.5:
        if not (found := refer(rng, scene, "colour", shapes_only=True)):
            return None
        name, thing = found
        guess = (
            thing.colour
            if rng.random() < 0.5
            else rng.choice([c for c in COLOURS if c != thing.colour])
        )
        answer = "yes" if guess == thing.colour else "no"
        return Turn(
            f"Is {name} {guess}?",
            sentence(f"{name} is {thing.colour}, so {answer}"),
            answer,
            (found,),
        )
    if not (between := two_apart(rng, scene)):
        return None
    one, two, where = between
    it, other = one[0], two[0]
    guess = where if rng.random() < 0.5 else SIDES[SIDES.index(where) ^ 1]
    answer = "yes" if guess == where else "no"
    return Turn(
        f"Is {it} {guess} {other}?",
        sentence(f"{it} is {where} {other}, so {answer}"),
        answer,
        (one, two),
    )


def ask_comparison(rng: Random, scene: Scene) -> Turn | None:
    """Which is larger, the same colour or not, more of these or of those."""
    one, other = refer(rng, scene, "size"), refer(rng, scene, "size")
    if not one or not other or one[1] is other[1]:
        return None
    (a_name, a), (b_name, b) = one, other
    if a.size != b.size and rng.random() < 0.6:
        word, name = rng.choice([("larger", a_name if a.size == "large" else b_name),
                                 ("smaller", a_name if a.size == "small" else b_name)])  # fmt: skip
        return Turn(
            f"Which is {word}, {a_name} or {b_name}?",
            sentence(f"{name} is {word}"),
            named=(one, other),
        )
    a_count, b_count = (sum(t.noun == x.noun for t in scene.things) for x in (a, b))
    if a_count == b_count or a.noun == b.noun:
        return None
    a_told, b_told = (
        f"{NUMBERS[n]} {t.noun if n == 1 else plural(t.noun)}"
        for n, t in ((a_count, a), (b_count, b))
    )
    answer = "yes" if a_count > b_count else "no"
    question = f"Are there more {plural(a.noun)} than {plural(b.noun)}?"
    return Turn(
        question,
        sentence(f"there {'is' if a_count == 1 else 'are'} {a_told} and {b_told}, so {answer}"),
        answer,
    )


def ask_same_colour(rng: Random, scene: Scene) -> Turn | None:
    one, other = (refer(rng, scene, "colour", shapes_only=True) for _ in range(2))
    if not one or not other or one[1] is other[1]:
        return None
    (a_name, a), (b_name, b) = one, other
    question = f"Do {a_name} and {b_name} have the same colour?"
    answer = "yes" if a.colour == b.colour else "no"
    told = sentence(f"{a_name} is {a.colour} and {b_name} is {b.colour}, so {answer}")
    return Turn(question, told, answer, (one, other))


def ask_extreme(rng: Random, scene: Scene) -> Turn | None:
    """The outermost thing on one side, where it is so clearly."""
    word, axis, sign = rng.choice(
        (("leftmost", 0, 1), ("rightmost", 0, -1), ("topmost", 1, 1), ("lowest", 1, -1))
    )
    places = sorted(
        (sign * (thing.x, thing.y)[axis], number) for number, thing in enumerate(scene.things)
    )
    if len(places) < 2 or places[1][0] - places[0][0] < 0.12 * (scene.width, scene.height)[axis]:
        return None
    thing = scene.things[places[0][1]]
    question = rng.choice(
        ("What is the {w} thing?", "Which thing is the {w}?", "Which thing is {w}?")
    )
    return Turn(
        question.format(w=word),
        sentence(f"the {word} thing is {with_article(thing.label)}"),
        thing.noun,
    )


def ask_absent(rng: Random, scene: Scene) -> Turn:
    """A question that takes something for granted that is not there."""
    name = absent(rng, scene)
    question = rng.choice(
        (*COLOUR, *WHERE, *WHERE, "What is to the left of {it}?", "What is above {it}?")
    )
    if question in COLOUR:
        name = name.split()[-1] if name.split()[-1] in SHAPES else name
        if any(name in thing.label.split() for thing in scene.things):
            return ask_absent(rng, scene)
    return Turn(question.format(it=f"the {name}"), none_of(name), named=((name, None),))


def to_model(box: Sequence[float], scene: Scene) -> list[int]:
    """Coordinates x, y, x, y… of the drawn picture in pixels of the model size."""
    height, width = smart_resize(
        scene.height, scene.width, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS
    )
    scale = width / scene.width, height / scene.height
    return [round(value * scale[number % 2]) for number, value in enumerate(box)]


def asked_for(rng: Random, scene: Scene) -> tuple[str, list[int]] | None:
    """Whom to locate: ("every dog" or "the small circle", the numbers of the things meant)."""
    everything = range(len(scene.things))
    if rng.random() < 0.4:
        if not (found := refer(rng, scene)):
            return None
        return found[0], [number for number in everything if scene.things[number] is found[1]]
    thing = rng.choice(scene.things)
    name = rng.choice(("thing", thing.noun, thing.noun if thing.kind == OTHER else thing.kind))
    numbers = [
        n for n in everything if name in ("thing", scene.things[n].noun, scene.things[n].kind)
    ]
    return f"every {name}", numbers


def locating(
    question: str, key: str, places: Sequence[Sequence[float]], them: str, things: Sequence[Thing]
) -> Turn:
    """The question for boxes or points, and the answer as the official models write it: fenced, an
    entry a line."""
    entries = [
        {key: list(place), "label": thing.label}
        for place, thing in zip(places, things, strict=True)
    ]
    answer = "```json\n[\n" + ",\n".join("\t" + json.dumps(entry) for entry in entries) + "\n]\n```"
    coordinates = [found.start() for found in COORDINATE.finditer(answer)]
    told = [(start, things[number // len(places[0])]) for number, start in enumerate(coordinates)]
    ends = [found.end() for found in re.finditer("}", answer)]
    told += zip(ends, (*things[1:], None), strict=True)
    return Turn(
        question, answer, named=((them, things[0]),) if len(things) == 1 else (), told=tuple(told)
    )


def ask_boxes(rng: Random, scene: Scene) -> Turn | None:
    if rng.random() < 0.1:
        name = absent(rng, scene)
        return Turn(
            rng.choice(DETECT).format(them=f"every {name}"), none_of(name), named=((name, None),)
        )
    if not (found := asked_for(rng, scene)):
        return None
    them, numbers = found
    boxes = [to_model(scene.boxes[n], scene) for n in numbers]
    return locating(
        rng.choice(DETECT).format(them=them),
        "bbox_2d",
        boxes,
        them,
        [scene.things[n] for n in numbers],
    )


def ask_points(rng: Random, scene: Scene) -> Turn | None:
    if not (found := asked_for(rng, scene)):
        return None
    them, numbers = found
    points = [to_model(middle(scene.boxes[n]), scene) for n in numbers]
    return locating(
        rng.choice(POINT).format(them=them),
        "point_2d",
        points,
        them,
        [scene.things[n] for n in numbers],
    )


def middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def ask_back(rng: Random, scene: Scene) -> tuple[Turn, Turn] | None:
    """Two turns: a question about one thing, then another about "it"."""
    if not (found := refer(rng, scene)):
        return None
    name, thing = found
    first = Turn(
        rng.choice(WHERE).format(it=name),
        sentence(f"{name} is {PLACES[thing.place]}"),
        named=(found,),
    )
    if thing.colour and thing.colour not in name:
        return first, Turn(
            rng.choice(COLOUR).format(it="it"), sentence(f"it is {thing.colour}"), thing.colour
        )
    if thing.noun not in name:
        return first, Turn("What is it?", sentence(f"it is {with_article(thing.noun)}"), thing.noun)
    if thing.size not in name:
        return first, Turn("How large is it?", sentence(f"it is {thing.size}"), thing.size)
    return None


ABILITIES: dict[str, Maker] = {
    "description": ask_description,
    "colour": ask_colour,
    "count": ask_count,
    "shape": ask_shape,
    "name": ask_name,
    "where": ask_where,
    "beside": ask_beside,
    "presence": ask_presence,
    "whether": ask_whether,
    "comparison": ask_comparison,
    "same colour": ask_same_colour,
    "extreme": ask_extreme,
    "absent": ask_absent,
    "boxes": ask_boxes,
    "points": ask_points,
}


def ask(rng: Random, scene: Scene, ability: str) -> Turn | None:
    """One question of an ability; None where the scene allows none."""
    for _ in range(4):
        if turn := ABILITIES[ability](rng, scene):
            return turn
    return None


def converse(rng: Random, scene: Scene, abilities: Sequence[str]) -> list[Turn]:
    """Several questions about one scene, none with an answer given before:
    that could be copied, without looking."""
    turns: dict[str, Turn] = {}
    for ability in abilities:
        if turn := ask(rng, scene, ability):
            turns.setdefault(turn.answer, turn)
    return list(turns.values())

"""Training batches as tensors: conversations about scenes, words, pairs and clips,
and pictures to practise on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from qwen25vl.processing.image import ImageSettings, patchify, resize
from train_demo.clips import RATES, ask_clip, draw_clip, make_clip
from train_demo.looking import (
    CHANGED,
    COLOUR_NUMBERS,
    FACTS,
    FRAMES,
    NOUN,
    NOUNS,
    PICTURE,
    SECOND,
    SIZE,
    see_glyphs,
    see_scene,
    token_boxes,
)
from train_demo.pairs import make_pair
from train_demo.questions import ABILITIES, Turn, ask, ask_back, converse
from train_demo.scenes import (
    FACTOR,
    MAX_PIXELS,
    MIN_PIXELS,
    Scene,
    Thing,
    draw,
    make_mosaic,
    make_scene,
)
from train_demo.texts import make_lines, make_page, make_table
from train_demo.things import Atlas
from train_demo.vocabulary import SYSTEM

IGNORED = -100
IN_ONE_WORD = ("Answer in one word.", "Answer with one word.", "Use a single word.")
SIDES = range(4, 25)  # of a picture in visual tokens
RARER = 0  # every area as often, although a large picture costs as much as several small ones
FRAMES_OF_FILES = (112, 150)  # visual tokens: a video's frames are enlarged to at least 128
Size = tuple[int, int]
Batch = dict[str, torch.Tensor]
# a picture that nothing is asked about, and what its tokens show
Drill = tuple[Image.Image, Size, np.ndarray]
# how often an ability is asked
SHARES = {
    "description": 9, "colour": 2, "count": 8, "shape": 1, "name": 7, "where": 4, "beside": 4,
    "presence": 7, "whether": 3, "comparison": 5, "same colour": 2, "extreme": 2, "absent": 4,
    "boxes": 11, "points": 3,
}  # fmt: skip
# where the tokens that decide begin: something or nothing, a second, yes or no, a coordinate, a
# label, another box
DECISIVE = re.compile(
    r"""\A|(?<= at )\d|(?<=, so )\w|(?<=[\[ ])\d(?=\d*[,\]])|(?<="label": ")\w|(?<=\})[,\n]"""
)
TELLING = ("description", "count", "boxes", "points")  # answers that tell much of a scene


@dataclass(frozen=True)
class Example:
    """A conversation about pictures, or about a clip (its frames),
    at model size (height, width)."""

    media: list[Image.Image]
    size: Size
    turns: Sequence[Turn]
    seen: np.ndarray  # what its visual tokens show, as in `looking`
    system: str = SYSTEM
    rate: float = 0  # frames per second of a clip
    with_ids: bool = False
    # of things: a row's middle in `looking`
    facts: Mapping[Thing, Sequence[float]] = field(default_factory=dict)


def model_sizes(fewest: int, most: int) -> list[Size]:
    """Heights and widths in pixels, at most twice as long as wide, of so many visual tokens."""
    return [(h * FACTOR, w * FACTOR) for h in SIDES for w in SIDES
            if fewest <= h * w <= most and max(h, w) <= 2 * min(h, w)]  # fmt: skip


@lru_cache
def sizes_by_area(fewest: int, most: int, rarer: float) -> tuple[list[Size], list[float]]:
    """Sizes and how often each is taken, however many share an area: twice as large, 2 ** rarer
    times as seldom."""
    sizes = model_sizes(fewest, most)
    crowd = [sum(0.8 < oh * ow / (h * w) < 1.25 for oh, ow in sizes) for h, w in sizes]
    return sizes, [1 / (many * (h * w) ** rarer) for many, (h, w) in zip(crowd, sizes, strict=True)]


def choose_size(rng: Random, fewest: int, most: int, rarer: float = 1) -> Size:
    sizes, weights = sizes_by_area(fewest, most, rarer)
    return rng.choices(sizes, weights)[0]


def original_size(rng: Random, size: Size) -> Size:
    """Width and height of a picture that has this model size (height, width):
    its sides are rounded to tokens."""
    height, width = size
    if height * width * 1.2 > MAX_PIXELS or height * width < 1.3 * MIN_PIXELS or rng.random() < 0.4:
        return width, height
    return width + rng.randint(-13, 13), height + rng.randint(-13, 13)


@dataclass(frozen=True)
class Stage:
    """What is shown at some step: pictures grow, and scenes hold more things."""

    most_tokens: int
    counts: Sequence[int]
    share_of_shapes: float

    @staticmethod
    def at(step: int) -> Stage:
        if step < 500:
            return Stage(36, (1, 1, 1, 2), 0.5)
        if step < 1500:
            return Stage(49, (1, 1, 2, 2, 3), 0.4)
        if step < 2000:
            most_tokens = 64
        elif step < 3000:
            most_tokens = 144
        else:
            most_tokens = 576
        return Stage(most_tokens, (1, 2, 2, 3, 3, 4, 5), 0.4)


def make_scene_example(rng: Random, atlas: Atlas, size: Size, stage: Stage) -> Example:
    scene = make_scene(
        rng, *original_size(rng, size), rng.choice(stage.counts), stage.share_of_shapes
    )
    picture, scene = draw(scene, rng, atlas)
    turns, system = ask_scene(rng, scene, 7 + num_tokens(size) // 45)
    return Example(
        [picture], size, turns, see_scene(scene, *size), system, facts=facts_of(scene, size)
    )


def facts_of(scene: Scene, size: Size, picture: float = math.nan) -> dict[Thing, Sequence[float]]:
    boxes = token_boxes(scene, *size)
    return {
        thing: (*box, picture, math.nan, math.nan)
        for thing, box in zip(scene.things, boxes, strict=True)
    }


def ask_scene(rng: Random, scene: Scene, num_questions: int) -> tuple[list[Turn], str]:
    """Up to so many questions; some conversations have a system message or
    a request for one word."""
    manner = rng.random()
    chosen = rng.choices(tuple(SHARES), tuple(SHARES.values()), k=num_questions)
    if rng.random() < 0.5:  # else what was said before answers many a question
        chosen.sort(key=TELLING.__contains__)
    turns = converse(rng, scene, chosen)
    if rng.random() < 0.1 and (pair := ask_back(rng, scene)):
        turns = [*turns[:3], *pair]
    if manner < 0.1:
        return shorten([turn for turn in turns if turn.short]) or turns, IN_ONE_WORD[0] if any(
            turn.short for turn in turns
        ) else SYSTEM
    if manner < 0.16:
        request = rng.choice(IN_ONE_WORD)
        return [
            Turn(f"{turn.question} {request}", in_one_word(turn))
            if turn.short and rng.random() < 0.6
            else turn
            for turn in turns
        ], SYSTEM
    return turns, SYSTEM


def in_one_word(turn: Turn) -> str:
    return turn.short[0].upper() + turn.short[1:] + "."


def shorten(turns: Sequence[Turn]) -> list[Turn]:
    return [Turn(turn.question, in_one_word(turn)) for turn in turns]


def make_text_example(rng: Random, atlas: Atlas, size: Size, stage: Stage) -> Example:
    width, height = original_size(rng, size)
    if rng.random() < 0.35 and height * width > 25 * FACTOR**2:
        written, turns = make_table(rng, atlas, width, height)
    else:
        written, turns = make_lines(rng, atlas, width, height, easy=len(stage.counts) < 5)
    picture, glyphs = written
    return Example([picture], size, turns, see_glyphs(glyphs, picture.size, *size))


def make_pair_example(rng: Random, atlas: Atlas, size: Size, _: Stage) -> Example:
    scenes, turns = make_pair(rng, *original_size(rng, size))
    # the same accidents in both pictures
    seed = rng.getrandbits(32) if rng.random() < 0.5 else None
    drawn = [draw(scene, Random(seed) if seed else rng, atlas) for scene in scenes]
    seen = see_pair([scene for _, scene in drawn], size)
    one, two = (facts_of(scene, size, number) for number, (_, scene) in enumerate(drawn))
    # these are in both
    facts = one | two | {thing: facts_of(drawn[0][1], size)[thing] for thing in one.keys() & two}
    return Example(
        [picture for picture, _ in drawn],
        size,
        turns,
        seen,
        with_ids=rng.random() < 0.6,
        facts=facts,
    )


def see_pair(scenes: Sequence[Scene], size: Size) -> np.ndarray:
    """Also which picture a token is of, and in the second where it shows
    something else than the first."""
    parts = [see_scene(scene, *size) for scene in scenes]
    for number, part in enumerate(parts):
        part[:, PICTURE] = number
    # one was changed
    if {thing.place for thing in scenes[1].things} <= {thing.place for thing in scenes[0].things}:
        changes = [
            see_scene(without(scene, other), *size) for scene, other in (scenes, scenes[::-1])
        ]
        parts[1][:, CHANGED] = (changes[0][:, NOUN] > 0) | (changes[1][:, NOUN] > 0)
    return np.concatenate(parts)


def without(scene: Scene, other: Scene) -> Scene:
    """What of a drawn scene is not in the other one."""
    rest = {
        thing: box
        for thing, box in zip(scene.things, scene.boxes, strict=True)
        if thing not in other.things
    }
    return replace(scene, things=tuple(rest), boxes=tuple(rest.values()))


def make_clip_example(rng: Random, atlas: Atlas, size: Size, _: Stage) -> Example:
    clip = make_clip(rng, *original_size(rng, size))
    rates = [rate for rate in RATES if rate * clip.seconds >= 4]
    rate = rng.choices(rates, [1 / rate for rate in rates])[0]  # as many frames of each
    frames, scenes = draw_clip(clip, rate, rng, atlas)
    seen = [see_step(pair, size) for pair in zip(scenes[::2], scenes[1::2], strict=True)]
    for number, part in enumerate(seen):
        part[:, SECOND] = 2 * number / rate
    facts = {track.thing: (math.nan,) * 5 + (track.start, track.end) for track in clip.tracks}
    return Example(frames, size, ask_clip(rng, clip), np.concatenate(seen), rate=rate, facts=facts)


def see_step(pair: tuple[Scene, Scene], size: Size) -> np.ndarray:
    """What two frames that become one step of tokens show, each thing where it was last."""
    boxes = {
        thing: box for scene in pair for thing, box in zip(scene.things, scene.boxes, strict=True)
    }
    seen = see_scene(replace(pair[0], things=tuple(boxes), boxes=tuple(boxes.values())), *size)
    first, second = (see_scene(scene, *size)[:, NOUN] > 0 for scene in pair)
    seen[:, FRAMES] = (first & ~second) + 2 * (second & ~first)
    return seen


def practise_things(rng: Random, atlas: Atlas, size: Size, share_of_shapes: float = 0.15) -> Drill:
    picture, mosaic = draw(make_mosaic(rng, *original_size(rng, size), share_of_shapes), rng, atlas)
    seen = see_scene(mosaic, *size)
    seen[:, SIZE] = -1  # what is small and large is for scenes alone
    return picture, size, seen


def practise_letters(rng: Random, atlas: Atlas, size: Size) -> Drill:
    picture, glyphs = make_page(rng, atlas, *original_size(rng, size))
    return picture, size, see_glyphs(glyphs, picture.size, *size)


Make = Callable[[Random, Atlas, Size, Stage], Example]
# what a batch is made of: (maker, visual tokens for it, most tokens of one picture)
PARTS: tuple[tuple[Make, int, int], ...] = (
    (make_scene_example, 560, 576),
    (make_text_example, 320, 256),
    (make_pair_example, 180, 100),
    (make_clip_example, 360, 36),
)
DRILLS: tuple[tuple[Callable[[Random, Atlas, Size], Drill], int], ...] = (
    (practise_things, 420), (practise_letters, 320),
)  # fmt: skip
LARGEST_DRILL = 196  # visual tokens


class Batches:
    """Batch number i is always the same; `step` is what decides how far the curriculum is."""

    def __init__(
        self, tokenizer: Tokenizer, atlas: Atlas, num_ranks: int = 1, seed: int = 1
    ) -> None:
        self.tokenizer, self.atlas, self.num_ranks, self.seed = tokenizer, atlas, num_ranks, seed

    def __getitem__(self, index: int) -> Batch:
        rng = Random(f"{self.seed}/{index}")
        stage = Stage.at(index // self.num_ranks)
        return make_batch(
            self.tokenizer, list(self.examples(rng, stage)), list(self.drills(rng, stage))
        )

    def examples(self, rng: Random, stage: Stage) -> Iterator[Example]:
        for make, budget, most in PARTS:
            size = choose_size(rng, 16, min(most, stage.most_tokens), RARER)
            if make is make_clip_example and stage.most_tokens >= 576 and rng.random() < 0.1:
                size = choose_size(rng, *FRAMES_OF_FILES)
            spent = 0
            while spent < budget - num_tokens(size) / 2:
                example = make(rng, self.atlas, size, stage)
                spent += num_visual_tokens(example)
                if example.turns:
                    yield example

    def drills(self, rng: Random, stage: Stage) -> Iterator[Drill]:
        for practise, budget in DRILLS:
            spent = 0
            while spent < budget:
                size = choose_size(rng, 16, min(LARGEST_DRILL, stage.most_tokens), RARER)
                spent += num_tokens(size)
                yield practise(rng, self.atlas, size)


def make_questions(
    tokenizer: Tokenizer,
    atlas: Atlas,
    kind: str,
    num_examples: int,
    seed: str,
    batch_size: int = 20,
) -> list[Batch]:
    """Held-out examples of one kind, one question each:
    an ability of scenes, or lines, tables, pairs, clips."""
    batches = []
    stage = Stage(49, (1, 2, 2, 3), 0.4)
    for index in range(num_examples // batch_size):
        rng = Random(f"{seed}/{kind}/{index}")
        size = choose_size(rng, 16, stage.most_tokens)
        examples: list[Example] = []
        while len(examples) < batch_size:
            if example := make_question(rng, atlas, kind, size, stage):
                examples.append(example)
        batches.append(make_batch(tokenizer, examples))
    return batches


def make_question(rng: Random, atlas: Atlas, kind: str, size: Size, stage: Stage) -> Example | None:
    if kind in ABILITIES:
        scene = make_scene(
            rng, *original_size(rng, size), rng.choice(stage.counts), stage.share_of_shapes
        )
        picture, scene = draw(scene, rng, atlas)
        turn = ask(rng, scene, kind)
        return Example([picture], size, [turn], see_scene(scene, *size)) if turn else None
    if kind in ("lines", "table"):
        width, height = original_size(rng, size)
        (picture, glyphs), turns = (
            make_lines(rng, atlas, width, height, False)
            if kind == "lines"
            else make_table(rng, atlas, width, height)
        )
        return Example([picture], size, turns[:1], see_glyphs(glyphs, picture.size, *size))
    make = make_pair_example if kind == "pair" else make_clip_example
    example = make(rng, atlas, (5 * FACTOR, 5 * FACTOR), stage)
    return replace(example, turns=example.turns[:1])


HELD_OUT = (*ABILITIES, "lines", "table", "pair", "clip")


def num_tokens(size: Size) -> int:
    return math.prod(size) // FACTOR**2


def num_visual_tokens(example: Example) -> int:
    return num_tokens(example.size) * len(example.media) // (2 if example.rate else 1)


def make_batch(
    tokenizer: Tokenizer, examples: Sequence[Example], drills: Sequence[Drill] = ()
) -> Batch:
    """Resize to the model size and tokenise; rows are padded on the right. `seen` ends with what
    the drills show."""
    rows = [tokenise(tokenizer, example) for example in examples]
    lengths = [len(row.ids) for row in rows]
    starts = np.cumsum([0, *lengths])

    def pad(values: list[list[Any]], padding: float) -> torch.Tensor:
        return torch.tensor([row + [padding] * (max(lengths) - len(row)) for row in values])

    def collect(lesson: str, width: int) -> torch.Tensor:
        found = [(start + place, *facts) for start, row in zip(starts, rows, strict=False)
                 for place, *facts in getattr(row, lesson)]  # fmt: skip
        return torch.tensor(found, dtype=torch.float32).view(-1, width)

    batch = {
        "input_ids": pad([row.ids for row in rows], 0),
        "labels": pad([row.labels for row in rows], IGNORED),
        "weights": pad([row.weights for row in rows], 0.0),
        "attention_mask": pad([[1] * length for length in lengths], 0),
        "names": collect("names", FACTS),
        "told": collect("told", FACTS),
        "read": collect("read", 3),
    }
    stills = [example for example in examples if not example.rate]
    clips = [example for example in examples if example.rate]
    seen = [example.seen for example in (*stills, *clips)] + [seen for _, _, seen in drills]
    batch["seen"] = torch.from_numpy(np.concatenate(seen))
    if drills:
        batch["drill_pixels"] = torch.cat(
            [make_pixels([picture], size) for picture, size, _ in drills]
        )
        batch["drill_grids"] = torch.tensor([(1, h // 14, w // 14) for _, (h, w), _ in drills])
    pictures = [(picture, example.size) for example in stills for picture in example.media]
    if pictures:
        batch["pixel_values"] = torch.cat(
            [make_pixels([picture], size) for picture, size in pictures]
        )
        batch["image_grid_thw"] = torch.tensor([(1, h // 14, w // 14) for _, (h, w) in pictures])
    if clips:
        batch["pixel_values_videos"] = torch.cat(
            [make_pixels(clip.media, clip.size) for clip in clips]
        )
        batch["video_grid_thw"] = torch.tensor(
            [(len(clip.media) // 2, clip.size[0] // 14, clip.size[1] // 14) for clip in clips]
        )
        batch["second_per_grid_ts"] = torch.tensor([2 / clip.rate for clip in clips])
    return batch


def slots(example: Example) -> str:
    """The template's text of the media."""
    pad = "<|video_pad|>" if example.rate else "<|image_pad|>"
    num_media = 1 if example.rate else len(example.media)
    one = f"<|vision_start|>{pad * (num_visual_tokens(example) // num_media)}<|vision_end|>"
    name = "Video" if example.rate else "Picture"
    return "".join(f"{name} {n + 1}: {one}" if example.with_ids else one for n in range(num_media))


@dataclass
class Row:
    """An example in tokens: labels and their weights are set on the answers only."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    # place of the token, and the rest as in `looking`
    names: list[tuple[float, ...]] = field(default_factory=list)
    told: list[tuple[float, ...]] = field(default_factory=list)
    read: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, ids: Sequence[int], weights: Sequence[float] = ()) -> None:
        self.ids += ids
        self.labels += ids if weights else [IGNORED] * len(ids)
        self.weights += weights or [0.0] * len(ids)


def tokenise(tokenizer: Tokenizer, example: Example) -> Row:
    """The chat template's ids."""
    row = Row()
    row.add(encode(tokenizer, f"<|im_start|>system\n{example.system}<|im_end|>\n"))
    for number, turn in enumerate(example.turns):
        row.add(encode(tokenizer, f"<|im_start|>user\n{'' if number else slots(example)}"))
        row.names += find_names(tokenizer, example, turn, turn.question, len(row.ids))
        row.add(encode(tokenizer, turn.question))
        row.add(encode(tokenizer, "<|im_end|>\n<|im_start|>assistant\n"))
        row.names += find_names(tokenizer, example, turn, turn.answer, len(row.ids))
        row.told += find_told(tokenizer, example, turn, len(row.ids))
        row.read += find_letters(tokenizer, example, turn, len(row.ids))
        row.add(*weigh(tokenizer, turn.answer + "<|im_end|>"))
        row.add(encode(tokenizer, "\n"))
    return row


def find_names(
    tokenizer: Tokenizer, example: Example, turn: Turn, text: str, start: int
) -> Iterator[tuple[float, ...]]:
    """The last tokens of the turn's names in a text that starts here,
    and whether and where the things are."""
    for name, thing in turn.named if example.facts else ():
        for found in re.finditer(rf"\b{re.escape(name)}\b", text, re.IGNORECASE):
            last = start + len(encode(tokenizer, text[: found.end()])) - 1
            yield last, *know(example, thing)


def find_told(
    tokenizer: Tokenizer, example: Example, turn: Turn, start: int
) -> Iterator[tuple[float, ...]]:
    """The tokens before those at which a thing comes next, and where and when it is; or none."""
    things = dict(turn.told)
    if not things or not example.facts:
        return
    for number, (begin, end) in enumerate(
        tokenizer.encode(turn.answer, add_special_tokens=False).offsets
    ):
        for place in range(begin, end):
            if place in things:
                yield start + number - 1, *know(example, things[place])


def know(example: Example, thing: Thing | None) -> tuple[float, ...]:
    """What a row in `looking` says behind the token's number."""
    if not thing:
        return (0.0, *[math.nan] * (FACTS - 2))
    return (1.0, *example.facts[thing], NOUNS[thing.noun], COLOUR_NUMBERS.get(thing.colour, 0))


def find_letters(
    tokenizer: Tokenizer, example: Example, turn: Turn, start: int
) -> Iterator[tuple[float, ...]]:
    """The tokens before those that are read, and where these stand in visual tokens."""
    places = {number: (x, y) for number, x, y in turn.letters}
    if not places:
        return
    (width, height), (model_height, model_width) = example.media[0].size, example.size
    for number, (begin, end) in enumerate(
        tokenizer.encode(turn.answer, add_special_tokens=False).offsets
    ):
        if begin in places and end > begin:
            x, y = places[begin]
            yield (
                start + number - 1,
                x / width * model_width / FACTOR,
                y / height * model_height / FACTOR,
            )


@lru_cache(maxsize=20000)
def weigh(tokenizer: Tokenizer, answer: str) -> tuple[Sequence[int], Sequence[float]]:
    """An answer's ids and their weights.

    An answer four times as long weighs twice as much: otherwise the digits of boxes drown a verdict
    of one word. Those that decide weigh like an answer of their own.
    """
    encoding = tokenizer.encode(answer, add_special_tokens=False)
    starts = {found.start() for found in DECISIVE.finditer(answer)}
    decide = [bool(starts & {*range(*ends)}) for ends in encoding.offsets]
    shares = 1 / math.sqrt(len(decide)), 1 / math.sqrt(sum(decide))
    return encoding.ids, [shares[yes] for yes in decide]


@lru_cache(maxsize=20000)
def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def make_pixels(pictures: Sequence[Image.Image], size: Size) -> torch.Tensor:
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(
        0, 3, 1, 2
    )
    return patchify(resize(frames, *size), ImageSettings())[0]

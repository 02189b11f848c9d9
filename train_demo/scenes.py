"""Scenes: coloured shapes and everyday things on a plain or textured ground,
drawn and known exactly.

A picture is cut into three by three places; every thing stands near the middle of its own. Sizes
are relative to the picture's area, so that "large" means the same in every picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from train_demo.things import KINDS, Atlas

FACTOR = 28  # pixels along one side of a visual token
MIN_PIXELS, MAX_PIXELS = 16 * FACTOR**2, 576 * FACTOR**2
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (0.17, 0.22), "large": (0.34, 0.41)}  # diameter / sqrt(area) of shapes
THING_SIZES = {"small": (0.24, 0.29), "large": (0.40, 0.46)}  # things have details
SMALLEST_IN_MOSAIC = 28  # pixels
COLOURS = {
    "red": (212, 38, 40),
    "orange": (244, 128, 30),
    "yellow": (248, 212, 44),
    "green": (40, 152, 62),
    "blue": (38, 88, 208),
    "purple": (132, 52, 170),
    "black": (26, 26, 30),
}
PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the centre", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
SIDES = ("to the left of", "to the right of", "above", "below")
GROUNDS = ("plain", "gradient", "stripes", "checks", "dots", "noise")
OVERSAMPLING = 4
# how many times farther along one axis than along the other something must be to be "above" or
# "left"
CLEARLY = 1.4
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """A shape, with a colour, or a thing without; `place` is an index of PLACES, x, y and diameter
    are in pixels."""

    kind: str
    noun: str
    size: str
    colour: str
    place: int
    x: float
    y: float
    diameter: float

    @property
    def label(self) -> str:
        return f"{self.colour} {self.noun}".strip()

    @property
    def name(self) -> str:
        return f"{self.size} {self.label}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order on a ground of one of the GROUNDS;
    `boxes` are known once it is drawn."""

    width: int
    height: int
    ground: str
    things: tuple[Thing, ...]
    boxes: tuple[Box, ...] = field(default=(), compare=False)


def make_scene(
    rng: Random, width: int, height: int, num_things: int, share_of_shapes: float = 0.5
) -> Scene:
    """Choose the ground and things that do not touch; some scenes repeat a thing, so that there is
    more to count."""
    while True:
        things: list[Thing] = []
        repeats = num_things > 1 and rng.random() < 0.4
        for _ in range(40 * num_things):
            thing = make_thing(rng, width, height, share_of_shapes, small=len(things) > 1)
            if repeats and things and rng.random() < 0.7:
                thing = replace(thing, kind=things[0].kind, noun=things[0].noun)
                thing = replace(
                    thing,
                    colour=(thing.colour or rng.choice(tuple(COLOURS))) * (thing.kind == "shape"),
                )
            if all(stands_apart(thing, other) for other in things):
                things.append(thing)
            if len(things) == num_things and (num_things != 2 or side(*things)):
                things.sort(key=lambda thing: thing.place)
                return Scene(width, height, rng.choice(GROUNDS), tuple(things))


def make_mosaic(rng: Random, width: int, height: int, share_of_shapes: float) -> Scene:
    """Things in rows and columns, about equally large: to practise seeing, not to be asked about.

    Their `size` and `place` mean nothing.
    """
    typical = SMALLEST_IN_MOSAIC * (0.5 * min(width, height) / SMALLEST_IN_MOSAIC) ** rng.random()
    num_columns, num_rows = int(width / typical), int(height / typical)
    wide, tall = width / num_columns, height / num_rows
    things = []
    for number in range(num_columns * num_rows):
        row, column = divmod(number, num_columns)
        diameter = rng.uniform(0.7, 1) * min(wide, tall)
        x = (column + 0.5) * wide + rng.uniform(-0.5, 0.5) * (wide - diameter)
        y = (row + 0.5) * tall + rng.uniform(-0.5, 0.5) * (tall - diameter)
        thing = make_thing(rng, width, height, share_of_shapes)
        things.append(replace(thing, diameter=diameter, x=x, y=y))
    return Scene(width, height, rng.choice(GROUNDS), tuple(things))


def make_thing(
    rng: Random, width: int, height: int, share_of_shapes: float, small: bool = False
) -> Thing:
    size = "small" if small and rng.random() < 0.8 else rng.choice(tuple(SIZES))
    kind, noun, colour = "shape", rng.choice(SHAPES), rng.choice(tuple(COLOURS))
    if rng.random() >= share_of_shapes:
        noun, colour = rng.choice(tuple(KINDS)), ""
        kind = KINDS[noun]
    diameter = rng.uniform(*(SIZES if colour else THING_SIZES)[size]) * math.sqrt(width * height)
    place = rng.randrange(len(PLACES))
    x, y = ((part + 0.5 + rng.uniform(-0.2, 0.2)) / 3 for part in (place % 3, place // 3))
    margin = 0.57 * diameter
    x = min(max(x * width, margin), width - margin)
    y = min(max(y * height, margin), height - margin)
    return Thing(kind, noun, size, colour, place, x, y, diameter)


def stands_apart(a: Thing, b: Thing) -> bool:
    apart = math.hypot(a.x - b.x, a.y - b.y) > 0.57 * (a.diameter + b.diameter)
    return apart and a.place != b.place


def side(a: Thing, b: Thing) -> str:
    """On which of the SIDES of b a stands; empty where it is not clear."""
    x, y = a.x - b.x, a.y - b.y
    if abs(x) > CLEARLY * abs(y):
        return SIDES[x > 0]
    return SIDES[2 + (y > 0)] if abs(y) > CLEARLY * abs(x) else ""


def draw(scene: Scene, rng: Random, atlas: Atlas, spoil: bool = True) -> tuple[Image.Image, Scene]:
    """The scene's picture, and the scene with its boxes in pixels of that picture.

    `rng` gives the accidents (tints, angles, styles, grain, JPEG artefacts) that no text mentions.
    """
    picture = draw_ground(scene.width, scene.height, scene.ground, rng)
    boxes = tuple(paste(picture, thing, draw_thing(thing, rng, atlas)) for thing in scene.things)
    return (spoiled(picture, rng) if spoil else picture), replace(scene, boxes=boxes)


def paste(picture: Image.Image, thing: Thing, tile: Image.Image) -> Box:
    """Put the tile's middle where the thing stands;
    what of it can be seen, as left, top, right, bottom."""
    left, top = round(thing.x - tile.width / 2), round(thing.y - tile.height / 2)
    picture.paste(tile.convert("RGB"), (left, top), tile)
    solid = tile.getchannel("A").point([255 * (level > 100) for level in range(256)]).getbbox()
    x1, y1, x2, y2 = solid or (0, 0, *tile.size)
    return (
        float(max(0, left + x1)), float(max(0, top + y1)),
        float(min(picture.width, left + x2)), float(min(picture.height, top + y2)),
    )  # fmt: skip


def draw_ground(width: int, height: int, ground: str, rng: Random) -> Image.Image:
    base = np.array([rng.uniform(165, 245) for _ in range(3)], dtype=np.float32)
    base = base.mean() + 0.5 * (base - base.mean())  # pale
    contrast, angle = rng.uniform(8, 22), rng.uniform(0, math.pi)
    period = rng.uniform(0.05, 0.15) * math.sqrt(width * height)
    if ground == "plain":
        return Image.new("RGB", (width, height), tuple(int(level) for level in base))
    y, x = np.ogrid[0:height, 0:width]
    u = (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32)
    v = (y * math.cos(angle) - x * math.sin(angle)).astype(np.float32)
    if ground == "gradient":
        level = u / max(width, height)
    elif ground == "noise":
        level = (
            np.random.default_rng(rng.getrandbits(32)).standard_normal(u.shape, dtype=np.float32)
            / 2
        )
    else:
        wave_u, wave_v = np.sin(u * (2 * math.pi / period)), np.sin(v * (2 * math.pi / period))
        level = {
            "stripes": lambda: np.clip(3 * wave_u, -1, 1) / 2,
            "checks": lambda: np.clip(6 * wave_u * wave_v, -1, 1) / 2,
            "dots": lambda: np.clip(6 * (wave_u + wave_v - 1.2), 0, 1),
        }[ground]()
    pixels = base + (contrast * level)[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_thing(thing: Thing, rng: Random, atlas: Atlas) -> Image.Image:
    """The thing alone (mode RGBA) in a tile centred on it, a little turned."""
    turn = rng.uniform(-14, 14)
    if thing.colour:
        tint = tuple(
            min(255, max(0, level + rng.randint(-16, 16))) for level in COLOURS[thing.colour]
        )
        mask = draw_mask(thing, math.radians(turn))
        tile = Image.new("RGBA", mask.size, (*tint, 0))
        tile.putalpha(mask)
        return tile
    tile = atlas.picture(thing.noun, rng)
    if atlas.for_training:
        tile = restyled(tile, rng)
    side = max(8, round(thing.diameter))
    tile = tile.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    tile = tile.crop(tile.getbbox())
    scale = side / max(tile.size)
    tile = tile.resize(
        (max(1, round(tile.width * scale)), max(1, round(tile.height * scale))),
        Image.Resampling.BOX,
    )
    return tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.3 else tile


def restyled(tile: Image.Image, rng: Random) -> Image.Image:
    """Often in few flat tints, in other tints, with dark lines: what a thing is does not hang on
    how it is drawn."""
    alpha = tile.getchannel("A")
    manner = rng.random()
    if manner < 0.3:
        tile = flattened(tile, rng)
    elif manner < 0.6:
        tile = ImageEnhance.Color(tile).enhance(rng.uniform(0.2, 1.5))
        tile = ImageEnhance.Brightness(tile).enhance(rng.uniform(0.8, 1.15))
        tile.putalpha(alpha)
    if rng.random() < 0.3:
        around = alpha.filter(ImageFilter.MaxFilter(rng.choice((5, 7, 9))))
        outlined = Image.new("RGBA", tile.size, (rng.randrange(50),) * 3)
        outlined.putalpha(around)
        outlined.alpha_composite(tile)
        tile = outlined
    return tile


def flattened(tile: Image.Image, rng: Random) -> Image.Image:
    """In a few flat tints, mostly with dark lines where one meets another."""
    flat = (
        tile.convert("RGB")
        .filter(ImageFilter.MedianFilter(5))
        .quantize(rng.randint(4, 8), kmeans=0, dither=0)
    )
    levels = np.asarray(flat)
    pixels = np.asarray(flat.convert("RGB")).copy()
    if rng.random() < 0.7:
        border = np.zeros_like(levels, dtype=bool)
        border[1:] |= levels[1:] != levels[:-1]
        border[:, 1:] |= levels[:, 1:] != levels[:, :-1]
        lines = (
            Image.fromarray(border)
            .convert("L")
            .filter(ImageFilter.MaxFilter(rng.choice((3, 3, 5))))
        )
        pixels[np.asarray(lines) > 0] = rng.randrange(50)
    flat = Image.fromarray(pixels)
    flat.putalpha(tile.getchannel("A"))
    return flat


def draw_mask(thing: Thing, turn: float) -> Image.Image:
    """The shape's coverage (mode L) in a tile centred on it."""
    side = 2 * math.ceil(0.58 * thing.diameter)
    tile = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING))
    middle, radius = tile.width / 2, thing.diameter / 2 * OVERSAMPLING
    pen = ImageDraw.Draw(tile)
    if thing.noun == "circle":
        pen.circle((middle, middle), 0.94 * radius, fill=255)
    else:
        pen.polygon([(middle + radius * r * math.cos(a + turn),
                      middle + radius * r * math.sin(a + turn))
                     for a, r in outline(thing.noun)], fill=255)  # fmt: skip
    return tile.resize((side, side), Image.Resampling.BOX)


@lru_cache
def outline(shape: str) -> Sequence[tuple[float, float]]:
    """Corners as (angle, share of the radius), the first one on top where there is one."""
    if shape == "square":
        return [(math.pi * (k / 2 + 0.25), 1.12) for k in range(4)]
    if shape == "triangle":
        return [(math.pi * (k * 2 / 3 - 0.5), 1.12) for k in range(3)]
    return [(math.pi * (k / 5 - 0.5), 0.48 if k % 2 else 1.12) for k in range(10)]


def spoiled(picture: Image.Image, rng: Random) -> Image.Image:
    """Some pictures get grain, some the artefacts of JPEG."""
    if rng.random() < 0.2:
        grain = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(2, 9), (*picture.size[::-1], 3)
        )
        picture = Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(35, 90))
        picture = Image.open(file).convert("RGB")
    return picture

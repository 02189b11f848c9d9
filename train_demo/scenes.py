"""Scenes: one to three coloured shapes on a plain or textured ground, drawn and known exactly.

A picture is cut into three by three places; every thing stands near the middle of its own. Sizes are relative to
the picture's area, so that "large" means the same after a picture has been resized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (0.17, 0.22), "large": (0.34, 0.41)}  # diameter / sqrt(area)
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
GROUNDS = ("plain", "gradient", "stripes", "checks", "dots", "noise")
OVERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One shape; `place` is an index of PLACES, x, y and diameter are in pixels."""

    size: str
    colour: str
    shape: str
    place: int
    x: float
    y: float
    diameter: float

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order on a ground of one of the GROUNDS."""

    width: int
    height: int
    ground: str
    things: tuple[Thing, ...]


def make_scene(
    rng: Random, width: int, height: int, num_things: int | None = None, ground: str | None = None
) -> Scene:
    """Choose the ground and one to three things that do not touch."""
    wanted = num_things or rng.choice((1, 2, 3))
    things: list[Thing] = []
    while len(things) < wanted:
        thing = make_thing(rng, width, height)
        if all(stands_apart(thing, other) for other in things):
            things.append(thing)
    things.sort(key=lambda thing: thing.place)
    return Scene(width, height, ground or rng.choice(GROUNDS), tuple(things))


def make_thing(rng: Random, width: int, height: int) -> Thing:
    size = rng.choice(tuple(SIZES))
    diameter = rng.uniform(*SIZES[size]) * math.sqrt(width * height)
    place = rng.randrange(len(PLACES))
    x, y = ((part + 0.5 + rng.uniform(-0.2, 0.2)) / 3 for part in (place % 3, place // 3))
    margin = 0.57 * diameter
    x = min(max(x * width, margin), width - margin)
    y = min(max(y * height, margin), height - margin)
    return Thing(size, rng.choice(tuple(COLOURS)), rng.choice(SHAPES), place, x, y, diameter)


def stands_apart(a: Thing, b: Thing) -> bool:
    apart = math.hypot(a.x - b.x, a.y - b.y) > 0.57 * (a.diameter + b.diameter)
    return apart and a.place != b.place


def draw(scene: Scene, rng: Random) -> Image.Image:
    """The scene's picture; `rng` gives the accidents (tints, angles, grain) that no text mentions."""
    picture = draw_ground(scene, rng)
    for thing in scene.things:
        colour = tuple(min(255, max(0, level + rng.randint(-16, 16))) for level in COLOURS[thing.colour])
        mask = draw_mask(thing, rng)
        picture.paste(colour, (round(thing.x - mask.width / 2), round(thing.y - mask.height / 2)), mask)
    return picture


def draw_ground(scene: Scene, rng: Random) -> Image.Image:
    height, width = scene.height, scene.width
    base = np.array([rng.uniform(165, 245) for _ in range(3)], dtype=np.float32)
    base = base.mean() + 0.5 * (base - base.mean())  # pale
    contrast, angle = rng.uniform(8, 22), rng.uniform(0, math.pi)
    period = rng.uniform(0.05, 0.15) * math.sqrt(width * height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    wave_u, wave_v = np.sin(u * (2 * math.pi / period)), np.sin(v * (2 * math.pi / period))
    grain = np.random.default_rng(rng.getrandbits(32))
    level = {
        "plain": lambda: np.zeros_like(u),
        "gradient": lambda: u / max(width, height),
        "stripes": lambda: np.clip(3 * wave_u, -1, 1) / 2,
        "checks": lambda: np.clip(6 * wave_u * wave_v, -1, 1) / 2,
        "dots": lambda: np.clip(6 * (wave_u + wave_v - 1.2), 0, 1),
        "noise": lambda: grain.standard_normal(u.shape, dtype=np.float32) / 2,
    }[scene.ground]()
    pixels = base + (contrast * level)[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_mask(thing: Thing, rng: Random) -> Image.Image:
    """The shape's coverage (mode L) in a tile centred on it, a little turned."""
    side = 2 * math.ceil(0.58 * thing.diameter)
    tile = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING))
    middle, radius = tile.width / 2, thing.diameter / 2 * OVERSAMPLING
    turn = math.radians(rng.uniform(-14, 14))
    pen = ImageDraw.Draw(tile)
    if thing.shape == "circle":
        pen.circle((middle, middle), 0.94 * radius, fill=255)
    else:
        pen.polygon([(middle + radius * r * math.cos(a + turn), middle + radius * r * math.sin(a + turn))
                     for a, r in outline(thing.shape)], fill=255)  # fmt: skip
    return tile.resize((side, side), Image.Resampling.BOX)


def outline(shape: str) -> list[tuple[float, float]]:
    """Corners as (angle, share of the radius), the first one on top where there is one."""
    if shape == "square":
        return [(math.pi * (k / 2 + 0.25), 1.12) for k in range(4)]
    if shape == "triangle":
        return [(math.pi * (k * 2 / 3 - 0.5), 1.12) for k in range(3)]
    return [(math.pi * (k / 5 - 0.5), 0.48 if k % 2 else 1.12) for k in range(10)]

"""Clips: things that stand, move, appear or vanish on a ground,
at times that are known to the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from train_demo.questions import Turn, find_told, listed, refer, sentence
from train_demo.scenes import Scene, Thing, draw_ground, draw_thing, make_scene, paste
from train_demo.things import Atlas, with_article

RATES = (1, 2, 4)  # frames per second
DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
WAY = (
    "Which way does {it} move?", "In which direction does {it} move?", "Where does {it} go?",
    "How does {it} move?",
)  # fmt: skip
WHEN = (
    "When does {it} {act}?",
    "At what time does {it} {act}?",
    "In which second does {it} {act}?",
)
ORDER = (
    "In which order do the things appear?",
    "What appears first, and what comes then?",
    "Tell the order of appearance.",
)
FIRST = ("What appears {rank}?", "Which thing appears {rank}?")
DESCRIBE = (
    "Describe the video.",
    "What happens in the video?",
    "What happens here?",
    "Describe the clip.",
)


@dataclass(frozen=True)
class Track:
    """A thing that can be seen from `start` up to `end` seconds and moves in one of the DIRECTIONS
    or not at all."""

    thing: Thing
    start: float
    end: float
    direction: str = ""


@dataclass(frozen=True)
class Clip:
    scene: Scene
    tracks: tuple[Track, ...]
    seconds: int


def make_clip(rng: Random, width: int, height: int) -> Clip:
    """Something that moves, perhaps beside something that stands;
    or one to three things that come or go."""
    seconds = rng.randint(3, 8)
    if rng.random() < 0.4:
        scene = make_scene(rng, width, height, rng.choice((1, 1, 2)), 0.6)
        moving = rng.randrange(len(scene.things))
        way = rng.choice(tuple(DIRECTIONS))
        tracks = [
            Track(thing, 0, seconds, way * (n == moving)) for n, thing in enumerate(scene.things)
        ]
        return Clip(scene, tuple(tracks), seconds)
    while True:
        scene = make_scene(rng, width, height, rng.choice((1, 2, 2, 3)), 0.6)
        if len({thing.label for thing in scene.things}) == len(scene.things) < seconds:
            break
    starts: Sequence[int] = rng.sample(range(1, seconds), len(scene.things))
    tracks = [
        Track(thing, start, seconds) for thing, start in zip(scene.things, starts, strict=True)
    ]
    if len(tracks) < 3:
        for number, track in enumerate(tracks):
            chance = rng.random()
            if chance < 0.3:  # it was there and vanishes
                tracks[number] = replace(track, start=0, end=track.start)
            elif chance < 0.4 and len(tracks) > 1:
                tracks[number] = replace(track, start=0)
    return Clip(scene, tuple(tracks), seconds)


def draw_clip(
    clip: Clip, rate: int, rng: Random, atlas: Atlas
) -> tuple[list[Image.Image], list[Scene]]:
    """`rate` frames for each second, and what each of them shows; frames go in pairs, so an odd
    last one twice."""
    scene = clip.scene
    ground = draw_ground(scene.width, scene.height, scene.ground, rng)
    tiles = [draw_thing(track.thing, rng, atlas) for track in clip.tracks]
    speed = rng.uniform(0.5, 0.9)  # share of the side that is crossed
    frames, scenes = [], []
    for number in range(clip.seconds * rate):
        time = number / rate
        frame = ground.copy()
        boxes = {
            track.thing: paste(frame, moved(track, time / clip.seconds, speed, scene), tile)
            for track, tile in zip(clip.tracks, tiles, strict=True)
            if track.start <= time < track.end
        }
        frames.append(frame)
        scenes.append(replace(scene, things=tuple(boxes), boxes=tuple(boxes.values())))
    if len(frames) % 2:
        return [*frames, frames[-1]], [*scenes, scenes[-1]]
    return frames, scenes


def moved(track: Track, progress: float, speed: float, scene: Scene) -> Thing:
    """The thing where it is after that share of the clip: the middle of its way lies in the middle
    of the picture."""
    if not track.direction:
        return track.thing
    x, y = DIRECTIONS[track.direction]
    at = (progress - 0.5) * speed
    return replace(
        track.thing,
        x=scene.width * (0.5 + at * x) if x else track.thing.x,
        y=scene.height * (0.5 + at * y) if y else track.thing.y,
    )


def tell(track: Track, clip: Clip, name: str) -> str:
    if track.direction:
        return f"{name} moves {track.direction}"
    if track.start:
        return f"{name} appears at {plain(track.start)}"
    if track.end < clip.seconds:
        return f"{name} disappears at {plain(track.end)}"
    return f"{name} stands still"


def plain(seconds: float) -> str:
    return f"{seconds:g} second{'s' * (seconds != 1)}"


def ask_clip(rng: Random, clip: Clip) -> list[Turn]:
    """Two or three questions about a clip."""
    turns: list[Turn] = []
    if found := refer(rng, clip.scene):
        name, thing = found
        track = next(track for track in clip.tracks if track.thing is thing)
        told = sentence(tell(track, clip, name))
        if track.direction:
            turns.append(Turn(rng.choice(WAY).format(it=name), told, named=(found,)))
        elif track.start or track.end < clip.seconds:
            act = "appear" if track.start else rng.choice(("disappear", "vanish"))
            turns.append(Turn(rng.choice(WHEN).format(it=name, act=act), told, named=(found,)))
        else:
            turns.append(
                Turn(f"Does {name} move?", sentence(f"no, {name} stands still"), "no", (found,))
            )
    coming = sorted((track for track in clip.tracks if track.start), key=lambda track: track.start)
    if len(coming) > 1:
        things = [track.thing for track in coming]
        names = [with_article(thing.label) for thing in things]
        told = sentence(listed([f"first {names[0]}", *(f"then {name}" for name in names[1:])]))
        turns.append(
            Turn(
                rng.choice(ORDER),
                told,
                told=find_told(told, things, [thing.label for thing in things]),
            )
        )
        word, thing = rng.choice((("first", things[0]), ("last", things[-1])))
        told = sentence(f"{with_article(thing.label)} appears {word}")
        turns.append(
            Turn(rng.choice(FIRST).format(rank=word), told, thing.noun, told=((0, thing),))
        )
    things = [track.thing for track in clip.tracks]
    told = sentence(
        listed([tell(track, clip, with_article(track.thing.name)) for track in clip.tracks])
    )
    turns.append(
        Turn(
            rng.choice(DESCRIBE),
            told,
            told=find_told(told, things, [thing.name for thing in things]),
        )
    )
    return rng.sample(turns, min(len(turns), 3))

"""What the built-in model is trained and measured on: answers, marks and clips that fit the scenes
they speak of."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).parents[1]))

from qwen25vl import Qwen2_5_VLForConditionalGeneration
from qwen25vl.demo import FOLDER
from qwen25vl.grounding import Box
from train_demo.blend import blend
from train_demo.clips import RATES, ask_clip, draw_clip, make_clip
from train_demo.data import Batch, Example, facts_of, make_batch, practise_things, see_pair
from train_demo.evaluate import Case, described, located, read, scene_cases
from train_demo.looking import BOX, CHANGED, COLOUR_NUMBERS, NOUN, NOUNS, SIZE, see_scene
from train_demo.questions import Turn, ask, converse, with_article
from train_demo.scenes import Scene, Thing, draw, make_mosaic, make_scene
from train_demo.texts import write_line
from train_demo.things import (
    LINE_DRAWN,
    OTHER_MANNERS,
    Atlas,
    bodies_by_name,
    find_body,
    on_white,
    tinted,
)
from train_demo.train import Run, predict

ATLAS = Atlas()  # its pictures are not in the repository: these scenes are of shapes alone


def turns(ability: str) -> Iterator[tuple[Scene, Turn]]:
    rng = Random(f"tests/{ability}")
    for _ in range(40):
        _, scene = draw(make_scene(rng, 224, 168, rng.choice((1, 2, 3, 4, 5)), 1), rng, ATLAS)
        if turn := ask(rng, scene, ability):
            yield scene, turn


@pytest.mark.parametrize("ability", ["description", "count"])
def test_what_is_told_begins_at_its_article(ability: str) -> None:
    for scene, turn in turns(ability):
        texts = [(turn.answer[number:].lower(), thing) for number, thing in turn.told]
        for text, thing in texts:
            begins: tuple[str, ...] = (",", " and") if thing else (".", ", so ")
            if thing:
                begins += (with_article(thing.name if ability == "description" else thing.label),)
            assert text.startswith(begins)
        ends = [thing for _, thing in texts if not thing]
        assert len(ends) == bool(texts)
        assert ability == "count" or list(
            dict.fromkeys(thing for _, thing in texts if thing)
        ) == list(scene.things)


@pytest.mark.parametrize(("ability", "key"), [("boxes", "bbox_2d"), ("points", "point_2d")])
def test_coordinates_are_told_of_the_thing_that_they_locate(ability: str, key: str) -> None:
    for _, turn in turns(ability):
        if not turn.told:
            assert turn.answer.startswith("There is no")
            continue
        entries = json.loads(turn.answer.strip("`").removeprefix("json"))
        wanted = [(value, entry["label"]) for entry in entries for value in entry[key]]
        starts = [(turn.answer[number:], thing) for number, thing in turn.told]
        said = [
            (int(text.split(",")[0].split("]")[0]), thing.label)
            for text, thing in starts
            if text[0].isdigit()
        ]
        assert said == wanted
        ends = [(text[0], thing) for text, thing in starts if not text[0].isdigit()]
        assert [mark for mark, _ in ends] == [",", *"," * (len(entries) - 2), "\n"][-len(entries) :]
        assert [thing is None for _, thing in ends] == [False] * (len(entries) - 1) + [True]


def test_boxes_are_held_against_those_asked_for_alone() -> None:
    """A scene may hold a second thing of the same label, which was not asked for."""
    make = scene_cases("boxes", share_of_shapes=1)
    cases = [case for number in range(60) if (case := make(Random(f"tests/{number}"), ATLAS))]
    assert all(len(case.boxes) == case.turn.answer.count("bbox_2d") for case in cases)


def test_a_clip_shows_what_is_asked_about() -> None:
    rng = Random("tests/clips")
    clips = (make_clip(rng, 112, 112) for _ in range(400))
    for clip in [clip for clip in clips if all(track.thing.colour for track in clip.tracks)][:40]:
        rate = rng.choice(RATES)
        frames, scenes = draw_clip(clip, rate, rng, ATLAS)
        assert len(frames) % 2 == 0
        for track in clip.tracks:
            times = [
                number / rate for number, scene in enumerate(scenes) if track.thing in scene.things
            ]
            assert times[0] == track.start
            assert track.end == clip.seconds or max(times) < track.end
        assert ask_clip(rng, clip)


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("A small red star at the top right and a large dog at the bottom.", True),
        ("A large dog at the bottom and a small red star at the top right.", True),
        ("A small red star at the top and a large dog at the bottom.", False),
        ("A small red star at the top right and a large dog at the bottom left.", False),
        ("A small red star at the top right.", False),
    ],
)
def test_a_description_is_right_in_any_order_and_to_the_place(said: str, is_right: bool) -> None:
    case = Case(Turn("", "A small red star at the top right and a large dog at the bottom."), [])
    assert described(case, SimpleNamespace(text=said)) == {"": is_right}


def test_a_box_counts_with_its_label() -> None:
    case = Case(Turn("", ""), [], boxes=[("dog", (0, 0, 10, 10)), ("cat", (20, 20, 30, 30))])
    said = SimpleNamespace(boxes=[Box("dog", 0, 0, 10, 9), Box("dog", 20, 20, 30, 30)])
    assert located(case, said) == {"found": 1, "said": 2, "there": 2, "overlap": pytest.approx(0.9)}


def test_what_is_read_too_much_is_wrong() -> None:
    assert read(Case(Turn("", "open"), []), SimpleNamespace(text="open now")) == {
        "characters": 4, "of characters": 8, "words": 1, "of words": 2,
    }  # fmt: skip


def test_only_what_differs_between_two_pictures_is_marked_as_changed() -> None:
    one = next(scene for scene, _ in turns("description") if len(scene.things) > 2)
    drawn = [draw(one, Random(seed), ATLAS)[1] for seed in (1, 2)]
    assert [scene.things for scene in drawn] == [one.things] * 2
    assert drawn[0].boxes != drawn[1].boxes
    size = (168, 224)
    changed = np.split(see_pair(drawn, size)[:, CHANGED], 2)[1]
    assert not changed.any()
    drawn[1] = replace(drawn[1], things=drawn[1].things[1:], boxes=drawn[1].boxes[1:])
    changed = np.split(see_pair(drawn, size)[:, CHANGED], 2)[1]
    alone = replace(drawn[0], things=one.things[:1], boxes=drawn[0].boxes[:1])
    assert (changed == (see_scene(alone, *size)[:, NOUN] > 0)).all()


def test_a_mosaic_is_full_and_nothing_in_it_overlaps() -> None:
    """Things strewn at random left three quarters of the tokens empty."""
    mosaics = [make_mosaic(Random(f"tests/{seed}"), 280, 196, 0.15) for seed in range(10)]
    for mosaic in mosaics:
        for number, a in enumerate(mosaic.things):
            assert a.diameter / 2 <= a.x <= 280 - a.diameter / 2
            assert a.diameter / 2 <= a.y <= 196 - a.diameter / 2
            apart = [
                max(abs(a.x - b.x), abs(a.y - b.y)) - (a.diameter + b.diameter) / 2
                for b in mosaic.things[:number]
            ]
            assert min(apart, default=0) > -1e-6
    shown = sum(math.pi / 4 * thing.diameter**2 for mosaic in mosaics for thing in mosaic.things)
    assert shown > 0.5 * len(mosaics) * 280 * 196


def test_a_line_drawing_has_colour_within_its_lines_alone() -> None:
    """With a ground that shines through, a drawn face would be told by the ground's colour."""
    drawing = Image.new("RGBA", (20, 20))
    ImageDraw.Draw(drawing).circle((10, 10), 6, outline="black", width=2)
    picture = tinted(on_white(drawing), (200, 100, 50))
    assert picture.getpixel((10, 10)) == (200, 100, 50, 255)
    assert picture.getpixel((10, 5))[:3] == (0, 0, 0)
    assert picture.getpixel((0, 0))[3] == 0


def test_nothing_is_measured_on_manners_that_are_for_training() -> None:
    """Figures would not compare with earlier ones, and OpenMoji must never be trained on."""
    assert "openmoji" not in Atlas(for_training=True).sets
    assert set(LINE_DRAWN) < set(OTHER_MANNERS)
    assert not set(OTHER_MANNERS) & {*Atlas().sets, *Atlas(held_out=True).sets}
    assert set(OTHER_MANNERS) < set(Atlas(for_training=True).sets)
    assert Atlas(held_out=True).sets == ["openmoji"]


def shape_batch(with_drill: bool = False) -> tuple[Scene, Batch]:
    """A scene's description in the built-in model's tokens:
    48 visual tokens, and 42 more to practise on."""
    scene, turn = next(
        (scene, turn) for scene, turn in turns("description") if len(scene.things) > 2
    )
    picture, scene = draw(scene, Random(0), ATLAS)
    example = Example(
        [picture], (168, 224), [turn], see_scene(scene, 168, 224), facts=facts_of(scene, (168, 224))
    )
    drills = (
        [practise_things(Random(0), ATLAS, (168, 196), share_of_shapes=1)] if with_drill else []
    )
    return scene, make_batch(Tokenizer.from_file(str(FOLDER / "tokenizer.json")), [example], drills)


def test_what_comes_next_has_its_noun_and_colour() -> None:
    scene, batch = shape_batch()
    looks = [
        (int(noun), int(colour))
        for *_, noun, colour in batch["told"].tolist()
        if not math.isnan(noun)
    ]
    wanted = [(NOUNS[thing.noun], COLOUR_NUMBERS[thing.colour]) for thing in scene.things]
    assert list(dict.fromkeys(looks)) == list(dict.fromkeys(wanted))


def test_what_is_practised_on_comes_after_what_is_asked_about(tmp_path: Path) -> None:
    """Rows of `seen` and of the encoder's features in another order would teach each token what
    another one shows."""
    scene, batch = shape_batch(with_drill=True)
    asked, practised = batch["seen"].split([48, 42])
    assert torch.equal(asked[:, NOUN], torch.from_numpy(see_scene(scene, 168, 224)[:, NOUN]))
    assert (practised[:, NOUN] > 0).any()
    assert (practised[:, SIZE] == -1).all()
    run = Run(tmp_path, 1e-3, FOLDER, 8500)
    features = run.looking.features
    predict(run.model, batch)
    assert len(torch.cat(features)) == 48
    run.practise(batch)
    assert len(torch.cat(features)) == 90


def test_a_token_in_whose_corner_a_small_thing_lies_shows_what_it_lies_on() -> None:
    """In a mosaic the later of two things took the token of the earlier one,
    which then was nowhere."""
    one = Thing("shape", "star", "small", "red", 0, 9.5, 9.5, 18)
    other = replace(one, noun="circle", x=24.5, y=24.5)
    boxes = tuple((thing.x - 9, thing.y - 9, thing.x + 9, thing.y + 9) for thing in (one, other))
    seen = see_scene(Scene(112, 112, "plain", (one, other), boxes), 112, 112)
    assert seen[0, NOUN] == NOUNS["star"]
    assert seen[0, BOX] == pytest.approx(
        [(0.5 - 14) / 28, (0.5 - 14) / 28, (18.5 - 14) / 28, (18.5 - 14) / 28]
    )
    assert (seen[1:, NOUN] == 0).all()


def test_letters_are_where_they_are_written() -> None:
    """The lessons on reading hang on it, and a letter beside its place shows in no figure."""
    picture = Image.new("L", (200, 40))
    letters = ImageFont.load_default(24)
    glyphs = write_line(ImageDraw.Draw(picture), "oil 8x", 5, 4, letters, 255)
    assert "".join(glyph.letter for glyph in glyphs) == "oil 8x"
    ink = np.asarray(picture).max(axis=0) > 0
    for glyph in glyphs:
        half = letters.getlength(glyph.letter) / 2
        shown = ink[round(glyph.x - half) : round(glyph.x + half) + 1]
        assert shown.any() == (glyph.letter != " ")
        assert 4 < glyph.y < 32


def test_a_thing_is_found_by_code_point_or_by_one_of_its_names() -> None:
    """A set that lacks a thing must leave it out:
    without a name, an icon called "1" was asked for."""
    icons = {"dog-face": {"body": "1"}, "cat": {"body": "2"}, "1": {"body": "3"}}
    bodies = bodies_by_name({"icons": icons, "aliases": {"hound": {"parent": "dog-face"}}})
    assert find_body("dog", bodies, {"1f436": "dog-face"}, "") == {"body": "1"}
    assert (
        find_body("dog", bodies, {}, "dog-face")
        == find_body("dog", bodies, {}, "hound")
        == {"body": "1"}
    )
    assert find_body("cat", bodies, {}, "cat-face") == {"body": "2"}
    assert find_body("owl", bodies, {}, "") is None


def test_no_answer_is_given_twice_in_a_conversation() -> None:
    """The second one would be copied from the first, without looking."""
    for scene, _ in turns("description"):
        told = [
            turn.answer
            for turn in converse(Random(0), scene, ["description", "boxes", "count"] * 4)
        ]
        assert len(set(told)) == len(told) > 1


def test_a_run_starts_from_a_checkpoint_and_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    run = Run(tmp_path, 1e-3, FOLDER, 8500)
    _, batch = shape_batch(with_drill=True)
    known, lessons = (
        [weight.clone() for weight in weights]
        for weights in (run.optimiser.weights, run.looking.weights)
    )
    run.catch_up([batch])
    assert all(map(torch.equal, run.optimiser.weights, known))
    assert not any(map(torch.equal, run.looking.weights, lessons))
    run.learn(batch, 1.0)
    run.save()
    again = Run(tmp_path, 1e-3)
    assert (again.step, again.first, again.has_to_catch_up) == (8501, 8500, False)
    assert all(map(torch.equal, again.optimiser.weights, run.optimiser.weights))
    assert not all(map(torch.equal, again.optimiser.weights, known))


def test_a_blend_lies_halfway_and_has_every_file(tmp_path: Path) -> None:
    zeros = Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    for weight in zeros.parameters():
        weight.detach().zero_()
    zeros.save_pretrained(tmp_path / "zeros")
    blend(FOLDER, tmp_path / "zeros", tmp_path / "blend")
    for path in FOLDER.glob("*.json"):
        assert json.loads((tmp_path / "blend" / path.name).read_text()) == json.loads(
            path.read_text()
        )
    known, halves = (
        load_file(folder / "model.safetensors") for folder in (FOLDER, tmp_path / "blend")
    )
    assert halves.keys() == known.keys()
    assert all(torch.equal(halves[name], weight / 2) for name, weight in known.items())

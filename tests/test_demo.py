"""The built-in model, through every public door, on scenes that it was not trained on."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

import qwen25vl
from qwen25vl import AutoProcessor, Qwen2_5_VLForConditionalGeneration, pipeline
from qwen25vl.cli import main

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from train_demo.questions import ask, describe  # noqa: E402
from train_demo.scenes import SHAPES, draw, make_scene  # noqa: E402
from train_demo.things import Atlas  # noqa: E402

DEMO = Path(qwen25vl.__file__).parent / "demo"
ATLAS = Atlas()  # its pictures are not in the repository: these scenes are of shapes alone
ASKED = ("description", "colour", "shape", "where", "absent")
Ask = Callable[[str, Path], str]


@pytest.fixture(scope="module")
def vlm() -> qwen25vl.VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path, str]]:
    """Twenty scenes of a seed never trained on:
    (question, picture, answer), the abilities in turn."""
    folder = tmp_path_factory.mktemp("scenes")
    rng, found = Random("held out in the tests"), []
    while len(found) < 20:
        scene = make_scene(
            rng, rng.randrange(140, 260), rng.randrange(140, 260), rng.choice((1, 2, 3)), 1
        )
        picture, scene = draw(scene, rng, ATLAS)
        if turn := ask(rng, scene, ASKED[len(found) % len(ASKED)]):
            path = folder / f"{len(found)}.png"
            picture.save(path)
            found.append((turn.question, path, turn.answer))
    return found


def by_ask(question: str, path: Path) -> str:
    return qwen25vl.load().ask(question, images=[path]).text


def by_pipeline(question: str, path: Path) -> str:
    content = [{"type": "image", "path": str(path)}, {"type": "text", "text": question}]
    (record,) = pipeline()([{"role": "user", "content": content}], return_full_text=False)
    return str(record["generated_text"])


def by_generate(question: str, path: Path) -> str:
    model, processor = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(DEMO),
        AutoProcessor.from_pretrained(DEMO),
    )
    content = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    ids: Any = model.generate(**inputs, max_new_tokens=200)
    return str(processor.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))


def by_command(question: str, path: Path) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert main(["run", question, "-i", str(path)]) == 0
    return out.getvalue().strip()


@pytest.mark.parametrize("way", [by_ask, by_pipeline, by_generate, by_command])
def test_answers_about_scenes_it_never_saw(scenes: list[tuple[str, Path, str]], way: Ask) -> None:
    """Weights of another training state, or any fault in the chain from pixels to text,
    ruin the answers."""
    wrong = [
        (question, path, answer)
        for question, path, answer in scenes
        if way(question, path) != answer
    ]
    assert len(wrong) <= 1, wrong


def test_an_answer_ends_on_pictures_outside_its_world(vlm):
    """A small model that finds nothing it knows may repeat itself up to the limit."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (150, 230, 3), dtype=torch.uint8, generator=generator)
    waves = (
        (127 + 120 * torch.sin(torch.arange(90 * 130 * 3) / 50)).view(90, 130, 3).to(torch.uint8)
    )
    for picture in (noise, waves, torch.zeros_like(noise)):
        for question in (
            "What do you see?",
            "Read the text.",
            "Detect every thing in JSON.",
            "¿Qué es esto? 这是什么",
        ):
            answer = vlm.ask(question, images=[picture], max_new_tokens=100)
            assert answer.usage.completion_tokens <= 100


def test_has_every_part_of_the_architecture():
    """A demo without windows, full blocks or grouped queries would let their faults pass."""
    config = qwen25vl.Qwen2_5_VLConfig.from_pretrained(DEMO)
    text, vision = config.text_config, config.vision_config
    assert 0 < len(vision.fullatt_block_indexes) < vision.depth
    assert text.num_key_value_heads < text.num_attention_heads
    assert config.tie_word_embeddings
    assert all(text.rope_scaling.mrope_section)


def test_is_a_hub_folder_of_at_most_25_megabytes():
    """The package must stay small, and other engines must find every file under its usual name."""
    names = {path.name for path in DEMO.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", "preprocessor_config.json", "chat_template.json",
        "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "model.safetensors",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in DEMO.iterdir() if path.is_file()) <= 25e6


def test_ids_are_its_own():
    """Ids of the official vocabulary anywhere in the code would go unnoticed if
    the demo used the same."""
    config = json.loads((DEMO / "config.json").read_text())
    tokens = {
        t["content"]: t["id"]
        for t in json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]
    }
    assert config["image_token_id"] == tokens["<|image_pad|>"] < config["vocab_size"] < 2048
    assert config["eos_token_id"] == tokens["<|im_end|>"]


def test_a_scene_is_drawn_the_same_every_time():
    """Held-out figures mean nothing if a seed draws something else tomorrow."""
    scene = make_scene(Random("same"), 150, 200, 3, share_of_shapes=1)
    assert scene == make_scene(Random("same"), 150, 200, 3, share_of_shapes=1)
    assert draw(scene, Random(1), ATLAS)[0].tobytes() == draw(scene, Random(1), ATLAS)[0].tobytes()


def test_the_description_names_every_thing_in_reading_order():
    """A text that leaves out or swaps things would teach the model to do so."""
    scene = make_scene(Random(3), 200, 160, 3, share_of_shapes=1)
    words = describe(scene).rstrip(".").lower().split()
    assert [word for word in words if word in SHAPES] == [thing.noun for thing in scene.things]
    assert [thing.place for thing in scene.things] == sorted(thing.place for thing in scene.things)

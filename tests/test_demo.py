"""The built-in model, through the public door, on scenes that it was not trained on."""

import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch

import qwen25vl

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from train_demo.evaluate import REQUIRED, answer_scene, held_out_scenes, is_right  # noqa: E402
from train_demo.questions import describe  # noqa: E402
from train_demo.scenes import SHAPES, draw, make_scene  # noqa: E402

DEMO = Path(qwen25vl.__file__).parent / "demo"


@pytest.fixture(scope="module")
def vlm() -> qwen25vl.VisionLanguageModel:
    return qwen25vl.load()


def test_answers_about_scenes_it_never_saw(vlm):
    """Weights of another training state, or any fault in the chain from pixels to text, ruin the answers."""
    right = []
    for scene, picture, rng in held_out_scenes(12, seed="sample"):
        answers = answer_scene(vlm, scene, picture, rng)
        right += [is_right(ability, answers[ability][2], answers[ability][1]) for ability in REQUIRED]
    assert sum(right) >= 33  # of 36


def test_an_answer_ends_on_pictures_outside_its_world(vlm):
    """A small model that finds nothing it knows may repeat itself up to the limit."""
    noise = torch.randint(0, 256, (150, 230, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answer = vlm.ask("What do you see?", images=[noise], max_new_tokens=100)
    assert answer.text
    assert answer.usage.completion_tokens < 100


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
        "config.json", "generation_config.json", "preprocessor_config.json", "chat_template.json", "tokenizer.json",
        "tokenizer_config.json", "vocab.json", "merges.txt", "model.safetensors",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in DEMO.iterdir() if path.is_file()) <= 25e6


def test_ids_are_its_own():
    """Ids of the official vocabulary anywhere in the code would go unnoticed if the demo used the same."""
    config = json.loads((DEMO / "config.json").read_text())
    tokens = {t["content"]: t["id"] for t in json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]}
    assert config["image_token_id"] == tokens["<|image_pad|>"] < config["vocab_size"] < 2048
    assert config["eos_token_id"] == tokens["<|im_end|>"]


def test_a_scene_is_drawn_the_same_every_time():
    """Held-out figures mean nothing if a seed draws something else tomorrow."""
    scene = make_scene(Random("same"), 150, 200)
    assert scene == make_scene(Random("same"), 150, 200)
    assert draw(scene, Random(1)).tobytes() == draw(scene, Random(1)).tobytes()


def test_the_description_names_every_thing_in_reading_order():
    """A text that leaves out or swaps things would teach the model to do so."""
    scene = make_scene(Random(3), 200, 160, num_things=3)
    words = describe(scene).rstrip(".").lower().split()
    assert [word for word in words if word in SHAPES] == [thing.shape for thing in scene.things]
    assert [thing.place for thing in scene.things] == sorted(thing.place for thing in scene.things)

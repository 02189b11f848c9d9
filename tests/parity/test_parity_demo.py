"""The built-in model is an ordinary checkpoint: transformers loads it and writes the same text."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from qwen25vl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qwen25vl.demo import FOLDER
from train_demo.questions import ABILITIES, ask
from train_demo.scenes import draw, make_scene
from train_demo.things import Atlas


def questions(count: int) -> Iterator[tuple[Image.Image, str]]:
    """Scenes of a seed of their own, each with one question, the abilities in turn."""
    rng = Random("the same text as transformers")
    abilities = list(ABILITIES)
    atlas = Atlas()  # without its pictures, which are not in the repository: shapes alone
    while count:
        scene = make_scene(
            rng, rng.randrange(140, 330), rng.randrange(140, 330), rng.choice((1, 2, 3, 4)), 1
        )
        picture, scene = draw(scene, rng, atlas)
        if turn := ask(rng, scene, abilities[count % len(abilities)]):
            count -= 1
            yield picture, turn.question


def compare(count: int) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    reference: Any = Reference.from_pretrained(FOLDER, dtype=torch.float32).eval()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(FOLDER)
    for picture, question in questions(count):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        theirs = reference.generate(**inputs, max_new_tokens=120, do_sample=False)
        ours = model.generate(**inputs, max_new_tokens=120, do_sample=False)
        assert processor.batch_decode(ours) == processor.batch_decode(theirs)


def test_ten_scenes() -> None:
    """Trained weights show differences that random ones hide."""
    compare(10)


@pytest.mark.slow
def test_a_hundred_scenes() -> None:
    """The whole sample."""
    compare(100)

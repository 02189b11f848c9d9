"""Training batches: scenes of one picture size, each with a conversation about it, as the model's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from qwen25vl.processing.image import ImageSettings, patchify, resize
from train_demo.checkpoint import FACTOR, MAX_PIXELS, MIN_PIXELS
from train_demo.questions import Turn, ask, converse
from train_demo.scenes import Scene, draw, make_scene
from train_demo.vocabulary import SYSTEM

IGNORED = -100
SIDES = range(4 * FACTOR, 11 * FACTOR, FACTOR)
SIZES = [(h, w) for h in SIDES for w in SIDES if MIN_PIXELS <= h * w <= MAX_PIXELS and max(h, w) <= 2 * min(h, w)]
QUESTIONS = ("colour", "colour", "count", "count", "shape", "where")
EASY_SHARE, GROWING_SHARE, QUESTIONS_SHARE = 0.2, 0.6, 0.8  # of the steps

Batch = dict[str, torch.Tensor]


class Scenes:
    """Batch number i is always the same. Pictures grow; the first fifth has fewer things and more plain grounds."""

    def __init__(self, tokenizer: Tokenizer, batch_size: int, num_batches: int, seed: int = 1) -> None:
        self.tokenizer, self.batch_size, self.num_batches, self.seed = tokenizer, batch_size, num_batches, seed

    def __getitem__(self, index: int) -> Batch:
        rng = Random(f"{self.seed}/{index}")
        progress = index / self.num_batches
        easy = progress < EASY_SHARE
        most = MIN_PIXELS + (MAX_PIXELS - MIN_PIXELS) * min(1, 0.15 + progress / GROWING_SHARE)
        height, width = rng.choice([(h, w) for h, w in SIZES if h * w <= most])
        examples = []
        for _ in range(self.batch_size):
            num_things = rng.choices((1, 2, 3), (6, 3, 1) if easy else (2, 4, 4))[0]
            size = choose_size(rng, height, width)
            scene = make_scene(rng, *size, num_things, "plain" if easy and rng.random() < 0.5 else None)
            abilities = rng.sample(QUESTIONS, 5)
            # few descriptions at first: answers could be copied from them, and their many tokens rule the loss
            if rng.random() < (0.4 if progress < QUESTIONS_SHARE else 0.75):
                abilities[3:] = []
                abilities.insert(rng.choice((0, 3)), "description")
            examples.append((scene, converse(rng, scene, abilities)))
        return make_batch(self.tokenizer, examples, (height, width), rng)


def choose_size(rng: Random, height: int, width: int) -> tuple[int, int]:
    """Width and height of a picture that will have the model size height × width: mostly another size at first."""
    if rng.random() < 0.4:
        return width, height
    scale = rng.uniform(0.75, 1.6)
    return round(width * scale * rng.uniform(0.95, 1.05)), round(height * scale * rng.uniform(0.95, 1.05))


def make_questions(
    tokenizer: Tokenizer, ability: str, num_scenes: int, seed: str, batch_size: int = 25
) -> list[Batch]:
    """Held-out scenes, one question each."""
    batches = []
    for index in range(num_scenes // batch_size):
        rng = Random(f"{seed}/{index}")
        height, width = rng.choice(SIZES)
        examples: list[tuple[Scene, list[Turn]]] = []
        while len(examples) < batch_size:
            scene = make_scene(rng, *choose_size(rng, height, width))
            if turn := ask(rng, scene, ability):
                examples.append((scene, [turn]))
        batches.append(make_batch(tokenizer, examples, (height, width), rng))
    return batches


def make_batch(
    tokenizer: Tokenizer, examples: Sequence[tuple[Scene, list[Turn]]], size: tuple[int, int], rng: Random
) -> Batch:
    """Draw, resize to the model size (height, width) and tokenise; rows are padded on the right."""
    height, width = size
    pictures = [make_pixels(draw(scene, rng), height, width) for scene, _ in examples]
    num_tokens = height * width // FACTOR**2
    rows = [tokenise(tokenizer, turns, num_tokens) for _, turns in examples]
    length = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
        "pixel_values": torch.cat(pictures),
        "image_grid_thw": torch.tensor([[1, height // 14, width // 14]] * len(examples)),
    }


def tokenise(tokenizer: Tokenizer, turns: Sequence[Turn], num_tokens: int) -> tuple[list[int], list[int]]:
    """The chat template's ids, and labels that are set on the answers only."""
    picture = "<|vision_start|>" + "<|image_pad|>" * num_tokens + "<|vision_end|>"
    ids = list(encode(tokenizer, f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"))
    labels = [IGNORED] * len(ids)
    for number, (question, answer) in enumerate(turns):
        asked = encode(tokenizer, f"<|im_start|>user\n{'' if number else picture}")
        asked += encode(tokenizer, question) + encode(tokenizer, "<|im_end|>\n<|im_start|>assistant\n")
        answered = encode(tokenizer, answer + "<|im_end|>")
        ends = encode(tokenizer, "\n")
        ids += asked + answered + ends
        labels += [IGNORED] * len(asked) + list(answered) + [IGNORED] * len(ends)
    return ids, labels


@lru_cache(maxsize=20000)
def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def make_pixels(picture: Image.Image, height: int, width: int) -> torch.Tensor:
    frames = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return patchify(resize(frames, height, width), ImageSettings())[0]

"""Positions of clips against the rule in numpy, written from its words and not from the code.

- A word stands at one number in time, row and column, counted on from what is before it.
- A picture starts where the next word would stand; time stands still, rows and columns count its
  visual tokens, two patches each way.
- A clip is the same, and its temporal grid i stands floor(i · tokens_per_second ·
  seconds_per_grid) later.
- The next word stands one behind the largest of all numbers so far.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scenes import IMAGE, VIDEO, Prompt, model_inputs

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.config import RopeScaling

TIME, ROW, COLUMN = range(3)


def make_model(tokens_per_second: float) -> Qwen2_5_VLModel:
    rope = RopeScaling(mrope_section=(2, 3, 3))
    text = Qwen2_5_VLTextConfig(16, 32, 8, 1, 2, 1, rope_scaling=rope)
    vision = Qwen2_5_VLVisionConfig(1, 16, 8, 2, out_hidden_size=32, fullatt_block_indexes=(0,))
    vision = Qwen2_5_VLVisionConfig.from_dict(
        vision.to_dict() | {"tokens_per_second": tokens_per_second}
    )
    return Qwen2_5_VLModel(Qwen2_5_VLConfig(text, vision))


def expected_positions(prompt: Prompt, tokens_per_second: float) -> np.ndarray:
    """[3, length], each medium's box of numbers filled in place at its run of slots."""
    ids = np.array(prompt.ids)
    table = np.full((3, len(ids)), -1)
    images = list(prompt.image_grids)
    clips = list(zip(prompt.video_grids, prompt.seconds, strict=True))
    place = 0
    while place < len(ids):
        free = table.max() + 1 if place else 0
        if ids[place] == IMAGE:
            grid, step = images.pop(0), Fraction(0)
        elif ids[place] == VIDEO:
            grid, seconds = clips.pop(0)
            step = Fraction(seconds).limit_denominator(1000) * Fraction(tokens_per_second)
        else:
            table[:, place] = free
            place += 1
            continue
        frames, rows, columns = grid[0], grid[1] // 2, grid[2] // 2
        box = np.empty((3, frames, rows, columns), dtype=int)
        for frame in range(frames):
            box[TIME, frame] = free + math.floor(frame * step)
        for row in range(rows):
            box[ROW, :, row] = free + row
        for column in range(columns):
            box[COLUMN, :, :, column] = free + column
        size = frames * rows * columns
        table[:, place : place + size] = box.reshape(3, size)
        place += size
    assert not images
    assert not clips
    return table


def random_seconds(random: np.random.Generator, tokens_per_second: float, frames: int) -> float:
    """Thousandths of a second, none whose product lies so near below a whole number that float32
    would decide it."""
    while True:
        seconds = int(random.integers(30, 3000)) / 1000
        steps = [frame * seconds * tokens_per_second for frame in range(frames)]
        if all(step % 1 < 1 - 1e-3 for step in steps):
            return seconds


def random_prompt(random: np.random.Generator, tokens_per_second: float) -> Prompt:
    """Two to seven parts, at least one of them a clip; pictures may follow at once."""
    prompt = Prompt()
    kinds = [*random.choice(["text", "image", "video"], random.integers(1, 7)), "video"]
    random.shuffle(kinds)
    for kind in kinds:
        h, w = (2 * int(n) for n in random.integers(1, 8, 2))
        if kind == "text":
            prompt.text(*range(int(random.integers(1, 9))))
        elif kind == "image":
            prompt.image(h, w)
        else:
            frames = int(random.integers(1, 9))
            prompt.video(frames, h, w, random_seconds(random, tokens_per_second, frames))
    return prompt.text(1, 2) if random.random() < 0.7 else prompt


@pytest.mark.parametrize("tokens_per_second", [1, 2, 3, 25])
def test_random_mixes(tokens_per_second: int) -> None:
    """Fractions of a second are rounded down, not to the nearest; the pace is the config's, not
    always 2; what follows a clip stands behind all of it, in time, rows and columns."""
    random = np.random.default_rng(tokens_per_second)
    model = make_model(tokens_per_second)
    for _ in range(40):
        prompt = random_prompt(random, tokens_per_second)
        inputs = model_inputs(prompt)
        inputs.pop("attention_mask")
        named = {name: value for name, value in inputs.items() if "pixel" not in name}
        positions, deltas = model.get_rope_index(**named)
        table = expected_positions(prompt, tokens_per_second)
        np.testing.assert_array_equal(positions[:, 0].numpy(), table, err_msg=repr(prompt))
        assert deltas.tolist() == [[table.max() + 1 - len(prompt.ids)]]


def test_one_batch_of_random_mixes() -> None:
    """Media are handed out to the rows in order, also where a row has none."""
    random = np.random.default_rng(7)
    model = make_model(2)
    prompts = [random_prompt(random, 2) for _ in range(6)]
    prompts.insert(3, Prompt().text(*range(20)))
    inputs = model_inputs(*prompts)
    named = {name: value for name, value in inputs.items() if "pixel" not in name}
    positions, deltas = model.get_rope_index(**named)
    for row, prompt in enumerate(prompts):
        table = expected_positions(prompt, 2)
        np.testing.assert_array_equal(positions[:, row, -len(prompt.ids) :].numpy(), table)
        assert int(deltas[row]) == table.max() + 1 - len(prompt.ids)


def test_by_hand() -> None:
    """Two clips and a picture, every number written out. Grids 0.75 s apart at 2 per second stand
    at 0, 1.5 and 3: times 0, 1, 3."""
    prompt = Prompt([5]).video(3, 2, 4, 0.75).text(6).image(4, 2).video(2, 2, 2, 2.25)
    inputs = model_inputs(prompt)
    named = {name: value for name, value in inputs.items() if "pixel" not in name}
    positions, _ = make_model(2).get_rope_index(**named)
    # 5 ⟨start⟩ [six of the clip] ⟨end⟩ 6 ⟨start⟩ [two rows] ⟨end⟩ ⟨start⟩ [two frames] ⟨end⟩
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 3, 3, 5, 5, 6, 7, 8, 9, 9, 11, 12, 13, 17, 18],
        [0, 1, 2, 2, 2, 2, 2, 2, 6, 7, 8, 9, 10, 11, 12, 13, 13, 18],
        [0, 1, 2, 3, 2, 3, 2, 3, 6, 7, 8, 9, 9, 11, 12, 13, 13, 18],
    ]

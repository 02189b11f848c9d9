"""What every visual token shows and where it stands, what names mean and what comes next: lessons
beside the answers.

Few words of an answer tell anything about a picture, so a model learns slowly to see from answers
alone. Here a linear layer reads off each visual token, as the vision encoder gives it, which thing
it lies on, the thing's colour, size and box, which letters stand in it, and in a clip whether only
one of its two frames shows something. Another one reads off the same tokens, inside the language
model, where they and their things' boxes stand in the picture: rotary positions tell the distances
between tokens, and a place is known only to who measures it from the token before the picture;
likewise the second in a clip, and which of two pictures a token belongs to. The third one reads off
the last token of a name ("the small star"), one layer later, whether such a thing is there, its
box, its picture, when it comes and when it goes; and off the tokens of a second picture what has
changed. Two more ask what an answer comes to next: off the token before a thing is told, or one of
its coordinates, the same of this thing; off the tokens of what was read, where the next letter
stands. The last one reads off the tokens of both names and what comes next which thing and colour
that is: an article comes before what it hangs on. All these layers serve the training only: they
are no part of the checkpoint.

    T visual tokens, last those of pictures that are only practised on `seen` [T, COLUMNS]: thing,
    colour, size (0: ground), left, top, right, bottom of the box from the middle of the token in
    tokens, letters of the token's cells (0: none), which one of its frames shows something (0: both
    or none, 1: the first, 2: the second), −1 where nothing is known; column and row of the middle
    of the token, its second, its picture (0 or 1), 1 if it shows what has changed, NaN if unknown
    `names` [K, FACTS]: the number of a name's last token among all tokens, 1 if such a thing is
    there, its box in tokens, its picture (0 or 1), the seconds when it comes and goes, its noun,
    its colour (0: none), NaN if unknown `told` [L, FACTS]: the number of a token behind which a
    thing comes next, or none, and the rest as in `names` `read` [R, 3]: the number of the token
    before a letter among all tokens, the letter's place in tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from train_demo.scenes import COLOURS, FACTOR, SHAPES, SIZES, Scene
from train_demo.things import KINDS

NOUNS = {noun: number + 1 for number, noun in enumerate((*SHAPES, *KINDS))}
COLOUR_NUMBERS = {colour: number + 1 for number, colour in enumerate(COLOURS)}
SIZE_NUMBERS = {size: number + 1 for number, size in enumerate(SIZES)}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:%"
CELLS = (2, 4)  # rows and columns of a token's cells: each is as large as a small letter
NUM_CELLS = CELLS[0] * CELLS[1]
WIDTHS = (
    len(NOUNS) + 1,
    len(COLOUR_NUMBERS) + 1,
    len(SIZE_NUMBERS) + 1,
    4,
    *[len(LETTERS) + 1] * NUM_CELLS,
)
# the columns of `seen`
NOUN, COLOUR, SIZE, BOX, WRITTEN = 0, 1, 2, slice(3, 7), slice(7, 7 + NUM_CELLS)
FRAMES, MIDDLE, SECOND, PICTURE, CHANGED, COLUMNS = 15, slice(16, 18), 18, 19, 20, 21
FACTS = 11  # the columns of `names` and `told`
# the decoder layers that have to know places, and what a name means
PLACED_AFTER, NAMED_AFTER = (2, 3)
NAMES_WEIGHT = 3.0  # of these lessons beside each part of the others
SIGHT_WEIGHT = 2.0  # of telling what a token shows
PRECISION = (
    0.1  # tokens: errors of boxes and places count in full from here on, smaller ones less and less
)
EMPTY_WEIGHT = 0.15  # of a token on the ground, and of a cell without a letter


class Glyph(NamedTuple):
    """A letter and its middle in pixels of the picture."""

    letter: str
    x: float
    y: float


def unknown(height: int, width: int) -> np.ndarray:
    """Nothing but where the tokens stand."""
    rows, columns = height // FACTOR, width // FACTOR
    seen = np.full((rows * columns, COLUMNS), -1, dtype=np.float32)
    seen[:, MIDDLE] = np.mgrid[0:rows, 0:columns][::-1].reshape(2, -1).T + 0.5
    seen[:, MIDDLE.stop :] = math.nan
    return seen


def token_boxes(scene: Scene, height: int, width: int) -> np.ndarray:
    """The things' boxes [things, 4] in visual tokens from the picture's corner."""
    scale = np.array([width / FACTOR / scene.width, height / FACTOR / scene.height] * 2)
    return np.array(scene.boxes).reshape(-1, 4) * scale


def see_scene(scene: Scene, height: int, width: int) -> np.ndarray:
    """The tokens of a drawn scene at model size:
    those whose middle lies on a thing, and the thing's middle."""
    seen = unknown(height, width)
    seen[:, [NOUN, COLOUR, SIZE]] = 0
    boxes = token_boxes(scene, height, width)
    # a small thing in a corner of a token gives way to what the token lies on
    for covers in (holds_middle, lies_on):
        for thing, box in zip(scene.things, boxes, strict=True):
            on = covers(seen[:, MIDDLE], box)
            seen[on, NOUN] = NOUNS[thing.noun]
            seen[on, COLOUR] = COLOUR_NUMBERS[thing.colour] if thing.colour else 0
            seen[on, SIZE] = SIZE_NUMBERS[thing.size]
            seen[on, BOX] = (box - np.tile(seen[:, MIDDLE], 2))[on]
    return seen


def holds_middle(middles: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Whether the middle of the box lies in the token; middles [tokens, 2] of the tokens, box:
    left, top, …"""
    return (np.abs(middles - (box[:2] + box[2:]) / 2) <= 0.5).all(axis=1)


def lies_on(middles: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Whether the middle of the token lies in the ellipse within the box."""
    return (((middles - (box[:2] + box[2:]) / 2) / (box[2:] - box[:2])) ** 2).sum(axis=1) < 0.25


def see_glyphs(
    glyphs: Sequence[Glyph], original: tuple[int, int], height: int, width: int
) -> np.ndarray:
    """The tokens of a picture of words of the original width and height."""
    rows, columns = height // FACTOR * CELLS[0], width // FACTOR * CELLS[1]
    cells = np.zeros((rows, columns), dtype=np.float32)
    for letter, x, y in glyphs:
        row, column = int(y * rows / original[1]), int(x * columns / original[0])
        if 0 <= row < rows and 0 <= column < columns and letter in LETTERS:
            cells[row, column] = LETTERS.index(letter) + 1
    seen = unknown(height, width)
    by_token = cells.reshape(rows // CELLS[0], CELLS[0], columns // CELLS[1], CELLS[1]).transpose(
        0, 2, 1, 3
    )
    seen[:, WRITTEN] = by_token.reshape(-1, NUM_CELLS)
    return seen


class Looking:
    """The linear layers over what encoder and decoder of `model` made of the
    last visual tokens; their optimiser."""

    def __init__(self, model: Any, learning_rate: float) -> None:
        width = model.config.text_config.hidden_size
        outputs = {
            "head": sum(WIDTHS), "places": 8, "names": 8, "changes": 1, "letters": 2, "told": 8,
            "frames": 3, "nouns": sum(WIDTHS[:2]),
        }  # fmt: skip
        self.layers = {name: nn.Linear(width, number) for name, number in outputs.items()}
        self.weights = [weight for layer in self.layers.values() for weight in layer.parameters()]
        for layer in self.layers.values():
            nn.init.normal_(layer.weight, std=0.02)
        self.learning_rate = learning_rate
        self.optimiser = torch.optim.AdamW(self.weights, lr=learning_rate, weight_decay=0.01)
        self.features: list[torch.Tensor] = []
        self.hidden: list[torch.Tensor] = []
        listen(model.visual, self.features)
        for number in (PLACED_AFTER, NAMED_AFTER):
            listen(model.model.language_model.layers[number], self.hidden)

    def loss(self, batch: Mapping[str, torch.Tensor], is_visual: torch.Tensor) -> torch.Tensor:
        """How badly the last pass, and the encoder's where it practised, tell what is seen, named,
        told and read.

        is_visual [N]: of all tokens of the conversations.
        """
        read = batch["read"]
        placed, understood = self.hidden
        seen = batch["seen"]
        # by the decoder, which what is only practised on never reaches
        met = seen[: int(is_visual.sum())]
        features = torch.cat(self.features).float()
        parts = self.layers["head"](features).split(WIDTHS, dim=-1)
        places = self.layers["places"](placed[is_visual].float())
        changes = self.layers["changes"](understood[is_visual].float())[:, 0]
        letters = self.layers["letters"](understood[read[:, 0].long()].float())
        losses = [
            SIGHT_WEIGHT * classify(parts[column], seen[:, column])
            for column in (NOUN, COLOUR, SIZE)
        ]
        losses += [
            SIGHT_WEIGHT * classify(part, cell) / NUM_CELLS
            for part, cell in zip(parts[4:], seen[:, WRITTEN].T, strict=True)
        ]
        losses.append(classify(self.layers["frames"](features), seen[:, FRAMES]))
        losses.append(smooth_l1_loss(places[:, :2], met[:, MIDDLE], beta=PRECISION))
        on = seen[:, NOUN] > 0
        if on.any():
            losses.append(smooth_l1_loss(parts[3][on], seen[on, BOX], beta=PRECISION))
        on = on[: len(met)]
        if on.any():
            boxes = met[on, BOX] + met[on, MIDDLE].repeat(1, 2)
            losses.append(smooth_l1_loss(places[on, 2:6], boxes, beta=PRECISION))
        losses += [
            measure(places[:, 6], met[:, SECOND]),
            decide(places[:, 7], met[:, PICTURE]),
            decide(changes, met[:, CHANGED]),
            measure(letters, read[:, 1:], beta=0.2),
        ]
        losses += [
            NAMES_WEIGHT * know(self.layers[name], understood, batch[name])
            for name in ("names", "told")
        ]
        facts = torch.cat([batch["names"], batch["told"]])
        looks = self.layers["nouns"](understood[facts[:, 0].long()].float()).split(
            WIDTHS[:2], dim=-1
        )
        losses += [
            classify(look, numbers)
            for look, numbers in zip(looks, facts[:, 9:].nan_to_num(-1).T, strict=True)
        ]
        self.features.clear()
        self.hidden.clear()
        return torch.stack(losses).sum()

    def step(self, scale: float) -> None:
        for weight in self.weights:
            if dist.is_initialized() and weight.grad is not None:
                dist.all_reduce(weight.grad)
                weight.grad /= dist.get_world_size()
        self.optimiser.param_groups[0]["lr"] = scale * self.learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state(self) -> dict[str, Any]:
        layers = {name: layer.state_dict() for name, layer in self.layers.items()}
        return {**layers, "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        for name, layer in self.layers.items():
            layer.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])


def listen(module: nn.Module, outputs: list[torch.Tensor]) -> None:
    """Keep what the module gives while it learns."""

    def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            outputs.append(output)

    module.register_forward_hook(keep)


def know(layer: nn.Linear, understood: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """How badly the tokens of `facts`, rows like those of `names`, tell whether, where and when
    their things are."""
    told = layer(understood[facts[:, 0].long()].float())
    return (
        decide(told[:, 0], facts[:, 1])
        + measure(told[:, 1:5], facts[:, 2:6], beta=PRECISION)
        + decide(told[:, 5], facts[:, 6])
        + measure(told[:, 6:], facts[:, 7:9], beta=0.3)
    )


def measure(values: torch.Tensor, targets: torch.Tensor, beta: float = 1) -> torch.Tensor:
    """How far off the known ones are; 0 where none is known."""
    known = ~targets.isnan()
    return smooth_l1_loss(
        values[known], targets[known], reduction="sum", beta=beta
    ) / known.sum().clamp(min=1)


def decide(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the known yes and no; 0 where none is known."""
    known = ~targets.isnan()
    losses = binary_cross_entropy_with_logits(logits[known], targets[known], reduction="sum")
    return losses / known.sum().clamp(min=1)


def classify(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the known, those of number 0 with little weight; 0 where none is known."""
    known = numbers >= 0
    if not known.any():
        return logits.sum() * 0
    targets = numbers[known].long()
    weights = torch.where(targets > 0, 1.0, EMPTY_WEIGHT)
    return (cross_entropy(logits[known], targets, reduction="none") * weights).sum() / weights.sum()

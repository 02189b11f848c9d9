"""Prompts and their prepared media to one padded batch of ModelInputs.

B prompts · L tokens of the longest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from qwen25vl.errors import MessageError, UsageError
from qwen25vl.inputs import ModelInputs, Patches
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT
from qwen25vl.processing.prepare import Prepared
from qwen25vl.processing.tokenizer import Piece, Tokenizer

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Prompt:
    """One conversation: its text in pieces, and its media in the order of their slots."""

    pieces: list[Piece]
    media: list[Prepared]


def collate(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    padding: bool | str,
    padding_side: Side,
    is_joined: bool = True,
) -> ModelInputs:
    """Tokenise, widen each slot to its visual tokens, pad to [B, L], and put the media behind each
    other: joined into one tensor of each kind, or as `Patches`, which takes no copy.

    Raises MessageError where slots and media do not fit, UsageError where the prompts differ in
    length and may not be padded. Nothing is ever cut.
    """
    rows = [fill_slots(prompt, tokenizer) for prompt in prompts]
    longest = max(map(len, rows))
    if padding not in (True, False, "longest"):
        raise UsageError(
            f"padding is {padding!r}; True pads to the longest, and nothing is ever cut"
        )
    if not padding and any(len(row) != longest for row in rows):
        raise UsageError("prompts of different length need padding=True")
    left = check_side(padding_side) == "left"
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id, dtype=torch.int64, device="cpu")
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids[index, where], mask[index, where] = (
            torch.tensor(row, dtype=torch.int64, device="cpu"),
            1,
        )
    media = [prepared for prompt in prompts for prepared in prompt.media]
    images = [prepared for prepared in media if prepared.item.kind == "image"]
    videos = [prepared for prepared in media if prepared.item.kind == "video"]
    return ModelInputs(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=join(images, is_joined),
        image_grid_thw=join_grids(images),
        pixel_values_videos=join(videos, is_joined),
        video_grid_thw=join_grids(videos),
        second_per_grid_ts=torch.tensor(
            [prepared.item.seconds_per_grid for prepared in videos],
            dtype=torch.float32,
            device="cpu",
        )
        if videos
        else None,
        media=tuple(
            replace(p.item, conversation=i)
            for i, prompt in enumerate(prompts)
            for p in prompt.media
        ),
    )


def fill_slots(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt, each slot repeated for its visual tokens."""
    slots = {tokenizer.control_ids[IMAGE_SLOT]: "image", tokenizer.control_ids[VIDEO_SLOT]: "video"}
    ids: list[int] = []
    waiting = list(prompt.media)
    for number in tokenizer.encode_pieces(prompt.pieces):
        if number not in slots:
            ids.append(number)
            continue
        if not waiting or waiting[0].item.kind != slots[number]:
            raise MessageError(
                "the chat template does not give each picture and video one slot, in their order"
            )
        ids += [number] * waiting.pop(0).item.num_tokens
    if waiting:
        raise MessageError(
            f"the chat template leaves out {len(waiting)} pictures or videos of the messages"
        )
    return ids


def check_side(side: str) -> Side:
    if side not in ("left", "right"):
        raise UsageError(f"padding_side is {side!r}; it must be left or right")
    return "left" if side == "left" else "right"


def join(items: Sequence[Prepared], is_joined: bool) -> torch.Tensor | Patches | None:
    """[N, 1176] of all items; a lone one and `Patches` without a copy."""
    if not items:
        return None
    patches = Patches([item.patches for item in items])
    if not is_joined:
        return patches
    parts = patches.take(len(patches))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def join_grids(items: Sequence[Prepared]) -> torch.Tensor | None:
    return (
        torch.tensor([item.grid for item in items], dtype=torch.int64, device="cpu")
        if items
        else None
    )


def unpadded_ids(inputs: ModelInputs) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs.input_ids, inputs.attention_mask, strict=True)
    ]


def check_tensors(return_tensors: str | None) -> None:
    if return_tensors not in (None, "pt"):
        raise UsageError(f'return_tensors is {return_tensors!r}; only "pt" (torch) is supported')

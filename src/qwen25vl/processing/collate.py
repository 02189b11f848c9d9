"""Prompts and their prepared media to one padded batch of ModelInputs.

B prompts · L tokens of the longest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from qwen25vl.arguments import is_among
from qwen25vl.errors import MessageError, UsageError
from qwen25vl.inputs import ModelInputs, Patches
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT
from qwen25vl.processing.prepare import Prepared
from qwen25vl.processing.tokenizer import Piece, Tokenizer

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Padding:
    """How the prompts of a batch get one length.

    is_allowed: whether prompts may differ in length; length: at least so long, rounded up to a
    multiple; max_length: what is longer is cut at its end.
    """

    side: Side = "left"
    is_allowed: bool = True
    length: int = 0
    multiple: int = 1
    max_length: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One conversation: its text in pieces, and its media in the order of their slots."""

    pieces: list[Piece]
    media: list[Prepared]


def collate(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    padding: Padding,
    is_joined: bool = True,
) -> ModelInputs:
    """Tokenise, widen each slot to its visual tokens, pad to [B, L], and put the media behind each
    other: joined into one tensor of each kind, or as `Patches`, which takes no copy.

    Raises MessageError where slots and media do not fit, UsageError where the prompts differ in
    length and may not be padded, or a picture would be cut.
    """
    rows = [widen_slots(prompt, tokenizer) for prompt in prompts]
    if padding.max_length is not None:
        rows = [cut(row, padding.max_length, tokenizer) for row in rows]
    ids, mask = pad(rows, padding, tokenizer.pad_token_id)
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


def widen_slots(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
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


def cut(row: list[int], max_length: int, tokenizer: Tokenizer) -> list[int]:
    """The first tokens of a prompt. Raises UsageError where tokens of a picture would be lost."""
    slots = {tokenizer.control_ids[IMAGE_SLOT], tokenizer.control_ids[VIDEO_SLOT]}
    if not slots.isdisjoint(row[max_length:]):
        last = max(index for index, number in enumerate(row) if number in slots)
        raise UsageError(
            f"a prompt of {len(row)} tokens cut to max_length={max_length} would lose tokens of a "
            f"picture or video; give max_length of at least {last + 1}, or a smaller max_pixels"
        )
    return row[:max_length]


def pad(rows: Sequence[list[int]], padding: Padding, number: int) -> tuple[torch.Tensor, ...]:
    """Ids [B, L], filled up with `number`, and their mask: int64."""
    longest = max(map(len, rows))
    if not padding.is_allowed and any(len(row) != longest for row in rows):
        raise UsageError("prompts of different length need padding=True")
    width = -(-max(longest, padding.length) // padding.multiple) * padding.multiple
    ids = torch.full((len(rows), width), number, dtype=torch.int64, device="cpu")
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(width - len(row), None) if padding.side == "left" else slice(len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.int64, device="cpu")
        mask[index, where] = 1
    return ids, mask


def check_side(side: Any) -> Side:
    if not is_among(side, ("left", "right")):
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

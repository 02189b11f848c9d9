"""`tokenizer.pad`: encodings of texts, with whatever else they hold, as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from qwen25vl.ecosystem.encodings import check_tensors
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.processing.collate import Padding

FILLED = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
"""What is padded beside the ids, and with what. Everything else stays as long as it is."""


def pad_encodings(
    encodings: Any,
    padding: Padding,
    pad_token_id: int,
    kind: Any,
    returns_mask: bool | None,
) -> ModelInputs:
    """One encoding, a list of them or a mapping of lists, padded alike.

    kind: what the result holds; None: what was given. returns_mask: whether a missing
    attention_mask is made, and a given one padded; None: unless there are no ids. Raises UsageError
    for what is no encoding, and where rows of unequal length are to be a tensor.
    """
    joined = join_encodings(encodings)
    kind = check_tensors(kind) or kind_of(joined["input_ids"])
    masks = joined.pop("attention_mask") if has_square_masks(joined) else None
    needs_mask = returns_mask is not False
    values = {name: plain_lists(value) for name, value in joined.items()}
    ids = values["input_ids"]
    if not ids:
        return ModelInputs({**joined, **({"attention_mask": []} if returns_mask else {})})
    if not isinstance(ids[0], list):
        padded = pad_one(values, width_of([ids], padding), padding, pad_token_id, needs_mask)
        return as_kind(padded, kind)
    check_sizes(values)
    width = width_of(ids, padding)
    rows = [
        pad_one(
            {name: value[row] for name, value in values.items()},
            width,
            padding,
            pad_token_id,
            needs_mask,
        )
        for row in range(len(ids))
    ]
    batch: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    if masks is not None:
        is_torch = isinstance(masks[0], torch.Tensor)
        batch["attention_mask"] = torch.stack(masks) if is_torch else np.stack(masks)
    return as_kind(batch, kind)


def join_encodings(encodings: Any) -> dict[str, Any]:
    """The items of one encoding, or of each name those of all encodings."""
    if isinstance(encodings, list | tuple) and encodings:
        if not all(isinstance(each, Mapping) for each in encodings):
            wrong = next(each for each in encodings if not isinstance(each, Mapping))
            raise UsageError(f"an encoding is {type(wrong).__name__}; expected a mapping")
        for name in encodings[0]:
            if any(name not in each for each in encodings):
                raise UsageError(f"{name} is in the first encoding, but not in all of them")
        encodings = {name: [each[name] for each in encodings] for name in encodings[0]}
    if not isinstance(encodings, Mapping):
        got = type(encodings).__name__ if not isinstance(encodings, list | tuple) else "empty"
        raise UsageError(f"the encodings are {got}; expected mappings with input_ids")
    if encodings.get("input_ids") is None:
        raise UsageError(f"the encodings hold {', '.join(encodings) or 'nothing'}; no input_ids")
    return dict(encodings)


def kind_of(ids: Any) -> str | None:
    """The kind of tensors that were given: "pt", "np" or, for lists, None."""
    first = ids[0] if isinstance(ids, list | tuple) and ids else ids
    if isinstance(first, torch.Tensor):
        return "pt"
    return "np" if isinstance(first, np.ndarray) else None


def has_square_masks(values: Mapping[str, Any]) -> bool:
    """Whether attention masks of several dimensions were given, which are stacked as they are."""
    masks = values.get("attention_mask")
    return isinstance(masks, list) and bool(masks) and getattr(masks[0], "ndim", 0) > 1


def plain_lists(value: Any) -> Any:
    """A tensor, an array, or a list of them, as lists of numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain_lists(each) for each in value] if isinstance(value, list | tuple) else value


def check_sizes(values: Mapping[str, Any]) -> None:
    number = len(values["input_ids"])
    for name, value in values.items():
        if not isinstance(value, list) or len(value) != number:
            got = len(value) if isinstance(value, list) else value
            raise UsageError(f"{name} has {got} rows and input_ids {number}")


def width_of(rows: Sequence[Sequence[int]], padding: Padding) -> int | None:
    """How long all rows become; None if they keep their length."""
    if not padding.is_allowed:
        return None
    longest = padding.length or max(map(len, rows))
    return -(-longest // padding.multiple) * padding.multiple


def pad_one(
    values: Mapping[str, Any],
    width: int | None,
    padding: Padding,
    pad_token_id: int,
    needs_mask: bool,
) -> dict[str, Any]:
    """One encoding, filled up to a width if it is shorter."""
    length = len(values["input_ids"])
    padded = dict(values)
    if needs_mask:
        padded.setdefault("attention_mask", [1] * length)
    missing = max(0, (width or 0) - length)
    for name, number in {"input_ids": pad_token_id, **FILLED}.items():
        if name not in padded or (name == "attention_mask" and not needs_mask):
            continue
        filling = [number] * missing
        is_left = padding.side == "left"
        padded[name] = [*filling, *padded[name]] if is_left else [*padded[name], *filling]
    return padded


def as_kind(values: Mapping[str, Any], kind: str | None) -> ModelInputs:
    """The values as tensors, arrays or lists."""
    if kind is None:
        return ModelInputs(values)
    return ModelInputs({name: to_array(name, value, kind) for name, value in values.items()})


def to_array(name: str, value: Any, kind: str) -> torch.Tensor | np.ndarray[Any, Any]:
    """A tensor or an array; of rows of unequal length only an array of objects, as in
    transformers."""
    dtypes = (np.int64, torch.int64) if value == [] else (None, None)
    if kind == "np" and is_ragged(value):
        return np.array([np.asarray(row) for row in value], dtype=object)
    try:
        if kind == "np":
            return np.asarray(value, dtype=dtypes[0])
        return torch.as_tensor(value, dtype=dtypes[1], device="cpu")
    except (TypeError, ValueError):
        raise UsageError(
            f"{name} cannot be one tensor: it must hold numbers, in rows of one length"
        ) from None


def is_ragged(value: Any) -> bool:
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else []
    return len(set(map(len, rows))) > 1

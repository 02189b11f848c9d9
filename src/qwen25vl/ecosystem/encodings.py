"""How the results of processors and tokenizers are shaped, under the ecosystem's names: padding and
truncation, and tensors, arrays or lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import numpy as np
import torch

from qwen25vl.arguments import is_among, whole_number
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.inputs import ModelInputs, Patches
from qwen25vl.processing.collate import Padding, Side, check_side, cut, pad
from qwen25vl.processing.tokenizer import Tokenizer

Tensors = Literal["pt", "np"] | None
AUTO = "auto"  # nobody said: tensors
CALL_DEFAULTS = ("padding", "max_length", "truncation", "pad_to_multiple_of")
"""Options of calls that a tokenizer may be loaded with."""


class TextOptions(TypedDict, total=False):
    """What a call says of its texts. padding None: pad where tensors are wanted."""

    padding: Any
    padding_side: Side | None
    max_length: int | None
    truncation: Any
    pad_to_multiple_of: int | None
    add_special_tokens: bool
    return_attention_mask: bool | None
    return_mm_token_type_ids: bool | None
    sanitize_control_tokens: bool | None
    return_assistant_tokens_mask: bool | None
    return_text_replacement_offsets: bool | None
    return_offsets_mapping: bool | None
    return_special_tokens_mask: bool | None
    return_token_type_ids: bool | None
    return_overflowing_tokens: bool | None
    return_length: bool | None
    is_split_into_words: bool | None
    split_special_tokens: bool | None
    verbose: bool | None


NEUTRAL_TEXT: dict[str, tuple[bool | None, ...]] = {
    "add_special_tokens": (None, True, False),  # there are none
    "sanitize_control_tokens": (None, True),  # typed text always stays text
    "return_assistant_tokens_mask": (None, False),
    "return_text_replacement_offsets": (None, False),
    "return_offsets_mapping": (None, False),
    "return_special_tokens_mask": (None, False),
    "return_token_type_ids": (None, False),
    "return_overflowing_tokens": (None, False),
    "return_length": (None, False),
    "is_split_into_words": (None, False),
    "split_special_tokens": (None, False),
    "verbose": (None, True, False),
}
"""Options with the values that change nothing here."""
TEXT_SWITCHES = ("return_attention_mask", "return_mm_token_type_ids")


def check_tensors(kind: Any) -> str | None:
    """The kind as a text, from the ecosystem's TensorType too."""
    name = getattr(kind, "value", kind)
    if not is_among(name, (None, AUTO, "pt", "np")):
        known = '"pt" (torch), "np" (numpy) and None (lists)'
        raise UsageError(f"return_tensors is {kind!r}; supported are {known}")
    return None if name is None else str(name)


def read_padding(options: Mapping[str, Any], side: Side, limit: int, *, pads: bool) -> Padding:
    """side, limit: the default side, and the longest prompt of the model; pads: whether prompts are
    padded where the options do not say. Raises UsageError for impossible values."""
    for name, allowed in {
        **NEUTRAL_TEXT,
        **dict.fromkeys(TEXT_SWITCHES, (None, True, False)),
    }.items():
        if not is_among(options.get(name), allowed):
            shown = ", ".join(map(repr, allowed))
            raise OptionError(f"{name} is {options[name]!r}; supported: {shown}")
    padding = options.get("padding")
    padding = pads if padding is None else getattr(padding, "value", padding)
    truncation = options.get("truncation")
    truncation = getattr(truncation, "value", truncation)
    if not is_among(padding, (True, False, "longest", "max_length", "do_not_pad")):
        wanted = '"longest", "max_length", "do_not_pad", True or False'
        raise UsageError(f"padding is {padding!r}; it must be {wanted}")
    ways = (None, True, False, "longest_first", "only_first", "do_not_truncate")
    if not is_among(truncation, ways):
        raise UsageError(f"truncation is {truncation!r}; it must be True or False")
    max_length = check_token_count("max_length", options.get("max_length"))
    if padding == "max_length" and max_length is None:
        raise UsageError('padding is "max_length", which needs max_length=')
    multiple = check_token_count("pad_to_multiple_of", options.get("pad_to_multiple_of"))
    is_unsaid = truncation is None and not options.get("padding") and max_length is not None
    cuts = is_unsaid or truncation in (True, "longest_first", "only_first")
    return Padding(
        side=check_side(side if (own := options.get("padding_side")) is None else own),
        is_allowed=padding not in (False, "do_not_pad"),
        length=max_length if padding == "max_length" and max_length else 0,
        multiple=multiple or 1,
        max_length=(max_length or limit) if cuts else None,
    )


def set_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Give a tokenizer attributes, and defaults of its calls. Raises UsageError for impossible
    ones."""
    defaults = {name: options[name] for name in CALL_DEFAULTS if name in options}
    check_token_count("model_max_length", options.get("model_max_length"))
    read_padding(defaults, tokenizer.padding_side, tokenizer.model_max_length, pads=False)
    tokenizer.init_kwargs = defaults
    for name in ("padding_side", "model_max_length", "chat_template"):
        if options.get(name) is not None:
            setattr(tokenizer, name, options[name])


def check_token_count(name: str, value: Any) -> int | None:
    """A number of tokens, or None. Raises UsageError for anything else."""
    number = whole_number(value)
    if value is not None and (number is None or number < 1):
        raise UsageError(f"{name} is {value!r}; it must be a whole number above 0")
    return number


def with_tensors(inputs: ModelInputs, kind: Any) -> ModelInputs:
    """The same with arrays of numpy where they are asked for."""
    if check_tensors(kind) == "np":
        for key, value in inputs.items():
            if isinstance(value, Patches):
                raise UsageError("patch_dtype gives patches for one use; arrays need float32")
            if isinstance(value, torch.Tensor):
                inputs[key] = value.numpy()
    return inputs


def with_lists(inputs: ModelInputs, is_padded: bool) -> ModelInputs:
    """The same with lists for what belongs to tokens, as long as each prompt unless padded; pixels
    and grids stay tensors, as in the ecosystem."""
    mask = inputs.get("attention_mask")
    if mask is None:  # no text was given
        return inputs
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == mask.shape and key not in GRIDS:
            inputs[key] = value.tolist() if is_padded else unpadded(value, mask)
    return inputs


GRIDS = ("image_grid_thw", "video_grid_thw", "pixel_values", "pixel_values_videos")


def unpadded(values: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept.bool()].tolist() for row, kept in zip(values, mask, strict=True)]


def shape_result(inputs: ModelInputs, kind: Any, is_padded: bool) -> ModelInputs:
    """Tensors, arrays or lists, as asked for."""
    name = check_tensors(kind)
    if inputs.second_per_grid_ts is not None and name in (None, "np"):
        seconds = [item.seconds_per_grid for item in inputs.media if item.kind == "video"]
        inputs["second_per_grid_ts"] = seconds if name is None else np.array(seconds)
    return with_lists(inputs, is_padded) if name is None else with_tensors(inputs, name)


def batch_rows(
    rows: list[list[int]], padding: Padding, tokenizer: Tokenizer, kind: Any
) -> ModelInputs:
    """The ids of texts with their mask, as lists of their own length where nothing is padded.

    Raises UsageError where rows of unequal length are to be one tensor, or a picture is cut.
    """
    if padding.max_length is not None:
        rows = [cut(row, padding.max_length, tokenizer) for row in rows]
    if check_tensors(kind) is None and not padding.is_allowed:
        return ModelInputs({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    ids, mask = pad(rows, padding, tokenizer.pad_token_id)
    return shape_result(ModelInputs(ids, mask), kind, padding.is_allowed)


def first_rows(inputs: ModelInputs) -> ModelInputs:
    """The lists of a single text without the batch around them."""
    return ModelInputs({key: value[0] for key, value in inputs.items()})

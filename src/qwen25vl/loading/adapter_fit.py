"""Whether an adapter fits a model: its changes under the model's own paths, checked one by one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from qwen25vl.errors import TensorError
from qwen25vl.loading.adapter import Adapter
from qwen25vl.loading.checkpoint import model_name
from qwen25vl.loading.weight_files import listed
from qwen25vl.model.adapted import dense_weight
from qwen25vl.model.adapted_model import EMBEDDINGS, HEAD, Changes, with_head
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.low_rank import LayerChange
from qwen25vl.model.packed_linear import PackedLinear


def fit_adapter(
    model: Qwen2_5_VLCausalModel, adapter: Adapter, may_resize: bool = False
) -> Changes:
    """The changes by the model's paths, those of a tied head included.

    may_resize: take embeddings and head of another vocabulary, where a file has them whole. Raises
    TensorError for all that the model has no place for.
    """
    problems, fitting = [], {}
    is_tied = model.lm_head is None
    for path, change in adapter.changes.items():
        own = model_name(f"{path}.weight").removesuffix(".weight")
        module = find_module(model, own)
        if module is None and own != HEAD:
            problems.append(f"{path} is no layer of this model")
            continue
        weight_shape, has_bias = shape_of(module if module is not None else model.head)
        if may_resize and own in (EMBEDDINGS, HEAD) and change.weight is not None:
            weight_shape[0] = len(change.weight)
        problems += find_misfits(path, change, weight_shape, isinstance(module, nn.Embedding))
        if change.bias is not None and not has_bias:
            problems.append(f"{path} has a bias, the model's layer has none")
        if own in fitting:
            problems.append(f"{path} is there under two names")
        fitting[own] = change
    if problems:
        raise TensorError(
            f"{adapter.folder}: {len(problems)} layers do not fit the model: "
            f"{listed(sorted(problems), '; ')}"
        )
    ties_head = adapter.config.ties_head or (is_tied and is_resized(model, fitting))
    embeddings = fitting.get(EMBEDDINGS, LayerChange())
    if is_tied and ties_head and embeddings.magnitude is not None:
        what = "DoRA on embeddings that are tied to the head is not supported"
        raise TensorError(f"{adapter.folder}: {what}; merge the adapter with PEFT")
    fitting = drop_own_numbers(model, fitting)
    return with_head(fitting, is_tied, ties_head)


def is_resized(model: Qwen2_5_VLCausalModel, changes: Changes) -> bool:
    """Whether the embeddings have another vocabulary, and with them a head that is tied."""
    change = changes.get(EMBEDDINGS, LayerChange())
    return change.weight is not None and len(change.weight) != len(model.head.weight)


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    is_layer = isinstance(module, PackedLinear) or "weight" in module._parameters
    return module if is_layer else None


def shape_of(module: nn.Module) -> tuple[list[int], bool]:
    """The shape of a layer's weight, packed or not, and whether it has a bias."""
    has_bias = getattr(module, "bias", None) is not None
    if isinstance(module, PackedLinear):
        return [module.out_features, module.in_features], has_bias
    return list(module.weight.shape), has_bias  # type: ignore[arg-type]


def find_misfits(
    path: str, change: LayerChange, shape: list[int], is_embedding: bool
) -> Iterable[str]:
    """What of a change does not fit a layer whose weight has this shape."""
    num_rows, width = shape[0], torch.Size(shape[1:]).numel()
    num_inputs, num_outputs = (num_rows, width) if change.is_embedding else (width, num_rows)
    if change.has_low_rank and change.is_embedding != is_embedding:
        yield f"{path} has a low-rank part for another kind of layer"
    wanted: dict[str, list[int | None]] = {
        "down": [None, num_inputs],
        "up": [num_outputs, None],
        "magnitude": [num_outputs],
        "added_bias": [num_outputs],
        "bias": [num_outputs],
        "weight": [*shape],
        "rows": [None, width],
    }
    names = {"down": "lora_A", "up": "lora_B", "rows": "new rows"}
    for name, sizes in wanted.items():
        tensor = getattr(change, name)
        if tensor is None:
            continue
        found = list(tensor.shape)
        if not fits(found, sizes):
            hint = ""
            if name == "weight" and found[1:] == shape[1:]:
                hint = " (another vocabulary; merge_adapter writes a model that has it)"
            yield f"{path}: {names.get(name, name)} is {found}, the model's layer is {shape}{hint}"
    if change.tokens and not 0 <= change.tokens[0] <= change.tokens[-1] < num_rows:
        yield f"{path} has new rows for tokens outside of the vocabulary of {num_rows}"


def fits(found: list[int], wanted: list[int | None]) -> bool:
    """Whether a shape is the one wanted; None stands for any size."""
    return len(found) == len(wanted) and all(
        size is None or size == own for own, size in zip(found, wanted, strict=True)
    )


def drop_own_numbers(model: Qwen2_5_VLCausalModel, changes: Changes) -> Changes:
    """Leave out weights that are those of the model itself, as PEFT writes them beside adapted
    embeddings."""
    left = {}
    for path, change in changes.items():
        module = find_module(model, path) or model.head
        if change.weight is not None:
            own = dense_weight(module)
            stored = change.weight.to(own.device, own.dtype)
            if own.shape == stored.shape and torch.equal(own, stored):
                change.weight = None
        is_empty = all(v is None for v in vars(change).values() if not isinstance(v, bool | tuple))
        if not is_empty:
            left[path] = change
    return left

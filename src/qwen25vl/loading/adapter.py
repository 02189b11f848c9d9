"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

A key is "base_model.model.", the layer's path in the model that was trained, and what it is of the
layer. Paths are in any layout that checkpoints have (`model_name`). Every tensor of a file is used,
or named in an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.adapter_config import CONFIG_FILE, AdapterConfig, read_adapter_config
from qwen25vl.loading.checkpoint import open_safetensors
from qwen25vl.loading.weight_files import PICKLES, listed
from qwen25vl.model.low_rank import LayerChange

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
NAME = r"(?:\.(?!weight$|bias$)[^.]+)?"  # of the adapter, which some saves leave in a key
LOW_RANK = re.compile(
    rf"(?P<path>.+?)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector){NAME}"
    r"(?:\.(?P<leaf>weight|bias))?$"
)
NEW_ROWS = re.compile(
    rf"(?P<path>.+?)(?:\.base_layer)?\.token_adapter\.trainable_tokens_delta{NAME}$"
)
WHOLE = re.compile(
    r"(?P<path>.+?)(?:\.base_layer|\.modules_to_save\.[^.]+)?\.(?P<leaf>weight|bias)$"
)
DOWN, UP = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


@dataclass(frozen=True)
class Adapter:
    """An adapter as its files have it: the changes by the path in a file."""

    folder: Path
    config: AdapterConfig
    changes: dict[str, LayerChange]


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read the files of a folder.

    Raises CheckpointError where a file is missing or damaged, or where adapter_config.json has
    what is not supported; TensorError for tensors that are incomplete or not understood.
    """
    config = read_adapter_config(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        if any(path for pattern in PICKLES for path in folder.glob(pattern)):
            raise CheckpointError(
                f"{folder} holds its adapter as a pickle file, which can run any code when opened; "
                f"where you trust it, load and save it with PEFT, which writes {WEIGHTS_FILE}"
            )
        raise CheckpointError(f"{folder} lacks {WEIGHTS_FILE}")
    with open_safetensors(folder / WEIGHTS_FILE) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        return Adapter(folder, config, read_changes(tensors, config))
    except TensorError as error:
        raise TensorError(f"{folder}: {error}") from None


def read_changes(
    tensors: Mapping[str, torch.Tensor], config: AdapterConfig
) -> dict[str, LayerChange]:
    """What each layer changes by, under its path in the file."""
    changes: dict[str, LayerChange] = {}
    problems = []
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        match = LOW_RANK.match(name) or NEW_ROWS.match(name) or WHOLE.match(name)
        if match is None or not put(
            changes.setdefault(match["path"], LayerChange()), match, tensor
        ):
            problems.append(f"{key} is not understood")
        elif not tensor.is_floating_point() or not tensor.isfinite().all():
            problems.append(f"{key} holds numbers that are not finite")
    for path, change in changes.items():
        problems += complete(path, change, config)
    problems += find_absent(changes, config)
    if problems:
        count = f"{len(problems)} problems with the adapter's tensors"
        raise TensorError(f"{count}: {listed(sorted(problems), '; ')}")
    return changes


def put(change: LayerChange, match: re.Match[str], tensor: torch.Tensor) -> bool:
    """Note a tensor of a layer; False where there is no place for it."""
    parts = match.groupdict()
    part, leaf = parts.get("part"), parts.get("leaf")
    if part is None:
        field = "rows" if leaf is None else leaf
    elif leaf == "bias":
        field = "added_bias" if part == "lora_B" else ""
    elif part in DOWN or part in UP:
        field = "down" if part in DOWN else "up"
        change.is_embedding |= "embedding" in part
    else:
        field = "magnitude"
    if not field or getattr(change, field) is not None:
        return False
    setattr(change, field, tensor if field in ("weight", "bias") else tensor.float())
    return True


def complete(path: str, change: LayerChange, config: AdapterConfig) -> list[str]:
    """Bring a change to the form of its equation; what is wrong with it."""
    if (change.down is None) != (change.up is None):
        return [f"{path} has only one of lora_A and lora_B"]
    problems = []
    if change.down is not None and change.up is not None:
        rank, found = config.rank_of(path), [len(change.down), change.up.shape[1]]
        if found != [rank, rank]:
            return [
                f"{path} has a rank of {found[0]} and {found[1]}, {CONFIG_FILE} makes it {rank}"
            ]
        scale = config.scale_of(path)
        change.down, change.up = change.down.flatten(1), change.up.flatten(1) * scale
        if change.added_bias is not None:
            change.added_bias = change.added_bias * scale
    if config.use_dora != (change.magnitude is not None) and change.has_low_rank:
        there = "lacks" if config.use_dora else "has"
        said = f"use_dora is {str(config.use_dora).lower()}"
        problems.append(f"{path} {there} a lora_magnitude_vector, but {said}")
    if change.magnitude is not None:
        change.magnitude = change.magnitude.flatten()
        if not change.has_low_rank:
            problems.append(f"{path} has a lora_magnitude_vector and no lora_A")
    if change.rows is not None:
        problems += order_tokens(path, change, config.tokens_of(path))
    return problems


def order_tokens(path: str, change: LayerChange, tokens: tuple[int, ...] | None) -> list[str]:
    """Give new rows their tokens, in ascending order."""
    assert change.rows is not None
    if tokens is None or len(tokens) != len(change.rows) or len({*tokens}) != len(tokens):
        given = "no tokens" if tokens is None else f"{len({*tokens})} tokens"
        what = f"{path} has {len(change.rows)} new rows, trainable_token_indices names {given}"
        return [what]
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    change.tokens, change.rows = tuple(sorted(tokens)), change.rows[order]
    return []


def find_absent(changes: Mapping[str, LayerChange], config: AdapterConfig) -> list[str]:
    """What adapter_config.json promises and the file lacks."""
    problems = []
    for end in config.saved:
        if not any(f".{path}.".rfind(f".{end}.") >= 0 for path in changes):
            warnings.warn(
                f"modules_to_save names {end}, but the adapter has none; the base's is used",
                stacklevel=5,
            )
    if config.token_indices and all(change.rows is None for change in changes.values()):
        problems.append("the new rows for trainable_token_indices are missing")
    if config.lora_bias and all(change.added_bias is None for change in changes.values()):
        problems.append("lora_bias is true, but no lora_B.bias is there")
    if config.bias != "none" and all(change.bias is None for change in changes.values()):
        warnings.warn(
            f"bias is {config.bias!r}, but the adapter has no biases (PEFT 0.14 to 0.17 did not "
            "write them); the base's are used",
            stacklevel=5,
        )
    return problems

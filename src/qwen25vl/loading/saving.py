"""Writing checkpoints: the hub's layout, in files of at most 5 GB,
one tensor in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qwen25vl.errors import CheckpointError
from qwen25vl.loading.checkpoint import hub_name
from qwen25vl.loading.formats.compressed import describe_quantisation, weight_shapes
from qwen25vl.loading.weight_files import INDEX_FILE, SINGLE_FILE

if TYPE_CHECKING:
    from qwen25vl.model.causal import Qwen2_5_VLCausalModel

SHARD_FILES = "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5 * 10**9
TYPE_NAMES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int32: "I32",
    torch.int64: "I64"
}  # fmt: skip
ALIGNMENT = 64
WHOLE = "Qwen2_5_VLForConditionalGeneration"


def save_model(
    model: Qwen2_5_VLCausalModel,
    folder: str | Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """`save_part` of a whole model."""
    save_part(model, "", folder, max_shard_bytes)


def save_part(
    part: Any,
    path: str,
    folder: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write config.json, generation_config.json if there is one, and the weights, quantised ones in
    the compressed-tensors format.

    part: a model, or the part of one that stands at `path` in it ("model.language_model"). tensors:
    what to write instead of the part's own. Everything is written beside its place first and then
    moved there, weights before what describes them, and a model can be saved into the folder that
    it is mapped from. Raises CheckpointError where the folder cannot be written.
    """
    folder = Path(folder)
    whole = at_path(part, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            temporary = Path(name)
            config = copy(part.config)
            config.dtype = str(part.dtype).removeprefix("torch.")
            config.quantization_config = describe_quantisation(whole)
            config.architectures = [type(part).__name__ if path else WHOLE]
            config.save_pretrained(temporary)
            if getattr(part, "generation_config", None) is not None:
                part.generation_config.save_pretrained(temporary)
            given = part.state_dict() if tensors is None else tensors
            prefix = f"{path}." if path else ""
            named = {prefix + key: tensor for key, tensor in given.items()}
            written = aligned_first(named | weight_shapes(whole))
            write_shards(written, written.values(), temporary, max_shard_bytes)
            put_in_place(temporary, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def at_path(part: nn.Module, path: str) -> nn.Module:
    """A module that has the part at a path, as a whole model has it."""
    for name in reversed(path.split(".") if path else ()):
        holder = nn.Module()
        holder.add_module(name, part)
        part = holder
    return part


def put_in_place(temporary: Path, folder: Path) -> None:
    """Move what was written: weights first. Weights of an earlier save go."""
    written = {path.name for path in temporary.iterdir()}
    for file_name in sorted(written, key=lambda name: (name.endswith(".json"), name)):
        (temporary / file_name).replace(folder / file_name)
    for path in (folder / SINGLE_FILE, folder / INDEX_FILE, *folder.glob(SHARD_FILES)):
        if path.name not in written:
            # it would be read beside the new files
            path.unlink(missing_ok=True)


def aligned_first(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In the order in which, mapped, as many as possible begin at a multiple of 64 bytes."""
    return dict(sorted(tensors.items(), key=lambda item: item[1].nbytes % ALIGNMENT > 0))


def split_shards(plan: Mapping[str, torch.Tensor], max_bytes: int) -> list[dict[str, torch.Tensor]]:
    """The tensors in their order, in parts of at most `max_bytes` bytes or of one tensor."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in plan.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def write_shards(
    plan: Mapping[str, torch.Tensor], tensors: Iterable[torch.Tensor], folder: Path, max_bytes: int
) -> None:
    """One file alone, or several and their index. plan: the tensors' names, types and shapes, in
    the same order."""
    weight_map: dict[str, str] = {}
    iterator = iter(tensors)
    shards = split_shards(plan, max_bytes)
    for number, shard in enumerate(shards, 1):
        file_name = SINGLE_FILE
        if len(shards) > 1:
            file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file_name, shard, iterator)
        weight_map |= {hub_name(name): file_name for name in shard}
    if len(shards) > 1:
        total_size = sum(tensor.nbytes for tensor in plan.values())
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tensors(
    path: Path, plan: Mapping[str, torch.Tensor], tensors: Iterator[torch.Tensor]
) -> None:
    """A safetensors file, on the disk when this returns. Its numbers begin at a multiple of 64
    bytes. While a tensor is written the next one is made."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in plan.items():
        start, end = end, end + tensor.nbytes
        kind = TYPE_NAMES[tensor.dtype]
        header[hub_name(name)] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file, ThreadPoolExecutor(1) as writer:
        written = writer.submit(file.write, len(text).to_bytes(8, "little") + text)
        for _ in plan:
            tensor = next(tensors).detach().cpu().contiguous()
            written.result()
            written = writer.submit(file.write, tensor.view(-1).view(torch.uint8).numpy().data)
        written.result()
        file.flush()
        os.fsync(file.fileno())

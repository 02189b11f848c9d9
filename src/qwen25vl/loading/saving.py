"""Writing checkpoints: the hub's layout, in files of at most 5 GB,
one tensor in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from qwen25vl.errors import CheckpointError
from qwen25vl.loading.checkpoint import INDEX_FILE, SINGLE_FILE, hub_name
from qwen25vl.loading.compressed import describe_quantisation, weight_shapes

if TYPE_CHECKING:
    from qwen25vl.model.causal import Qwen2_5_VLCausalModel

SHARD_FILES = "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5 * 10**9
TYPE_NAMES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int32: "I32",
    torch.int64: "I64"
}  # fmt: skip
ALIGNMENT = 64


def save_model(
    model: Qwen2_5_VLCausalModel,
    folder: str | Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json, generation_config.json and the weights, quantised ones in the
    compressed-tensors format.

    Everything is written beside its place first and then moved there, weights before what describes
    them, and a model can be saved into the folder that it is mapped from. Raises CheckpointError
    where the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            temporary = Path(name)
            dtype = str(model.dtype).removeprefix("torch.")
            replace(
                model.config, dtype=dtype, quantization_config=describe_quantisation(model)
            ).save_pretrained(temporary)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(temporary)
            tensors = aligned_first(model.state_dict() | weight_shapes(model))
            write_shards(tensors, tensors.values(), temporary, max_shard_bytes)
            written = {path.name for path in temporary.iterdir()}
            # weights first
            for file_name in sorted(written, key=lambda name: (name.endswith(".json"), name)):
                (temporary / file_name).replace(folder / file_name)
            for path in (folder / SINGLE_FILE, folder / INDEX_FILE, *folder.glob(SHARD_FILES)):
                if path.name not in written:
                    # of an earlier save: it would be read beside the new files
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


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

"""A checkpoint folder made into a quantised one, layer by layer: no model is ever in memory.

All is written into a hidden folder beside the new one: weights first, config.json, without which
nothing loads, last. When every byte is on the disk the folder gets its name. An error or Ctrl-C
removes the hidden folder. A process that is killed leaves it, and the next run replaces it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.config_values import read_json
from qwen25vl.errors import CheckpointError, UsageError
from qwen25vl.hub import PROCESSOR_FILES, resolve_folder
from qwen25vl.kernels.allocator import map_large_buffers
from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.formats.compressed import describe_quantisation, weight_shapes
from qwen25vl.loading.load import SkipInitialisation, terminal_bar
from qwen25vl.loading.quantization import (
    MANY_SCALES,
    check_widths,
    covered_linears,
    make_packed_layer,
    quantise,
)
from qwen25vl.loading.saving import MAX_SHARD_BYTES, aligned_first, write_shards
from qwen25vl.loading.scheme import Scheme
from qwen25vl.loading.unfinished import flush, put_in_place, unfinished_folder
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.progress import Progress

BESIDE = {*PROCESSOR_FILES, "generation_config.json", "LICENSE", "NOTICE"} - {"config.json"}
MARGIN = 2**26  # bytes for all but the weights


def quantize_folder(
    name_or_folder: str | Path,
    target: str | Path,
    scheme: Scheme,
    *,
    force: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint folder's or hub name's weights in 8 or 4 bits, and the files beside them,
    to a new folder.

    force: replace an existing checkpoint when the new one is complete. progress: called with
    ("quantize", bytes written, total bytes); without it a bar is shown on stderr if that is a
    terminal. Raises UsageError for a target that is not empty or that another process is writing,
    and for a source that is quantised; CheckpointError if something cannot be read or written, or
    the disk has too little space.
    """
    source = resolve_folder(name_or_folder, revision=revision, local_files_only=local_files_only)
    target = Path(target).expanduser().resolve()
    check_target(target, source, force)
    config = Qwen2_5_VLConfig.from_pretrained(source)
    if config.quantization_config is not None:
        raise UsageError(
            f"{source} is already quantised; quantise the checkpoint that it was made from"
        )
    map_large_buffers()
    with torch.device("meta"), SkipInitialisation():
        model = Qwen2_5_VLCausalModel(config)
    checkpoint = Checkpoint(source)
    checkpoint.match(model)
    covered = covered_linears(model, scheme)
    check_widths(scheme, covered)
    for path, linear in covered.items():
        model.set_submodule(path, make_packed_layer(linear, scheme.for_layer(path)))
    types = {key: stored.dtype for key, stored in checkpoint.stored.items()}
    plan = {key: torch.empty_like(t, dtype=types.get(key)) for key, t in model.state_dict().items()}
    plan = aligned_first(plan | weight_shapes(model))
    try:
        with unfinished_folder(target) as partial:
            check_target(target, source, force)  # another run may have completed it since
            needed = sum(tensor.nbytes for tensor in plan.values()) + MARGIN
            if needed > (free := shutil.disk_usage(target.parent).free):
                sizes = f"{needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free"
                raise CheckpointError(f"{target} needs {sizes}")
            with terminal_bar("Quantizing") as bar:
                tensors = quantised_tensors(checkpoint, plan, covered, scheme, progress or bar)
                write_shards(plan, tensors, partial, max_shard_bytes)
            write_beside(source, partial, describe_quantisation(model))
            put_in_place(partial, target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    return target


def write_beside(source: Path, partial: Path, quantization: Any) -> None:
    """Write the other files of a checkpoint: config.json last, and all of them to the disk."""
    for name in sorted(BESIDE):
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    values = read_json(source / "config.json") | {"quantization_config": quantization}
    (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for written in [*partial.iterdir(), partial]:
        flush(written)


def quantised_tensors(
    checkpoint: Checkpoint,
    plan: Mapping[str, torch.Tensor],
    covered: Mapping[str, nn.Linear],
    scheme: Scheme,
    progress: Progress,
) -> Iterator[torch.Tensor]:
    """The tensors of the plan, in its order;
    a layer is quantised when its packed weight is asked for."""
    made: dict[str, torch.Tensor] = {}
    done, total = 0, sum(tensor.nbytes for tensor in plan.values())
    for key, planned in plan.items():
        path, _, name = key.rpartition(".")
        if name == "weight_packed":
            covered[path].weight = nn.Parameter(checkpoint.read_once(f"{path}.weight"))
            made |= quantise(covered[path], scheme.for_layer(path), MANY_SCALES).named_buffers(
                prefix=path
            )
            del covered[path].weight
        yield checkpoint.read_once(key) if key in checkpoint.stored else made.pop(key, planned)
        done += planned.nbytes
        progress("quantize", done, total)


def check_target(target: Path, source: Path, force: bool) -> None:
    """Raise UsageError unless the target is absent, an empty folder,
    or with `force` another checkpoint."""
    if target == source.resolve():
        raise UsageError(f"{target} is the checkpoint itself; give another folder")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "config.json").is_file():
        raise UsageError(
            f"{target} already exists and holds no checkpoint; give a new or empty folder"
        )
    if not force:
        raise UsageError(
            f"{target} already holds a checkpoint; give another folder, or --force to replace it"
        )

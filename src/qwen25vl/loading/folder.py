"""A checkpoint made into a folder of its own, layer by layer: no model is ever in memory.

All is written into a hidden folder beside the new one: weights first, config.json, without which
nothing loads, last. When every byte is on the disk the folder gets its name. An error or Ctrl-C
removes the hidden folder. A process that is killed leaves it, and the next run replaces it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
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
from qwen25vl.loading.conversion import Conversion, unpack_layers
from qwen25vl.loading.formats import stored_format
from qwen25vl.loading.formats.compressed import describe_quantisation, weight_shapes
from qwen25vl.loading.formats.mlx import turn_patches
from qwen25vl.loading.load import SkipInitialisation, terminal_bar
from qwen25vl.loading.quantization import check_widths, covered_linears, make_packed_layer
from qwen25vl.loading.saving import MAX_SHARD_BYTES, aligned_first, write_shards
from qwen25vl.loading.scheme import Scheme
from qwen25vl.loading.settling import settle_config
from qwen25vl.loading.unfinished import flush, put_in_place, unfinished_folder
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.progress import Progress

BESIDE = {*PROCESSOR_FILES, "generation_config.json", "LICENSE", "NOTICE"} - {
    "config.json",
    "quantize_config.json",
}
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
    """Write a checkpoint's weights in 8 or 4 bits, and the files beside them, to a new folder; what
    is not quantised keeps its type.

    force: replace an existing checkpoint when the new one is complete. progress: called with
    ("quantize", bytes written, total bytes); without it a bar is shown on stderr if that is a
    terminal. Raises UsageError for a target that is not empty or that another process is writing,
    and for a source that is quantised; CheckpointError if something cannot be read or written, or
    the disk has too little space.
    """
    source = resolve_folder(name_or_folder, revision=revision, local_files_only=local_files_only)
    return write_folder(source, target, scheme, None, False, force, max_shard_bytes, progress)


def convert_folder(
    name_or_folder: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    scheme: Scheme | None = None,
    keep_packed: bool = True,
    force: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint in any form that is read to a folder of the hub's form.

    Layers that a kernel reads as they are stored keep their numbers, in the compressed-tensors
    format; keep_packed=False works them out too. Everything else is written in `dtype`, or
    quantised where `scheme` covers it. The rest is as in `quantize_folder`.
    """
    source = resolve_folder(name_or_folder, revision=revision, local_files_only=local_files_only)
    return write_folder(
        source, target, scheme, dtype, not keep_packed, force, max_shard_bytes, progress
    )


def write_folder(
    source: Path,
    target: str | Path,
    scheme: Scheme | None,
    dtype: torch.dtype | None,
    unpacks: bool,
    force: bool,
    max_shard_bytes: int,
    progress: Progress | None,
) -> Path:
    """dtype: of what is not packed; None keeps what is stored. unpacks: work out packed layers."""
    target = Path(target).expanduser().resolve()
    check_target(target, source, force)
    _, checkpoint, model = open_source(source)
    covered = {} if scheme is None else covered_linears(model, scheme)
    if scheme is not None:
        if not covered:
            raise UsageError(
                f"{source} is already quantised; quantise the checkpoint that it was made from"
            )
        check_widths(scheme, covered)
        for path, linear in covered.items():
            model.set_submodule(path, make_packed_layer(linear, scheme.for_layer(path)))
    unpacked = unpack_layers(model, covered) if unpacks else {}
    conversion = Conversion(checkpoint, covered, unpacked, scheme)
    plan = plan_tensors(model, checkpoint, dtype)
    try:
        with unfinished_folder(target) as partial:
            check_target(target, source, force)  # another run may have completed it since
            require_space(plan, target)
            with terminal_bar("Quantizing" if scheme else "Converting") as bar:
                stage = "quantize" if scheme else "convert"
                tensors = conversion.tensors(plan, progress or bar, stage)
                write_shards(plan, tensors, partial, max_shard_bytes)
            write_beside(source, partial, describe_quantisation(model), dtype)
            put_in_place(partial, target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    conversion.error.warn(source)
    return target


def open_source(source: Path) -> tuple[Qwen2_5_VLConfig, Checkpoint, Qwen2_5_VLCausalModel]:
    """A folder's sizes, its tensors, and a model on "meta" that they fit.

    Raises CheckpointError (TensorError) where something is missing or does not fit.
    """
    config = Qwen2_5_VLConfig.from_pretrained(source)
    quantised = stored_format(config, source)
    map_large_buffers()
    checkpoint = Checkpoint(source)
    config = settle_config(config, checkpoint)
    with torch.device("meta"), SkipInitialisation():
        model = Qwen2_5_VLCausalModel(config)
    if quantised is not None:
        quantised.expect(model, checkpoint)
    turn_patches(model, checkpoint)
    checkpoint.match(model)
    return config, checkpoint, model


def plan_tensors(
    model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Names, shapes and types of what is written, in its order, on "meta"."""
    buffers = dict(model.named_buffers())
    plan = {}
    for key, tensor in model.state_dict().items():
        stored = checkpoint.stored.get(key)
        kind = dtype
        if key in buffers:
            kind = tensor.dtype  # of packed layers, as the kernels read them
        elif kind is None and stored is not None:
            kind = torch.bfloat16 if stored.decode is not None else stored.dtype
        plan[key] = torch.empty_like(tensor, dtype=kind)
    return aligned_first(plan | weight_shapes(model))


def require_space(plan: Mapping[str, torch.Tensor], target: Path) -> None:
    require_bytes(sum(tensor.nbytes for tensor in plan.values()), target)


def require_bytes(count: int, target: Path) -> None:
    """Raise CheckpointError unless the disk has room for weights of so many bytes, and the rest."""
    needed = count + MARGIN
    if needed > (free := shutil.disk_usage(target.parent).free):
        sizes = f"{needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free"
        raise CheckpointError(f"{target} needs {sizes}")


def write_beside(source: Path, partial: Path, quantization: Any, dtype: torch.dtype | None) -> None:
    """Write the other files of a checkpoint: config.json last, and all of them to the disk."""
    for name in sorted(BESIDE):
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    values = read_json(source / "config.json")
    for stale in ("quantization", "quantization_config"):  # the former is MLX's
        values.pop(stale, None)
        if isinstance(values.get("text_config"), dict):
            values["text_config"].pop(stale, None)
    if quantization is not None:
        values["quantization_config"] = quantization
    if dtype is not None:
        values["dtype" if "dtype" in values else "torch_dtype"] = str(dtype).removeprefix("torch.")
    (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for written in [*partial.iterdir(), partial]:
        flush(written)


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

"""An adapter merged into its base: a new checkpoint folder, one tensor in memory at a time.

The sum is computed in float32 and rounded once to the type of the base. Layers of a quantised base
become plain ones, of the numbers that its codes stand for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.hub import resolve_folder
from qwen25vl.loading.adapter import read_adapter
from qwen25vl.loading.adapter_base import find_base, processor_files
from qwen25vl.loading.adapter_fit import fit_adapter
from qwen25vl.loading.folder import MARGIN, check_target
from qwen25vl.loading.load import DTYPES, LoadOptions, load_folder, terminal_bar
from qwen25vl.loading.saving import MAX_SHARD_BYTES, aligned_first, write_shards
from qwen25vl.loading.unfinished import flush, put_in_place, unfinished_folder
from qwen25vl.model.adapted import dense_weight
from qwen25vl.model.adapted_model import EMBEDDINGS, HEAD, Changes
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.low_rank import LayerChange, merged_bias, merged_weight
from qwen25vl.model.packed_linear import PackedLinear
from qwen25vl.progress import Progress

OF_MODELS = ("generation_config.json", "LICENSE", "NOTICE")


def merge_adapter(
    adapter: str | Path,
    target: str | Path,
    *,
    model: str | Path | None = None,
    force: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a LoRA adapter and its base as one checkpoint, to a new folder.

    adapter: a folder or a hub name. model: the base, by default the one that the adapter names.
    force: replace an existing checkpoint when the new one is complete. progress: called with
    ("merge", bytes written, total bytes). Raises UsageError for a target that is not empty,
    CheckpointError (TensorError) for an adapter that does not fit, or where something cannot be
    read or written.
    """
    hub: dict[str, Any] = {"local_files_only": local_files_only, "token": token}
    folder = resolve_folder(adapter, files="adapter" if model is not None else "all", **hub)
    read = read_adapter(folder)
    source = find_base(folder, **hub)[0] if model is None else resolve_folder(model, **hub)
    target = Path(target).expanduser().resolve()
    for place in (source, folder):
        check_target(target, place, force)
    config = Qwen2_5_VLConfig.from_pretrained(source)
    how = LoadOptions(None, torch.device("cpu"), "sdpa", None, "reference")
    base = load_folder(source, Qwen2_5_VLCausalModel, how)
    dtype = DTYPES.get(str(config.dtype), base.dtype)
    with torch.no_grad():
        changes = fit_adapter(base, read, may_resize=True)
        try:
            with unfinished_folder(target) as partial:
                write_merged(base, changes, dtype, partial, progress)
                copy_beside(source, folder, partial)
                put_in_place(partial, target)
        except OSError as error:
            raise CheckpointError(f"{target} cannot be written: {error}") from error
    return target


def write_merged(
    base: Qwen2_5_VLCausalModel,
    changes: Changes,
    dtype: torch.dtype,
    partial: Path,
    progress: Progress | None,
) -> None:
    """The weights and config.json of a merged model."""
    plan = aligned_first(plan_merged(base, changes, dtype))
    needed = sum(tensor.nbytes for tensor in plan.values()) + MARGIN
    if needed > (free := shutil.disk_usage(partial).free):
        sizes = f"{needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free"
        raise CheckpointError(f"{partial.parent} needs {sizes}")
    with terminal_bar("Merging") as bar:
        tensors = merged_tensors(base, changes, plan, progress or bar)
        write_shards(plan, tensors, partial, MAX_SHARD_BYTES)
    rows = {len(plan[key]) for key in (f"{EMBEDDINGS}.weight", f"{HEAD}.weight") if key in plan}
    if len(rows) > 1:
        raise TensorError(
            f"the adapter makes embeddings and head of different vocabularies: {sorted(rows)}"
        )
    config = deepcopy(base.config)
    config.quantization_config = None
    config.dtype = str(dtype).removeprefix("torch.")
    config.text_config.vocab_size = len(plan[f"{EMBEDDINGS}.weight"])
    config.tie_word_embeddings = f"{HEAD}.weight" not in plan
    config.save_pretrained(partial)


def plan_merged(
    base: Qwen2_5_VLCausalModel, changes: Changes, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors of a merged model on "meta": names, shapes and types."""
    plan = {}
    layers = dict(base.named_modules())
    if HEAD in changes and not stays_tied(base, changes):
        layers[HEAD] = base.head
    for path, module in layers.items():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, PackedLinear):
            sizes = module.out_features, module.in_features
            own["weight"] = torch.empty(sizes, dtype=dtype, device="meta")
        change = changes.get(path, LayerChange())
        if change.added_bias is not None and "bias" not in own:
            raise TensorError(
                f"the adapter has a bias for {path}, for which a checkpoint of this model has no "
                "place; use it beside its base, with adapter="
            )
        for name, tensor in own.items():
            new = getattr(change, name)
            shape = tensor.shape if new is None else new.shape
            plan[f"{path}.{name}"] = torch.empty(shape, dtype=dtype, device="meta")
    return plan


def stays_tied(base: Qwen2_5_VLCausalModel, changes: Changes) -> bool:
    """Whether a tied head is still the same matrix as the embeddings."""
    if base.lm_head is not None:
        return False
    weight = base.head.weight
    embeddings = merged_weight(weight, changes.get(EMBEDDINGS, LayerChange()))
    return torch.equal(embeddings, merged_weight(weight, changes[HEAD]))


def merged_tensors(
    base: Qwen2_5_VLCausalModel,
    changes: Changes,
    plan: Mapping[str, torch.Tensor],
    progress: Progress,
) -> Iterator[torch.Tensor]:
    """The tensors of the plan, in its order."""
    done, total = 0, sum(tensor.nbytes for tensor in plan.values())
    for key, planned in plan.items():
        path, _, name = key.rpartition(".")
        module = base.head if path == HEAD else base.get_submodule(path)
        change = changes.get(path, LayerChange())
        if name == "weight":
            merged = merged_weight(dense_weight(module), change)
        else:
            bias = merged_bias(module.bias, change)  # type: ignore[arg-type]
            assert bias is not None
            merged = bias
        done += planned.nbytes
        progress("merge", done, total)
        yield merged.to(planned.dtype)


def copy_beside(source: Path, adapter: Path, partial: Path) -> None:
    """The other files of a checkpoint, and all of them to the disk."""
    files = {name: source / name for name in OF_MODELS if (source / name).is_file()}
    for name, path in (files | processor_files(source, adapter)).items():
        shutil.copyfile(path, partial / name)
    for written in [*partial.iterdir(), partial]:
        flush(written)

"""A checkpoint written as GGUF files: the language model, and the vision encoder beside it.

Both are written into a hidden folder beside their place, one tensor in memory at a time, and moved
when they are complete; the language model's file, which names the model, last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from qwen25vl.ecosystem.gguf_metadata import describe_text, describe_vision
from qwen25vl.ecosystem.processor_files import read_preparations
from qwen25vl.errors import CheckpointError, UsageError
from qwen25vl.hub import resolve_folder
from qwen25vl.loading.checkpoint import Checkpoint, hub_name
from qwen25vl.loading.conversion import Conversion, unpack_layers
from qwen25vl.loading.folder import open_source, require_bytes
from qwen25vl.loading.formats.gguf_encoding import ENCODERS, encode_tensor
from qwen25vl.loading.gguf_weights import PATCHES, gguf_names_of
from qwen25vl.loading.load import terminal_bar
from qwen25vl.loading.unfinished import flush, unfinished_folder
from qwen25vl.processing.image import ImageSettings
from qwen25vl.progress import Progress
from qwen25vl.single_file.gguf_files import projector_name
from qwen25vl.single_file.gguf_writing import Planned, num_bytes, write_gguf

KINDS = {"q4_0": "Q4_0", "q8_0": "Q8_0", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
HEAD, EMBEDDINGS = "output.weight", "token_embd.weight"
Files = dict[str, dict[str, Planned]]
"""By the model's key of a tensor: the tensors that a file has of it."""


def export_gguf(
    name_or_folder: str | Path,
    target: str | Path,
    kind: str = "bfloat16",
    *,
    vision_kind: str | None = None,
    force: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint as `target`, a file whose name ends with .gguf, and mmproj-… beside it.

    kind: of the language model's matrices, "q4_0", "q8_0", "float16", "bfloat16" or "float32"; of
    Q4_0 the head is Q6_K, or Q8_0 where its rows are no multiple of 256. vision_kind: "float16",
    "bfloat16" or "float32", by default that of the text or else bfloat16. Norms and biases are
    float32. force: replace existing files when the new ones are complete. progress: called with
    ("convert", bytes read, total bytes). Raises UsageError for existing files and for models that
    the format cannot hold, CheckpointError if something cannot be read or written, or the disk has
    too little space.
    """
    source = resolve_folder(name_or_folder, revision=revision, local_files_only=local_files_only)
    target = Path(target).expanduser().resolve()
    beside = target.with_name(projector_name(target))
    vision_kind = vision_kind or (kind if kind.endswith(("16", "32")) else "bfloat16")
    check_absent((target, beside), force)
    config, checkpoint, model = open_source(source)
    conversion = Conversion(checkpoint, {}, unpack_layers(model, {}), None)
    plan = plan_numbers(model.state_dict(), checkpoint)
    text_type, vision_type = KINDS[kind], KINDS[vision_kind]
    files = plan_files(plan, text_type, vision_type, config.tie_word_embeddings)
    settings = ImageSettings.from_dict(read_preparations(source)[0])
    name = target.stem
    metadata = (
        describe_text(config, source, text_type, name),
        describe_vision(config.vision_config, settings, vision_type, name),
    )
    ordered = {key: plan[key] for part in files for key in part}
    try:
        with unfinished_folder(target) as partial, terminal_bar("Converting") as bar:
            check_absent((target, beside), force)  # another run may have completed them since
            whole = [{n: t for made in part.values() for n, t in made.items()} for part in files]
            require_bytes(sum(num_bytes(t) for made in whole for t in made.values()), target)
            stream = conversion.tensors(ordered, progress or bar, "convert")
            for place, about, made, part in zip(
                (target, beside), metadata, whole, files, strict=True
            ):
                write_gguf(partial / place.name, about, made, encoded(part, stream))
            for place in (beside, target):
                (partial / place.name).replace(place)
            partial.rmdir()
            flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    return target


def plan_files(
    plan: Mapping[str, torch.Tensor], text_type: str, vision_type: str, tied: bool
) -> tuple[Files, Files]:
    """What the language model's file has, and the vision encoder's."""
    files: tuple[Files, Files] = ({}, {})
    for key, tensor in plan.items():
        is_vision = (hub := hub_name(key)).startswith("visual.")
        kind = vision_type if is_vision else text_type
        files[is_vision][key] = plan_tensor(hub, tuple(tensor.shape), kind, tied)
    return files


def check_absent(places: tuple[Path, ...], force: bool) -> None:
    """Raise UsageError for a file that is there, unless it may be replaced."""
    for place in places:
        if place.is_dir() or (place.exists() and not force):
            remedy = "" if place.is_dir() else ", or --force to replace it"
            raise UsageError(f"{place} already exists; give another name{remedy}")


def plan_numbers(
    state: Mapping[str, torch.Tensor], checkpoint: Checkpoint
) -> dict[str, torch.Tensor]:
    """The tensors that are read, on "meta": as they are stored, or worked out in float32."""
    plan = {}
    for key, tensor in state.items():
        stored = checkpoint.stored.get(key)
        is_plain = stored is not None and stored.decode is None
        kind = stored.dtype if stored is not None and is_plain else torch.float32
        plan[key] = torch.empty_like(tensor, dtype=kind)
    return plan


def plan_tensor(hub: str, shape: tuple[int, ...], kind: str, tied: bool) -> dict[str, Planned]:
    """The tensors of a file, of one under the hub's name. Raises UsageError for rows that are not
    whole blocks."""
    names = gguf_names_of(hub)
    if hub == PATCHES:
        # llama.cpp convolves in F16 or F32 only
        shape, kind = (*shape[:2], *shape[3:]), "F16" if kind == "F16" else "F32"
    elif len(names) > 1:
        shape = (shape[0] // len(names), *shape[1:])
    if len(shape) == 1:
        kind = "F32"
    elif kind == "Q4_0" and (names == [HEAD] or (tied and names == [EMBEDDINGS])):
        kind = "Q8_0" if shape[-1] % ENCODERS["Q6_K"][0] else "Q6_K"
    if kind in ENCODERS and shape[-1] % ENCODERS[kind][0]:
        raise UsageError(
            f"{hub} has {shape[-1]} inputs, no multiple of {ENCODERS[kind][0]}, which {kind} "
            "needs; take bfloat16 or float16"
        )
    return dict.fromkeys(names, (shape, kind))


def encoded(files: Files, tensors: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The bytes of a file's tensors, of the model's in the same order."""
    for key, made in files.items():
        tensor = next(tensors)
        parts = tensor.unbind(2) if hub_name(key) == PATCHES else tensor.chunk(len(made))
        for (name, (_, kind)), part in zip(made.items(), parts, strict=True):
            yield encode_tensor(part, kind, name)

"""The weights of a checkpoint folder: one safetensors file or several, under the hub's names or the newer ones.

`Checkpoint` looks at names, shapes and types of everything before it reads a single number, and then maps tensors
instead of copying them. A mapping is private: an optimiser may write into it, the file never changes. `save_model`
writes the hub's layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from qwen25vl.errors import CheckpointError, TensorError, UsageError
from qwen25vl.loading.quantize import is_quantised

if TYPE_CHECKING:
    from qwen25vl.model.conditional_generation import Qwen2_5_VLForConditionalGeneration

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILES = "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5 * 10**9
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOAT_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
COMPUTED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")  # tables that old saves held and the model computes
TIED_HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"
MAX_LISTED = 20


def model_name(stored: str) -> str:
    """The model's name of a tensor in either layout: model.visual.…, model.language_model.…, lm_head.weight."""
    if stored.startswith("visual."):
        return "model." + stored
    if stored.startswith("model.") and not stored.startswith(("model.visual.", "model.language_model.")):
        return stored.replace("model.", "model.language_model.", 1)
    return stored


def hub_name(name: str) -> str:
    """The inverse: visual.…, model.…, lm_head.weight."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what its file's header says of it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def dtype(self) -> torch.dtype:
        return FLOAT_TYPES[self.type_name]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """The tensors of a folder under the model's names."""

    def __init__(self, folder: Path) -> None:
        """Open the files and read their headers. Raises CheckpointError for what is missing or damaged."""
        self.folder = folder
        self.stored: dict[str, StoredTensor] = {}
        self.open_files: dict[Path, Any] = {}
        for path, promised in weight_files(folder).items():
            self.open_files[path] = file = open_safetensors(path)
            if absent := promised - set(file.keys()):
                raise CheckpointError(f"{path} lacks tensors that {INDEX_FILE} promises: {listed(sorted(absent))}")
            for name in file.keys():  # noqa: SIM118  (a file, not a mapping)
                self.add(path, name, file.get_slice(name))

    def add(self, path: Path, name: str, header: Any) -> None:
        key = model_name(name)
        if key.endswith(COMPUTED):
            return
        if key in self.stored:
            first = self.stored[key]
            raise CheckpointError(f"{first.name} of {first.path.name} and {name} of {path.name} are the same tensor")
        self.stored[key] = StoredTensor(path, name, tuple(header.get_shape()), header.get_dtype())

    def match(self, model: nn.Module) -> None:
        """Raise one TensorError for all that is missing, unexpected, mis-shaped or no floating-point number.

        A head beside tied embeddings is dropped if it is the same matrix, as some saves repeat it.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        problems = [f"{hub_name(name)} is missing" for name in wanted.keys() - self.stored.keys()]
        for key, tensor in self.stored.items():
            if key == TIED_HEAD and key not in wanted and EMBEDDINGS in self.stored:
                if not torch.equal(self.read(TIED_HEAD), self.read(EMBEDDINGS)):
                    problems.append(f"{key} differs from the embeddings, to which tie_word_embeddings ties it")
            elif key not in wanted:
                problems.append(f"{tensor.name} is unexpected")
            elif tensor.shape != wanted[key]:
                problems.append(f"{tensor.name} is {list(tensor.shape)}, config.json makes it {list(wanted[key])}")
            elif tensor.type_name not in FLOAT_TYPES:
                problems.append(f"{tensor.name} is of type {tensor.type_name}, not of {', '.join(FLOAT_TYPES)}")
        if problems:
            raise TensorError(f"{self.folder}: {len(problems)} tensors do not fit: {listed(sorted(problems), '; ')}")

    def read(self, key: str) -> torch.Tensor:
        """The tensor, mapped: its pages are read when they are used, and shared with the file cache."""
        stored = self.stored[key]
        return self.open_files[stored.path].get_tensor(stored.name)  # type: ignore[no-any-return]

    def read_once(self, key: str) -> torch.Tensor:
        """The tensor through a mapping of its own: what was read leaves this process's memory with the tensor.

        For tensors that are converted and then dropped.
        """
        stored = self.stored[key]
        with open_safetensors(stored.path) as file:
            return file.get_tensor(stored.name)  # type: ignore[no-any-return]


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files with weights, each with the names that the index promises to be in it."""
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: set()}
    if not (folder / INDEX_FILE).is_file():
        if any(path for pattern in PICKLES for path in folder.glob(pattern)):
            raise CheckpointError(
                f"{folder} holds its weights as pickle files, which can run any code when they are opened; "
                f"take a version in safetensors, or convert it where you trust it"
            )
        raise CheckpointError(f"{folder} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}")
    files: dict[Path, set[str]] = {}
    for name, file_name in read_weight_map(folder / INDEX_FILE).items():
        files.setdefault(folder / file_name, set()).add(name)
    if absent := sorted(path.name for path in files if not path.is_file()):
        raise CheckpointError(f"{folder} is incomplete: {listed(absent)} of {INDEX_FILE} missing; download it again")
    return files


def read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} can not be read: {error!r}") from None
    if not isinstance(weight_map, dict) or not all(is_file_name(name) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must give the name of a file in the same folder for each tensor")
    return weight_map


def is_file_name(value: object) -> bool:
    return isinstance(value, str) and PurePath(value).name == value


def open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {error}; download it again") from None


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """The first of them, and how many there are more."""
    items = list(items)
    more = len(items) - MAX_LISTED
    return separator.join(items[:MAX_LISTED]) + (f"{separator}and {more} more" if more > 0 else "")


def save_model(
    model: Qwen2_5_VLForConditionalGeneration, folder: str | Path, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write config.json, generation_config.json and the weights in the hub's layout, in files of at most 5 GB.

    Everything is written beside its place first and then moved there, weights before what describes them, and a model
    can be saved into the folder that it is mapped from. Raises UsageError for a quantised model,
    CheckpointError where the folder can not be written.
    """
    if is_quantised(model):
        raise UsageError("a quantised model can not be saved; load it without quantization_config and save that")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            temporary = Path(name)
            replace(model.config, dtype=str(model.dtype).removeprefix("torch.")).save_pretrained(temporary)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(temporary)
            tensors = {hub_name(key): value.detach().contiguous() for key, value in model.state_dict().items()}
            write_shards(split_shards(tensors, max_shard_bytes), temporary)
            written = {path.name for path in temporary.iterdir()}
            for file_name in sorted(written, key=lambda name: (name.endswith(".json"), name)):  # weights first
                (temporary / file_name).replace(folder / file_name)
            for path in (folder / SINGLE_FILE, folder / INDEX_FILE, *folder.glob(SHARD_FILES)):
                if path.name not in written:
                    path.unlink(missing_ok=True)  # of an earlier save: it would be read beside the new files
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} can not be written: {error}") from error


def split_shards(tensors: dict[str, torch.Tensor], max_bytes: int) -> list[dict[str, torch.Tensor]]:
    """The tensors in their order, in parts of at most so many bytes or of one tensor."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def write_shards(shards: list[dict[str, torch.Tensor]], folder: Path) -> None:
    """One file alone, or several and their index. They get the rights of config.json; safetensors' are narrower."""
    mode = (folder / "config.json").stat().st_mode
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(mode)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total_size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

"""The weights of a checkpoint folder:
one safetensors file or several, under the hub's names or the newer ones.

`Checkpoint` looks at names, shapes and types of everything before it reads a single number, and
then maps tensors instead of copying them. A mapping is private: an optimiser may write into it, the
file never changes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.gguf_weights import GgufWeights
from qwen25vl.loading.weight_files import INDEX_FILE, listed, weight_files
from qwen25vl.single_file.gguf_header import is_gguf

FLOAT_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32,
               "F64": torch.float64}  # fmt: skip
PACKED_TYPES = {"I32": torch.int32}
PACKED = (".weight_packed", ".qweight")  # how names of packed weights end
TYPES = FLOAT_TYPES | PACKED_TYPES
ITEM_SIZES = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8,
    "U64": 8,
}  # fmt: skip
# what a model was in when it was saved: of a whole, and anywhere in a name
WRAPPERS = ("module.", "base_model.model.")
INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# of reward and retrieval models, of quantised caches and activations: nothing here reads them
UNUSED = re.compile(r"v_head[.]|score[.]|.*custom_text_proj[.]|.*[.](k_scale|v_scale|input_scale)$")
# tables that old saves held and the model computes
COMPUTED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
TIED_HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"
MLX_NAMES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.visual.",
}


def model_name(stored: str) -> str:
    """The model's name of a tensor in any layout:
    model.visual.…, model.language_model.…, lm_head.weight."""
    for wrapper in INNER_WRAPPERS:
        stored = stored.replace(wrapper, "")
    while stored.startswith(WRAPPERS):
        stored = stored.removeprefix(next(w for w in WRAPPERS if stored.startswith(w)))
    if stored.startswith(("model.model.", "model.lm_head.")):  # of a wrapper that holds the model
        stored = stored.removeprefix("model.")
    for mlx, own in MLX_NAMES.items():
        if stored.startswith(mlx):
            return own + stored.removeprefix(mlx)
    if stored.startswith(("visual.", "language_model.")):
        return "model." + stored
    if stored.startswith(("layers.", "embed_tokens.", "norm.")):  # of a language model alone
        return "model.language_model." + stored
    if stored.startswith("model.") and not stored.startswith(
        ("model.visual.", "model.language_model.")
    ):
        return stored.replace("model.", "model.language_model.", 1)
    return stored


def hub_name(name: str) -> str:
    """The inverse: visual.…, model.…, lm_head.weight."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


Decode = Callable[[Sequence[torch.Tensor], torch.dtype | None], torch.Tensor]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what its file's header says of it.

    convert: where a format stores a tensor otherwise than the model holds it, makes the one from
    the other, number by number. decode: where the model's numbers are worked out of what is stored,
    makes them in a type, of this tensor and of `others`; None is float32. In both cases shape and
    type_name are those of the result. form: how the numbers are stored, for people ("Q4_K").
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    type_name: str
    convert: Callable[[torch.Tensor], torch.Tensor] | None = None
    others: tuple[StoredTensor, ...] = ()
    decode: Decode | None = None
    form: str = ""

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.type_name]

    @property
    def itemsize(self) -> int:
        """Bytes of an element as it is stored."""
        return ITEM_SIZES.get(self.type_name, 1)

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether the file's bytes are those of a tensor of this type."""
        return self.dtype == dtype and self.convert is None and self.decode is None

    @property
    def paths(self) -> set[Path]:
        """The files that hold it."""
        return {self.path, *(path for other in self.others for path in other.paths)}

    def get(self, files: Mapping[Path, Any], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor, of open files. dtype: in which it is decoded, where it has to be."""
        tensor: torch.Tensor = files[self.path].get_tensor(self.name)
        if self.decode is not None:
            return self.decode([tensor, *(other.get(files) for other in self.others)], dtype)
        return tensor if self.convert is None else self.convert(tensor)


class Checkpoint:
    """The tensors of a folder under the model's names."""

    def __init__(self, folder: Path) -> None:
        """Open the files and read their headers.
        Raises CheckpointError for what is missing or damaged."""
        self.folder = folder
        self.stored: dict[str, StoredTensor] = {}
        self.unpacked_shapes: dict[str, list[int]] = {}
        self.open_files: dict[Path, Any] = {}
        for path, promised in weight_files(folder).items():
            self.open_files[path] = file = open_weights(path)
            if absent := promised - set(file.keys()):
                raise CheckpointError(
                    f"{path} lacks tensors that {INDEX_FILE} lists: {listed(sorted(absent))}"
                )
            for name in file.keys():  # noqa: SIM118  (a file, not a mapping)
                if (key := model_name(name)).endswith(".weight_shape"):
                    self.unpacked_shapes[key.removesuffix(".weight_shape")] = file.get_tensor(
                        name
                    ).tolist()
                else:
                    self.add(path, name, file.get_slice(name))

    def add(self, path: Path, name: str, header: Any) -> None:
        key = model_name(name)
        if key.endswith(COMPUTED):
            return
        if key in self.stored:
            first = self.stored[key]
            raise CheckpointError(
                f"{first.name} of {first.path.name} and {name} of {path.name} are the same tensor"
            )
        self.stored[key] = StoredTensor(path, name, tuple(header.get_shape()), header.get_dtype())

    def leave_out(self, beginnings: tuple[str, ...]) -> None:
        """Forget the tensors whose names begin so."""
        self.stored = {k: v for k, v in self.stored.items() if not k.startswith(beginnings)}

    def match(self, model: nn.Module) -> None:
        """Raise one TensorError for all that is missing, unexpected, mis-shaped or of another type.

        A head beside tied embeddings is dropped if it is the same matrix, as some saves repeat it;
        tensors that nothing here reads are dropped with a warning.
        """
        wanted = model.state_dict()
        unused = {k: t for k, t in self.stored.items() if k not in wanted and UNUSED.match(k)}
        if unused:
            names = listed(sorted(tensor.name for tensor in unused.values()))
            warnings.warn(f"{self.folder} has tensors that are not used: {names}", stacklevel=4)
            self.leave_out(tuple(unused))
        problems = [f"{hub_name(name)} is missing" for name in wanted.keys() - self.stored.keys()]
        for key, tensor in self.stored.items():
            if key == TIED_HEAD and key not in wanted and EMBEDDINGS in self.stored:
                if not torch.equal(self.read(TIED_HEAD), self.read(EMBEDDINGS)):
                    problems.append(
                        f"{key} differs from the embeddings, to which tie_word_embeddings ties it"
                    )
            elif key not in wanted:
                problems.append(f"{tensor.name} is unexpected")
            elif tensor.shape != (shape := tuple(wanted[key].shape)):
                problems.append(
                    f"{tensor.name} is {list(tensor.shape)}, config.json makes it {list(shape)}"
                )
            elif tensor.type_name not in (
                known := FLOAT_TYPES if wanted[key].is_floating_point() else PACKED_TYPES
            ):
                problems.append(
                    f"{tensor.name} is of type {tensor.type_name}, not of {', '.join(known)}"
                )
        if problems:
            is_packed = any(key.endswith(PACKED) for key in self.stored.keys() - wanted.keys())
            hint = "config.json has no quantization_config for its packed tensors; " * is_packed
            raise TensorError(
                f"{self.folder}: {hint}{len(problems)} tensors do not match: "
                f"{listed(sorted(problems), '; ')}"
            )

    def read(self, key: str) -> torch.Tensor:
        """The tensor, mapped: its pages are read when they are used,
        and shared with the file cache."""
        return self.stored[key].get(self.open_files)

    def read_once(self, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor through a mapping of its own:
        what was read leaves this process's memory with the tensor.

        For tensors that are converted and then dropped. dtype: in which it is decoded, where it has
        to be.
        """
        stored = self.stored[key]
        with ExitStack() as open_files:
            files = {
                path: open_files.enter_context(open_again(path, self.open_files[path]))
                for path in stored.paths
            }
            return stored.get(files, dtype)


def open_weights(path: Path) -> Any:
    """A file of weights, by what it begins with. Raises CheckpointError where it is damaged."""
    return GgufWeights(path) if is_gguf(path) else open_safetensors(path)


def open_again(path: Path, file: Any) -> Any:
    return file.mapped_again() if isinstance(file, GgufWeights) else open_safetensors(path)


def open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {error}; download it again") from None

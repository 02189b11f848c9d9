"""from_pretrained for models: a folder in, a model out, every parameter set exactly once.

The model is built without memory ("meta"). Weights that already have the wanted type stay where
they are, in the mapped file; the others are converted, quantised or moved one layer at a time, so
that no more than one layer exists twice.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.errors import CheckpointError, DependencyError, OptionError, UsageError
from qwen25vl.generation.config import GenerationConfig
from qwen25vl.kernels import native
from qwen25vl.kernels.allocator import map_large_buffers
from qwen25vl.loading.checkpoint import EMBEDDINGS, Checkpoint
from qwen25vl.loading.compressed import expect_packed
from qwen25vl.loading.compressed_config import Group, read_groups
from qwen25vl.loading.ecosystem_options import check_options
from qwen25vl.loading.hub import resolve_folder
from qwen25vl.loading.quantize import (
    TorchAoConfig,
    add_int8_head,
    bytes_beside,
    check_widths,
    covered_linears,
    packed_twin,
    quantise,
)
from qwen25vl.memory import release_free_memory, require_bytes
from qwen25vl.model.attention import IMPLEMENTATIONS, Implementation
from qwen25vl.model.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.model.packed_linear import PackedLinear
from qwen25vl.model.positions import MropeRule

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DeviceMap = str | torch.device | dict[str, str] | None
Progress = Callable[[str, int, int], None]


def load_model(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    torch_dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
    attn_implementation: Implementation = "sdpa",
    quantization_config: TorchAoConfig | str | None = None,
    mrope: MropeRule = "reference",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Qwen2_5_VLForConditionalGeneration:
    """Load a checkpoint folder or a hub name.

    dtype: "auto" (what config.json says), a torch dtype or its name; torch_dtype: its older name.
    device_map: None (the CPU), "auto" (a CUDA device if there is one, else the CPU), a device, or
    {"": device}. attn_implementation: "sdpa", "eager" or "flash_attention_2". quantization_config:
    a TorchAoConfig or a name of one. mrope: "hf5" gives text after videos the positions of
    transformers 5. revision, cache_dir, local_files_only, token: as in huggingface_hub. progress:
    called with ("load", bytes done, total bytes); without it a bar is shown on stderr if that is a
    terminal. options: options of transformers that have no effect here, such as trust_remote_code
    and low_cpu_mem_usage (HARMLESS in loading/ecosystem_options.py lists them); any other raises
    OptionError.

    On a CPU float16 becomes float32, because float16 overflows in this model. Raises UsageError for
    invalid options, DependencyError for a missing package, HubError, CheckpointError (ConfigError,
    TensorError) and OutOfMemoryError.
    """
    check_options(options, load_model)
    device = read_device(device_map)
    scheme = TorchAoConfig.read(quantization_config)
    check_attention(attn_implementation, device)
    check_mrope(mrope)
    wanted = read_dtype(dtype, torch_dtype)
    folder = resolve_folder(
        name_or_folder,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    groups: list[Group] = []
    if config.quantization_config is not None:
        groups = read_groups(config.quantization_config, folder)
        if scheme is not None:
            raise UsageError(
                f"{folder} is already quantised; load it without asking for {scheme.bits} bits"
            )
    map_large_buffers()
    if device.type == "cpu":
        native.announce()
    with torch.inference_mode(
        False
    ):  # else the weights could not be trained, nor changes of them be noticed
        with torch.device("meta"), SkipInitialisation():
            model = Qwen2_5_VLForConditionalGeneration(config, attn_implementation, mrope)
        checkpoint = Checkpoint(folder)
        if groups:
            expect_packed(model, checkpoint, groups)
        checkpoint.match(model)
        chosen = choose_dtype(wanted or stored_dtype(config, checkpoint), device)
        with terminal_bar() as bar:
            fill(model, checkpoint, chosen, device, scheme, progress or bar)
        add_int8_head(model)
    release_free_memory()  # what quantising left on the heap
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


class SkipInitialisation(TorchFunctionMode):
    """Let torch.nn.init do nothing: on "meta" there is nothing to fill, and trying it loads torch's
    compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class AutoModelForImageTextToText:
    """The class that code for transformers uses; it loads a Qwen2_5_VLForConditionalGeneration."""

    from_pretrained = staticmethod(load_model)


def fill(
    model: Qwen2_5_VLForConditionalGeneration,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    scheme: TorchAoConfig | None,
    progress: Progress,
) -> None:
    """Give every parameter and packed weight of a model on "meta" its tensor; quantise what the
    scheme covers.

    What is quantised starts from the checkpoint's own numbers, whatever `dtype` the rest is
    converted to.
    """
    covered = covered_linears(model, scheme) if scheme is not None else {}
    weights = {f"{path}.weight" for path in covered}
    wanted: dict[str, tuple[torch.Tensor, torch.dtype]] = {
        k: (p, dtype) for k, p in model.named_parameters()
    }
    wanted |= {
        key: (tensor, tensor.dtype)
        for key, tensor in model.named_buffers()
        if key in checkpoint.stored
    }
    on_cpu = device.type == "cpu"
    mapped = {
        key for key, (_, kind) in wanted.items() if on_cpu and checkpoint.stored[key].holds(kind)
    } - weights
    needed = sum(
        t.numel() * kind.itemsize
        for key, (t, kind) in wanted.items()
        if key not in mapped | weights
    )
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if scheme is not None:
        check_widths(scheme, covered)
        made = [packed_twin(linear, scheme.of(path)) for path, linear in covered.items()]
        needed += sum(tensor.nbytes for twin in made for tensor in twin.buffers())
        packed += made
    if packed:
        needed += bytes_beside(model, packed, device, dtype)
    require_bytes(needed, device, f"loading {checkpoint.folder}")

    done, total = 0, sum(checkpoint.stored[key].num_bytes for key in wanted)
    for path in [path for path, _ in model.named_modules()]:
        module = model.get_submodule(path)
        for name, old in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            if (key := f"{path}.{name}") not in wanted:
                continue
            if key in mapped:
                tensor = checkpoint.read(key)
            else:
                tensor = checkpoint.read_once(key).to(
                    device, None if key in weights else wanted[key][1]
                )
            setattr(module, name, nn.Parameter(tensor) if isinstance(old, nn.Parameter) else tensor)
            done += checkpoint.stored[key].num_bytes
            progress("load", done, total)
        if scheme is not None and path in covered:
            model.set_submodule(path, quantise(covered.pop(path), scheme.of(path)))


@contextmanager
def terminal_bar(name: str = "Loading") -> Iterator[Progress]:
    """A progress function that draws on a terminal's stderr, if it takes longer than a second."""
    is_dumb = os.environ.get("TERM") == "dumb"  # it cannot write over a line
    with tqdm(
        desc=name, unit="B", unit_scale=True, delay=1, leave=False, disable=is_dumb or None
    ) as bar:

        def report(stage: str, done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def read_dtype(
    dtype: torch.dtype | str, torch_dtype: torch.dtype | str | None
) -> torch.dtype | None:
    """The dtype asked for, under either name; None stands for "auto"."""
    if torch_dtype is None:
        return parse_dtype(dtype)
    if dtype != "auto" and parse_dtype(dtype) != parse_dtype(torch_dtype):
        raise UsageError(
            f"dtype is {dtype} and torch_dtype, its older name, is {torch_dtype}; give only one"
        )
    return parse_dtype(torch_dtype)


def parse_dtype(value: torch.dtype | str) -> torch.dtype | None:
    if value == "auto":
        return None
    dtype = DTYPES.get(str(value).removeprefix("torch."))
    if dtype is None:
        raise UsageError(f"dtype is {value!r}; it must be 'auto' or one of {', '.join(DTYPES)}")
    return dtype


def stored_dtype(config: Qwen2_5_VLConfig, checkpoint: Checkpoint) -> torch.dtype:
    """config.json's dtype, or the weights' own where it names none."""
    if config.dtype is None:
        return checkpoint.stored[EMBEDDINGS].dtype
    if config.dtype not in DTYPES:
        raise CheckpointError(
            f"config.json gives the dtype {config.dtype!r}; give dtype=, one of {', '.join(DTYPES)}"
        )
    return DTYPES[config.dtype]


def choose_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in: never float16 on a CPU."""
    if dtype == torch.float16 and device.type == "cpu":
        warnings.warn(
            "float16 overflows in this model on a CPU: computing in float32 (bfloat16 takes half the memory)",
            stacklevel=3,
        )
        return torch.float32
    return dtype


def read_device(device_map: DeviceMap) -> torch.device:
    """The one device that a device_map names, checked to be there."""
    if isinstance(device_map, dict):
        if [*device_map] != [""]:
            raise UsageError(
                f"device_map splits the model ({device_map}); give one device, several are not supported"
            )
        device_map = device_map[""]
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device("cpu" if device_map is None else device_map)
    except (RuntimeError, TypeError):
        raise UsageError(
            f"unknown device {device_map!r}; give 'auto' or one device such as 'cpu' or 'cuda:0'"
        ) from None
    present = torch.accelerator.current_accelerator()
    if device.type != "cpu" and (present is None or present.type != device.type):
        raise DependencyError(
            f"the device {device} is not available here; choose 'cpu', or install a torch built for it"
        )
    return device


def check_attention(implementation: str, device: torch.device) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise OptionError(
            f"attn_implementation is {implementation!r}; known are {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "flash_attention_2":
        if device.type != "cuda":
            raise DependencyError(
                f"flash_attention_2 needs a CUDA device, not {device}; use attn_implementation='sdpa'"
            )
        if find_spec("flash_attn") is None:
            raise DependencyError(
                "flash_attention_2 needs `pip install flash-attn`; or use attn_implementation='sdpa'"
            )


def check_mrope(rule: str) -> None:
    if rule not in get_args(MropeRule):
        raise OptionError(f"mrope is {rule!r}; known are {', '.join(get_args(MropeRule))}")

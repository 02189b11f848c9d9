"""from_pretrained for models: check and read the ecosystem's options, then load the checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from qwen25vl.ecosystem.torchao_config import TorchAoConfig, read_scheme
from qwen25vl.errors import DependencyError, OptionError, UsageError
from qwen25vl.hub import resolve_folder
from qwen25vl.load_options import check_options
from qwen25vl.loading.load import DTYPES, LoadOptions, Model, load_folder
from qwen25vl.model.attention import IMPLEMENTATIONS, Implementation
from qwen25vl.model.positions import MropeRule
from qwen25vl.progress import Progress

DeviceMap = str | torch.device | dict[str, str] | None


def load_pretrained(
    model_class: type[Model],
    /,
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
) -> Model:
    """Load a checkpoint folder or a hub name.

    dtype: "auto" (what config.json says), a torch dtype or its name; torch_dtype: its older name.
    device_map: None (the CPU), "auto" (a CUDA device if there is one, else the CPU), a device, or
    {"": device}. attn_implementation: "sdpa", "eager" or "flash_attention_2". quantization_config:
    a TorchAoConfig or a name of one. mrope: "hf5" gives text after videos the positions of
    transformers 5. revision, cache_dir, local_files_only, token: as in huggingface_hub. progress:
    called with ("load", bytes done, total bytes); without it a bar is shown on stderr if that is a
    terminal. options: options of transformers that have no effect here, such as trust_remote_code
    and low_cpu_mem_usage (HARMLESS in load_options.py lists them); any other raises
    OptionError.

    On a CPU float16 becomes float32, because float16 overflows in this model. Raises UsageError for
    invalid options, DependencyError for a missing package, HubError, CheckpointError (ConfigError,
    TensorError) and OutOfMemoryError.
    """
    check_options(options, load_pretrained)
    device = read_device(device_map)
    scheme = read_scheme(quantization_config)
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
    how = LoadOptions(wanted, device, attn_implementation, scheme, mrope)
    return load_folder(folder, model_class, how, progress)


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


def read_device(device_map: DeviceMap) -> torch.device:
    """The one device that a device_map names, checked to be there."""
    if isinstance(device_map, dict):
        if [*device_map] != [""]:
            raise UsageError(
                f"device_map splits the model ({device_map}); give one device, several are not "
                "supported"
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
            f"the device {device} is not available here; choose 'cpu', or install a torch built "
            "for it"
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
                f"flash_attention_2 needs a CUDA device, not {device}; use "
                "attn_implementation='sdpa'"
            )
        if find_spec("flash_attn") is None:
            raise DependencyError(
                "flash_attention_2 needs `pip install flash-attn`; or use "
                "attn_implementation='sdpa'"
            )


def check_mrope(rule: str) -> None:
    if rule not in get_args(MropeRule):
        raise OptionError(f"mrope is {rule!r}; known are {', '.join(get_args(MropeRule))}")

"""from_pretrained for models: check and read the ecosystem's options, then load the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig
from qwen25vl.config_values import named_file, read_json
from qwen25vl.ecosystem.torchao_config import Quantisation, read_scheme
from qwen25vl.errors import (
    CheckpointError,
    DependencyError,
    OptionError,
    TensorError,
    UsageError,
)
from qwen25vl.hub import resolve_folder
from qwen25vl.load_options import check_options
from qwen25vl.loading.adapter_base import find_base
from qwen25vl.loading.load import DTYPES, LoadOptions, load_folder
from qwen25vl.model.attention import IMPLEMENTATIONS, Implementation
from qwen25vl.model.positions import MropeRule
from qwen25vl.progress import Progress

DeviceMap = str | torch.device | dict[str, str] | None
LOADING_INFO = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
TEXT_TYPE = Qwen2_5_VLTextConfig.model_type


def load_pretrained(
    model_class: Any,
    /,
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    torch_dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
    attn_implementation: Implementation | Mapping[str, str] | None = None,
    quantization_config: Quantisation = None,
    mrope: MropeRule = "reference",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    config: Qwen2_5_VLConfig | str | Path | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    output_loading_info: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """Load a checkpoint folder or a hub name; of a LoRA adapter its base, with it in force.

    dtype: "auto" (what config.json says), a torch dtype or its name; torch_dtype: its older name.
    device_map: None (the CPU), "auto" (a CUDA device if there is one, else the CPU), a device, or
    {"": device}. attn_implementation: "sdpa" (the default), "eager" or "flash_attention_2", or a
    mapping of "text_config" and "vision_config" to these.
    quantization_config: a TorchAoConfig, one of the other configs of quantisation, or a name.
    mrope: "hf5" gives text after videos the positions of transformers 5. revision, cache_dir,
    local_files_only, token: as in huggingface_hub. config: instead of config.json, a config or the
    name or folder of one. state_dict: tensors that replace the checkpoint's.
    output_loading_info: return (model, info), whose lists of keys are empty because every tensor
    must match. progress: called with ("load", bytes done, total bytes); without it a bar is shown
    on stderr if that is a terminal. options: options of transformers that have no effect here, such
    as trust_remote_code and low_cpu_mem_usage (HARMLESS in load_options.py lists them); any other
    raises OptionError.

    On a CPU float16 becomes float32, because float16 overflows in this model. Raises UsageError for
    invalid options, DependencyError for a missing package, HubError, CheckpointError (ConfigError,
    TensorError) and OutOfMemoryError.
    """
    check_options(options, load_pretrained)
    device, scheme = read_device(device_map), read_scheme(quantization_config)
    check_mrope(mrope)
    wanted = read_dtype(dtype, torch_dtype)
    hub = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    folder, adapter = find_model(model_class, name_or_folder, revision, hub)
    chosen = read_config(model_class, folder, config, str(name_or_folder))
    asked = attn_implementation or chosen._attn_implementation or "sdpa"
    attention = common_attention(asked, device)
    own = chosen, isinstance(config, Qwen2_5_VLConfig)
    how = LoadOptions(wanted, device, attention, scheme, mrope, model_class.left_out, *own)
    model = model_class.part_of(load_folder(folder, model_class.assemble, how, progress))
    if isinstance(asked, Mapping):
        model.set_attn_implementation(asked)
    if state_dict is not None:
        replace_tensors(model, state_dict)
    if adapter is not None:
        model.load_adapter(adapter)
    return (model, {kind: [] for kind in LOADING_INFO}) if output_loading_info else model


def find_model(
    model_class: Any, name_or_folder: str | Path, revision: str | None, hub: Mapping[str, Any]
) -> tuple[Path, Path | None]:
    """The folder of a model, and that of the adapter where one stands in its place.

    Raises UsageError for an adapter where the class is only a part of a model.
    """
    folder, adapter = find_base(resolve_folder(name_or_folder, revision=revision, **hub), **hub)
    if adapter is not None and not hasattr(model_class, "load_adapter"):
        raise UsageError(
            f"{adapter} is an adapter; load it with AutoModelForImageTextToText, or merge it into "
            "its base with qwen25vl.merge_adapter"
        )
    return folder, adapter


def read_config(
    model_class: Any, folder: Path, config: Qwen2_5_VLConfig | str | Path | None, name: str
) -> Qwen2_5_VLConfig:
    """A copy of the config given, or the folder's, with the name under which it was asked for."""
    if isinstance(config, Qwen2_5_VLConfig):
        config.check()
        config = deepcopy(config)
    else:
        config = find_config(model_class, folder, config)
    for named in (config, config.text_config):
        named.name_or_path = name  # type: ignore[misc]
    return config


def find_config(model_class: Any, folder: Path, config: str | Path | None) -> Qwen2_5_VLConfig:
    """The config of a folder. A language model that was saved alone has no other parts."""
    if config is not None:
        folder = resolve_folder(config, files="processor")
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    values = read_json(folder / "config.json")
    if "model.visual." in model_class.left_out and values.get("model_type") == TEXT_TYPE:
        values["model_type"] = Qwen2_5_VLConfig.model_type
    with named_file(folder / "config.json"):
        return Qwen2_5_VLConfig.from_dict(values)


def replace_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a model other numbers. Raises TensorError unless names and shapes are its own."""
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise TensorError(f"state_dict does not fit the model: {error}") from None


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


def common_attention(asked: Any, device: torch.device) -> Implementation:
    """What both towers begin with, where a mapping may name one for each."""
    names = dict(asked) if isinstance(asked, Mapping) else {"": asked}
    for name in names.values():
        check_attention(name, device)
    return cast(Implementation, names.get("", "sdpa"))


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

"""The model that an adapter belongs to, and the adapters of a call by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen25vl.config_values import shown
from qwen25vl.errors import CheckpointError, HubError
from qwen25vl.hub import PROCESSOR_FILES, is_hub_name, resolve_folder
from qwen25vl.loading.adapter import is_adapter
from qwen25vl.loading.adapter_config import read_adapter_config

DEFAULT_NAME = "default"  # PEFT's, of an adapter without a name
PREPARATIONS = ("preprocessor_config.json", "processor_config.json")
Given = str | Path | Mapping[str, str | Path] | None


def find_adapters(given: Given, hub: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of adapters by name; hub: options of `resolve_folder`.

    Raises CheckpointError for one that is not there or holds no adapter, HubError.
    """
    if given is None:
        return {}
    named = given if isinstance(given, Mapping) else {DEFAULT_NAME: given}
    found = {name: resolve_folder(one, **hub, files="adapter") for name, one in named.items()}
    for folder in found.values():
        read_adapter_config(folder)
    return found


def load_adapters(model: Any, adapters: Mapping[str, Path]) -> None:
    """Load adapters beside a model. The first answers, or one that stood in the model's place."""
    first = [*model.adapters.loaded, *adapters][:1]
    for name, folder in adapters.items():
        model.load_adapter(folder, name)
    if first:
        model.set_adapter(first[0])


def find_base(folder: Path, **hub: Any) -> tuple[Path, Path | None]:
    """The folder of a model, and that of the adapter where it is one.

    An adapter alone names its base: a folder, also beside the adapter's own, or a hub name. Where
    a folder holds both, its adapter belongs to its model, as for transformers. Raises
    CheckpointError for a base that is not named or cannot be found.
    """
    if not is_adapter(folder):
        return folder, None
    if (folder / "config.json").is_file():
        return folder, folder
    named = read_adapter_config(folder).base
    way_out = (
        f"{folder} is an adapter; give its base as the model and the folder as the adapter: "
        f'load(BASE, adapter="{folder}"), or -m BASE --adapter {folder}'
    )
    if not named:
        raise CheckpointError(f"adapter_config.json names no base_model_name_or_path: {way_out}")
    for place in (Path(named), folder / named):
        if holds_config(place):
            return place.expanduser(), folder
    if not is_hub_name(named):
        raise CheckpointError(f"its base {shown(named)[1:-1]} is not there: {way_out}")
    try:
        return resolve_folder(named, **{**hub, "revision": None}), folder
    except HubError as error:
        raise HubError(f"{error}: {way_out}") from error


def holds_config(place: Path) -> bool:
    """Whether this is a model's folder; what an adapter names may be no path at all."""
    try:
        return (place.expanduser() / "config.json").is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def choose_processor(base: Path, adapter: Path | None) -> Path:
    """Where the processor of a model comes from: an adapter's folder that has a whole one may have
    tokens or a template which the base lacks."""
    if adapter is None:
        return base
    has_preparation = any((adapter / name).is_file() for name in PREPARATIONS)
    has_tokenizer = (adapter / "tokenizer.json").is_file()
    return adapter if has_preparation and has_tokenizer else base


def processor_files(base: Path, adapter: Path) -> dict[str, Path]:
    """The files of a processor by name."""
    source = choose_processor(base, adapter)
    found = {name: source / name for name in PROCESSOR_FILES if name != "config.json"}
    return {name: path for name, path in found.items() if path.is_file()}

"""The adapters of a model, by name, and which of them is in force.

An adapter is loaded once and stands beside the model: as the same model with other layers where it
changes any (model/adapted.py). So the model itself stays as it is, and each request chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qwen25vl.arguments import nearest_name
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.load_options import check_options, is_harmless
from qwen25vl.loading.adapter import Adapter
from qwen25vl.loading.adapter_config import AdapterConfig
from qwen25vl.loading.adapter_fit import fit_adapter
from qwen25vl.model.adapted_model import Changes, adapted_model

BASE = "__base__"  # PEFT's name for no adapter
AdapterNames = str | Sequence[str | None] | None
HARMLESS: dict[str, tuple[Any, ...]] = {
    "is_trainable": (False,),
    "hotswap": (False, "auto"),
    "adapter_kwargs": ({},),
    "low_cpu_mem_usage": (True, False),
    "device_map": (),
    "max_memory": (),
}


@dataclass
class Loaded:
    """An adapter in use. model: what computes under it; found: the parts of the model that it was
    made for."""

    model: Any
    config: AdapterConfig
    found: list[nn.Module] = field(default_factory=list)


@dataclass
class Adapters:
    """What is loaded, and the name of the one that answers where a request names none."""

    loaded: dict[str, Loaded] = field(default_factory=dict)
    active: str | None = None
    is_enabled: bool = True

    def add(self, model: Any, name: str, adapter: Adapter) -> None:
        """Make a model under an adapter, and put it in force.

        Raises UsageError for a name that is taken, TensorError for tensors that do not fit.
        """
        if not name or name == BASE or name in self.loaded:
            taken = "is already loaded" if name in self.loaded else "cannot be used"
            raise UsageError(f"an adapter of the name {name!r} {taken}; give another name")
        with torch.inference_mode(False), torch.no_grad():
            changes: Changes = fit_adapter(model, adapter)
            made: Any = adapted_model(model, changes)
        made._adapters = None
        self.loaded[name] = Loaded(made, adapter.config, parts_of(model))
        self.active, self.is_enabled = name, True

    @property
    def in_force(self) -> str | None:
        return self.active if self.is_enabled else None

    def find(self, model: Any, name: str | None) -> Any:
        """The model under an adapter; None for the model itself.

        name: None stands for the adapter in force, "__base__" for none. Raises UsageError for an
        unknown name, and where the model's layers are others by now.
        """
        name = self.in_force if name is None else name
        if name is None or name == BASE:
            return None
        loaded = self.loaded[self.check(name)]
        if any(a is not b for a, b in zip(loaded.found, parts_of(model), strict=False)):
            raise UsageError(
                f"layers of the model were replaced after the adapter {name!r} was loaded; delete "
                "it and load it again"
            )
        return loaded.model

    def find_each(self, model: Any, names: AdapterNames, num_prompts: int) -> tuple[Any, ...]:
        """`find` for each prompt of a batch; nothing where all are answered by the model itself."""
        if names is None or isinstance(names, str):
            found = self.find(model, names)
            return () if found is None else (found,) * num_prompts
        return tuple(self.find(model, name) for name in names)

    def choose(self, names: str | list[str]) -> None:
        """Put an adapter in force. Raises UsageError for an unknown one, and for several."""
        self.expect_some()
        several = [names] if isinstance(names, str) else names
        for name in several:
            self.check(name)
        if len(several) != 1:
            raise UsageError(
                f"{len(several)} adapters are to be in force at once; one can be: give one name, "
                "or have PEFT's add_weighted_adapter make one of them"
            )
        self.active, self.is_enabled = several[0], True

    def enable(self, is_enabled: bool) -> None:
        self.expect_some()
        self.is_enabled = is_enabled

    def check(self, name: str) -> str:
        """The name. Raises UsageError where no adapter has it."""
        if name not in self.loaded:
            known = ", ".join(self.loaded) or "none"
            near = nearest_name(name, [*self.loaded])
            hint = f"did you mean {near!r}?" if near else f"loaded: {known}"
            raise UsageError(f"there is no adapter {name!r}; {hint}")
        return name

    def expect_some(self) -> None:
        if not self.loaded:
            raise UsageError("no adapter is loaded; load one with load_adapter(folder, name)")

    def delete(self, names: Sequence[str]) -> None:
        self.expect_some()
        for name in names:
            self.check(name)
        for name in names:
            del self.loaded[name]
        if self.active not in self.loaded:
            self.active = None

    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Do with the adapters' tensors what is done with the model's."""
        for loaded in self.loaded.values():
            nn.Module._apply(loaded.model, fn)


def check_load_options(options: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Raise OptionError unless all options of transformers' `load_adapter` are harmless here."""
    for name, value in options.items():
        if name == "is_trainable" and value:
            raise OptionError(
                "is_trainable is True, but adapters loaded so are for answers only; to train, use "
                "peft.PeftModel.from_pretrained(model, folder, is_trainable=True)"
            )
        if name not in HARMLESS or not is_harmless(value, HARMLESS[name]):
            check_options({name: value}, function)


def parts_of(model: nn.Module) -> list[nn.Module]:
    """All modules below the model itself."""
    return list(model.modules())[1:]

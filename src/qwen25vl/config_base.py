"""What the three configuration objects have in common: how they are changed, read and written.

Code for transformers treats a config as an open object. It sets fields
(`config.use_cache = False`), attaches attributes of its own, and gives nested configs as
dictionaries. All of that works. What makes a model impossible is refused when a config is made or
read, and again when a model is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from qwen25vl.arguments import refuse_unknown
from qwen25vl.config_values import from_text, named_file, read_json, shown
from qwen25vl.errors import CheckpointError, ConfigError
from qwen25vl.load_options import check_options

OUTLINE = "text_config vision_config dtype num_hidden_layers depth hidden_size num_heads vocab_size"
OLD_NAMES = {"torch_dtype": "dtype"}
NOT_WRITTEN = {"name_or_path"}  # with all names that begin with an underscore

C = TypeVar("C", bound="type[ModelConfig]")


class Alias:
    """A second name of a field."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type) -> Any:
        return self if config is None else getattr(config, self.name)

    def __set__(self, config: Any, value: Any) -> None:
        setattr(config, self.name, value)


class ModelConfig:
    """A dataclass of sizes that also keeps attributes which it does not know.

    The class attributes are what code for transformers may ask of any config.
    """

    model_type: ClassVar[str]
    base_config_key: ClassVar[str] = ""  # where a whole config.json nests this one
    name_or_path: ClassVar[str] = ""
    is_encoder_decoder: ClassVar[bool] = False
    output_hidden_states: ClassVar[bool] = False
    output_attentions: ClassVar[bool] = False
    return_dict: ClassVar[bool] = True
    architectures: ClassVar[list[str] | None] = None
    problem_type: ClassVar[str | None] = None
    _attn_implementation: ClassVar[Any] = None

    def __repr__(self) -> str:
        """The values that tell most; `to_dict` gives them all."""
        names = [name for name in OUTLINE.split() if name in vars(self)]
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        return f"{type(self).__name__}({', '.join(shown)}, …)"

    def check(self) -> None:
        """Raise ConfigError for values that make a model impossible. Nested dictionaries that were
        assigned become configs."""
        raise NotImplementedError

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict

    @property
    def torch_dtype(self) -> Any:
        """`dtype` as torch's object, or None."""
        name = dtype_name(getattr(self, "dtype", None))
        if name is None:
            return None
        import torch

        return getattr(torch, name)

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = dtype_name(value)

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> ModelConfig:
        """The part that describes the language model."""
        return self

    @classmethod
    def read_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values under the names that the fields have here."""
        read: dict[str, Any] = {}
        for name, value in values.items():
            known = vars(cls).get(name)
            target = known.name if isinstance(known, Alias) else OLD_NAMES.get(name, name)
            if read.get(target) is None or name == target:
                read[target] = value
        return read

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """Read what `to_dict` wrote, or config.json: a null stands for the default.

        changes: attributes to set, as in `update`. Raises ConfigError for another model and for
        values that make a model impossible.
        """
        try:
            given = {n: v for n, v in values.items() if v is not None and not n.startswith("_")}
            config = cls(**given)
        except TypeError as error:
            raise ConfigError(f"config.json has a value of the wrong type: {error}") from None
        if changes:
            config.update(changes)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The fields as config.json has them, and whatever was attached."""
        raise NotImplementedError

    def fields_of(self) -> dict[str, Any]:
        """Fields and attached values, except those that are not written."""
        written = {
            name: value
            for name, value in vars(self).items()
            if name not in NOT_WRITTEN and not name.startswith("_")
        }
        return {n: dtype_name(v) if n == "dtype" else v for n, v in written.items()}

    def update(self, values: Mapping[str, Any]) -> None:
        """Set attributes. A dictionary for a nested config changes that config.
        Raises OptionError for a name that the config does not have."""
        for name, value in values.items():
            if not self.has(name):
                refuse_unknown([name], [*self])
            nested = getattr(self, name)
            if isinstance(nested, ModelConfig) and isinstance(value, Mapping):
                nested.update(value)
            else:
                setattr(self, name, deepcopy(value))
        self.check()

    def has(self, name: str) -> bool:
        """Whether there is an attribute of this name that may be set."""
        return hasattr(self, name) and not callable(getattr(self, name))

    def __iter__(self) -> Iterator[str]:
        """The names of all attributes."""
        known = [name for name in vars(ModelConfig)["__annotations__"] if name != "base_config_key"]
        yield from {**dict.fromkeys(known), **vars(self)}

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from the defaults, with the type of the model."""
        default = type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "model_type" or name not in default or value != default[name]
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        with named_file(Path(json_file)):
            return cls.from_dict(read_json(Path(json_file)))

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        return_unused_kwargs: bool = False,
        **changes: Any,
    ) -> Any:
        """Read config.json of a checkpoint folder or a hub name; the other options as in
        `load_model`.

        changes: attributes to set, as in `update`. With return_unused_kwargs the result is
        (config, those that the config does not have); otherwise these raise OptionError.
        """
        from qwen25vl.hub import resolve_folder

        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
        folder = resolve_folder(
            name_or_folder, local_files_only=local_files_only, files="processor", **hub
        )
        if not (path := folder / "config.json").exists():
            raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
        values = read_json(path)
        with named_file(path):
            config = cls.from_dict(nested_values(values, cls))
        config.name_or_path = str(name_or_folder)  # type: ignore[misc]
        known = {name: value for name, value in changes.items() if config.has(name)}
        others = {name: value for name, value in changes.items() if name not in known}
        config.update(known)
        if return_unused_kwargs:
            return config, others
        check_options(others, cls.from_pretrained)
        return config

    def save_pretrained(self, save_directory: str | Path, *, push_to_hub: bool = False) -> None:
        """Write `save_directory`/config.json."""
        check_options({"push_to_hub": push_to_hub}, self.save_pretrained)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(save_directory) / "config.json", use_diff=False)


def nested_values(values: dict[str, Any], config_class: type[ModelConfig]) -> dict[str, Any]:
    """The part of a whole config.json that describes one tower; of its own file everything."""
    nested = values.get(config_class.base_config_key)
    if not isinstance(nested, Mapping):
        return values
    return {**values, **nested} if config_class.base_config_key == "text_config" else dict(nested)


def keep_others(config_class: C) -> C:
    """Class decorator for a config: keywords that are no fields become attributes, before the
    fields are set. Those that would hide a method or property are dropped."""
    init: Callable[..., None] = config_class.__init__
    kinds = {field.name: str(field.type) for field in fields(config_class)}  # type: ignore[arg-type]
    names = [*kinds]

    @wraps(init)
    def construct(self: ModelConfig, *args: Any, **values: Any) -> None:
        values = type(self).read_names({**dict(zip(names, args, strict=False)), **values})
        values = {name: from_text(value, kinds.get(name, "")) for name, value in values.items()}
        for name in [name for name in values if name not in names]:
            value = values.pop(name)
            if can_be_attached(type(self), name):
                vars(self)[name] = value
        init(self, **values)

    config_class.__init__ = construct  # type: ignore[method-assign, assignment]
    return config_class


def can_be_attached(config_class: type, name: str) -> bool:
    known = getattr(config_class, name, None)
    return not (callable(known) or isinstance(known, property) or name.startswith("__"))


def dtype_name(value: Any) -> str | None:
    """A torch dtype, or its name with or without "torch.", as its name."""
    return None if value is None else str(value).removeprefix("torch.")


def expect_model_type(config: ModelConfig, *others: str) -> None:
    """Drop a `model_type` that was given, if it names this model. Raises ConfigError for another
    one."""
    given = vars(config).pop("model_type", config.model_type)
    if given not in (config.model_type, *others):
        raise ConfigError(
            f"model_type is {shown(given)}; this package runs {config.model_type!r} only"
        )

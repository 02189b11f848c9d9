"""adapter_config.json: what PEFT says of a LoRA adapter, checked key by key.

Keys that only say how the adapter was trained are passed over. One that changes the mathematics is
read, or refused by name. Which layers are changed is told by the tensors, not by target_modules,
whose names are those of the program that trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen25vl.config_values import read_json
from qwen25vl.errors import CheckpointError
from qwen25vl.loading.formats.config_reader import ConfigReader, Supported, is_one_of

CONFIG_FILE = "adapter_config.json"
LORA = "LORA"
# of how the adapter was trained, or for which program
TRAINING = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type", "velora_config",
)  # fmt: skip
READ = (
    "alpha_pattern", "bias", "ensure_weight_tying", "init_lora_weights", "lora_alpha", "lora_bias",
    "modules_to_save", "peft_type", "r", "rank_pattern", "trainable_token_indices", "use_dora",
    "use_rslora",
)  # fmt: skip
UNCHANGED_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
FLAGS = ("use_rslora", "use_dora", "lora_bias", "ensure_weight_tying")


@dataclass(frozen=True)
class AdapterConfig:
    """rank, alpha, and by patterns for the end of a layer's path. token_indices: the tokens with
    new rows, by the end of a path, or for the embeddings under "". ties_head: whether embeddings
    and head were trained as one. bias: "none", "all" or "lora_only". saved: modules that are stored
    as a whole, by the end of their path. base: the name of the model that it belongs to."""

    rank: int
    alpha: float
    rank_pattern: dict[str, Any] = field(default_factory=dict)
    alpha_pattern: dict[str, Any] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    ties_head: bool = False
    bias: str = "none"
    saved: tuple[str, ...] = ()
    token_indices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    base: str = ""

    def rank_of(self, path: str) -> int:
        return int(by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        """α/r, or with rsLoRA α/√r (arXiv 2312.03732)."""
        rank = self.rank_of(path)
        alpha = by_pattern(self.alpha_pattern, path, self.alpha)
        return float(alpha / (math.sqrt(rank) if self.use_rslora else rank))

    def tokens_of(self, path: str) -> tuple[int, ...] | None:
        """The tokens that have new rows in an embedding; None where it has none."""
        for end, tokens in self.token_indices.items():
            if not end or path == end or path.endswith(f".{end}"):
                return tokens
        return None


def by_pattern(patterns: Mapping[str, Any], path: str, default: float) -> float:
    """The value of the first pattern that fits the end of a path, as PEFT chooses it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return float(value)
    return default


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read a folder's file. Raises CheckpointError that names the first key which is not
    supported."""
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} is not a LoRA adapter: it has no {CONFIG_FILE}")
    reader = ConfigReader(folder)
    values = read_json(folder / CONFIG_FILE)
    kind = values.get("peft_type")
    if str(kind).rpartition(".")[2].upper() != LORA:
        raise refuse(reader, "peft_type", kind, f"only {LORA!r} adapters are read; merge it into")
    supported: Supported = dict.fromkeys((*READ, *TRAINING))
    for key, value in values.items():
        if key not in supported and not is_one_of(value, (None, False, {}, [])):
            what = "it changes what is computed and is not supported; merge the adapter into"
            raise refuse(reader, key, value, what)
    check_start(reader, values.get("init_lora_weights"))
    for key in FLAGS:
        if not is_one_of(values.get(key), (None, True, False)):
            raise reader.refuse(f"{CONFIG_FILE}: {key}", values[key], "expected true or false")
    if not is_one_of(values.get("bias"), (None, "none", "all", "lora_only")):
        wanted = "expected 'none', 'all' or 'lora_only'"
        raise reader.refuse(f"{CONFIG_FILE}: bias", values["bias"], wanted)
    rank = read_number(reader, "r", values.get("r", 8))
    return AdapterConfig(
        rank=int(rank),
        alpha=read_number(reader, "lora_alpha", values.get("lora_alpha", 8)),
        rank_pattern=read_pattern(reader, "rank_pattern", values.get("rank_pattern")),
        alpha_pattern=read_pattern(reader, "alpha_pattern", values.get("alpha_pattern")),
        use_rslora=bool(values.get("use_rslora")),
        use_dora=bool(values.get("use_dora")),
        lora_bias=bool(values.get("lora_bias")),
        ties_head=bool(values.get("ensure_weight_tying")),
        bias=values.get("bias") or "none",
        saved=reader.read_names(
            values.get("modules_to_save") or [], f"{CONFIG_FILE}: modules_to_save"
        ),
        token_indices=read_tokens(reader, values.get("trainable_token_indices")),
        base=str(values.get("base_model_name_or_path") or ""),
    )


def refuse(reader: ConfigReader, key: str, value: object, what: str) -> CheckpointError:
    way_out = f"{what} its base with the program that trained it, and load the result"
    return reader.refuse(f"{CONFIG_FILE}: {key}", value, way_out)


def check_start(reader: ConfigReader, start: object) -> None:
    """Refuse an adapter whose training began by changing the base (PiSSA, OLoRA, CorDA, LoftQ)."""
    if is_one_of(start, UNCHANGED_BASE):
        return
    raise reader.refuse(
        f"{CONFIG_FILE}: init_lora_weights",
        start,
        "training began by changing the base, so the adapter does not fit the original one; save "
        "it with PEFT's path_initial_model_for_weight_conversion, or, if your base is the one that "
        "training went on from, set the key to true",
    )


def read_number(reader: ConfigReader, key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf or (key == "r" and value != int(value)):
        raise reader.refuse(f"{CONFIG_FILE}: {key}", value, "it must be a number above 0")
    return float(value)


def read_pattern(reader: ConfigReader, key: str, values: object) -> dict[str, Any]:
    read = reader.read_object(values or {}, f"{CONFIG_FILE}: {key}")
    for pattern, value in read.items():
        read_number(reader, f"{key}.{pattern}", value)
        try:
            re.compile(pattern)
        except re.error as error:
            wanted = f"{pattern!r} is not a regular expression: {error}"
            raise reader.refuse(f"{CONFIG_FILE}: {key}", values, wanted) from None
    return read


def read_tokens(reader: ConfigReader, values: Any) -> dict[str, tuple[int, ...]]:
    lists = values if isinstance(values, Mapping) else {"": values or []}
    for tokens in lists.values():
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            wanted = "it must be a list of token ids, or one for each embedding"
            raise reader.refuse(f"{CONFIG_FILE}: trainable_token_indices", values, wanted)
    return {end: tuple(tokens) for end, tokens in lists.items() if tokens}

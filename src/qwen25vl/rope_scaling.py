"""How the text rotary embedding is scaled: `rope_scaling` of config.json, or `rope_parameters`, its
newer name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from qwen25vl.config_values import build, check_numbers, from_text, shown
from qwen25vl.errors import ConfigError


@dataclass(frozen=True)
class RopeScaling(Mapping[str, Any]):
    """How the text rotary embedding mixes and stretches positions; also readable as the mapping
    that config.json has.

    `mrope_section` counts the rotary frequencies that follow time, row and column; `type` is
    "mrope" (no stretching), "linear" or "yarn" (arXiv 2309.00071) with `factor` over
    `original_max_position_embeddings`. What cos and sin grow by is `attention_factor`, or follows
    from mscale and mscale_all_dim, or from the factor alone.
    """

    type: str = "mrope"
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.type not in ("mrope", "linear", "yarn"):
            raise ConfigError(
                f"rope_scaling type {shown(self.type)} is unknown; expected mrope, linear or yarn"
            )
        section: object = self.mrope_section
        if not isinstance(section, tuple) or [type(n) for n in section] != [int] * 3:
            raise ConfigError(f"mrope_section {shown(section)} must be three counts")
        if min(self.mrope_section) < 0:
            raise ConfigError(f"mrope_section {shown(section)} must be three counts")
        check_numbers(self, NUMBERS)
        if not self.factor >= 1:
            raise ConfigError(f"rope_scaling factor {self.factor!r} must be a number of at least 1")
        context = self.original_max_position_embeddings
        if context is not None and not 0 < context < 2**53:
            wanted = "must be a number of tokens"
            raise ConfigError(f"original_max_position_embeddings {shown(context)} {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """`type`, `mrope_section`, and what differs from the defaults."""
        changed = {name: value for name, value in vars(self).items() if value != DEFAULTS[name]}
        return changed | {"type": self.type, "mrope_section": list(self.mrope_section)}

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())


NAMES = ("rope_type",)
NUMBERS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
           "attention_factor", "mscale", "mscale_all_dim")  # fmt: skip
OF_OTHER_KINDS = ("low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "finetuned")
DEFAULTS = {field.name: field.default for field in fields(RopeScaling)}


def read_rope_scaling(values: Mapping[str, Any]) -> RopeScaling:
    """Read config.json's form. Raises ConfigError for what is unknown or would change positions."""
    if isinstance(values, RopeScaling):
        return values
    kind = values.get("type") or values.get("rope_type") or "mrope"
    read = {**values, "type": "mrope" if kind == "default" else kind}
    if isinstance(section := values.get("mrope_section"), list | tuple):
        read["mrope_section"] = tuple(section)
    unknown = [key for key, value in values.items() if not is_known(key, value)]
    if unknown := sorted(unknown):
        raise ConfigError(
            f"rope_scaling has {', '.join(unknown)}, which would change positions and is not "
            "supported"
        )
    kinds = {field.name: str(field.type) for field in fields(RopeScaling)}
    return build(RopeScaling, {k: from_text(v, kinds.get(k, "")) for k, v in read.items()})


def is_known(key: str, value: Any) -> bool:
    """Whether a key is read, or changes nothing: it asks for nothing, or only kinds of scaling that
    are not supported read it."""
    if key == "partial_rotary_factor":
        return value in (None, 1)
    return key in (*DEFAULTS, *NAMES) or key in OF_OTHER_KINDS or value in (None, False, {}, [])

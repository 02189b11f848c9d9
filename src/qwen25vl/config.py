"""The three configuration objects: frozen, read from config.json, written back. No torch.

On the hub config.json is flat: the text fields stand at the top level beside `vision_config`. Newer
saves nest them in `text_config` and call `rope_scaling` `rope_parameters`. Both forms are read; the
hub's is written. Missing keys take the values of the released family, not the class defaults of
`transformers`, which are wrong for it (vision width 3584, four tokens per second, eps 1e-5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qwen25vl.config_values import build, check_fields, read_json, read_mapping, require_multiple
from qwen25vl.errors import CheckpointError, ConfigError

MODEL_TYPE = "qwen2_5_vl"
OUTLINE = "text_config vision_config dtype num_hidden_layers depth hidden_size num_heads vocab_size"


def outline(config: Any) -> str:
    """A short repr: the values that tell most; `to_dict` gives them all."""
    shown = [
        f"{name}={getattr(config, name)!r}" for name in OUTLINE.split() if hasattr(config, name)
    ]
    return f"{type(config).__name__}({', '.join(shown)}, …)"


@dataclass(frozen=True)
class RopeScaling:
    """How the text rotary embedding mixes and stretches positions.

    `mrope_section` counts the rotary frequencies that follow time, row and column; `type` is
    "mrope" (no stretching), "linear" or "yarn" (arXiv 2309.00071) with `factor` over
    `original_max_position_embeddings`.
    """

    type: str = "mrope"
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.type not in ("mrope", "linear", "yarn"):
            raise ConfigError(
                f"rope_scaling type {self.type!r} is unknown; expected mrope, linear or yarn"
            )
        if len(self.mrope_section) != 3 or not all(
            isinstance(n, int) and n >= 0 for n in self.mrope_section
        ):
            raise ConfigError(f"mrope_section {list(self.mrope_section)} must be three counts")
        if not isinstance(self.factor, int | float) or not self.factor >= 1:
            raise ConfigError(f"rope_scaling factor {self.factor!r} must be a number of at least 1")


@dataclass(frozen=True)
class Qwen2_5_VLTextConfig:
    """The language model's sizes, under config.json's names."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    hidden_act: str = "silu"
    max_position_embeddings: int = 128000
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    use_sliding_window: bool = False
    sliding_window: int | None = 32768
    max_window_layers: int = 70
    attention_dropout: float = 0.0
    use_cache: bool = True
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, exempt={"max_window_layers"}, positive={"rope_theta", "rms_norm_eps"})
        require_multiple(self, "hidden_size", "num_attention_heads")
        require_multiple(self, "num_attention_heads", "num_key_value_heads")
        if self.use_sliding_window:
            raise ConfigError(
                "use_sliding_window is true; no released Qwen2.5-VL uses it and it is not supported"
            )
        if 2 * sum(self.rope_scaling.mrope_section) != self.head_dim:
            section = list(self.rope_scaling.mrope_section)
            half = f"half a head of {self.head_dim} is {self.head_dim // 2}"
            raise ConfigError(f"mrope_section {section} sums to {sum(section)}, but {half}")

    __repr__ = outline

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Qwen2_5_VLTextConfig:
        """Read the text fields, flat or from `text_config`;
        rope_scaling may be called rope_parameters."""
        rope = {**read_mapping(values, "rope_scaling"), **read_mapping(values, "rope_parameters")}
        theta = rope.pop("rope_theta", values.get("rope_theta"))
        return build(cls, {**values, "rope_theta": theta, "rope_scaling": read_rope_scaling(rope)})

    def to_dict(self) -> dict[str, Any]:
        """The fields as config.json has them."""
        scaling = self.rope_scaling
        changed = {
            key: value
            for key, value in vars(scaling).items()
            if value != getattr(RopeScaling(), key)
        }
        rope = changed | {"type": scaling.type, "mrope_section": list(scaling.mrope_section)}
        return {**vars(self), "rope_scaling": rope}


@dataclass(frozen=True)
class Qwen2_5_VLVisionConfig:
    """The vision encoder's sizes, under config.json's names. `window_size` is in pixels."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    hidden_act: str = "silu"
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    out_hidden_size: int = 2048
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: float = 2
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self, positive={"tokens_per_second"})
        require_multiple(self, "hidden_size", "num_heads")
        if self.head_dim % 4:
            raise ConfigError(
                f"vision head size {self.head_dim} must divide by 4 (rows and columns, "
                "half-rotated)"
            )
        if self.window_size % (token := self.patch_size * self.spatial_merge_size):
            raise ConfigError(
                f"window_size {self.window_size} must be a multiple of a visual token's side, "
                f"{token}"
            )
        if unreachable := [i for i in self.fullatt_block_indexes if not 0 <= i < self.depth]:
            raise ConfigError(
                f"fullatt_block_indexes {unreachable} lie outside the {self.depth} blocks"
            )

    __repr__ = outline

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Qwen2_5_VLVisionConfig:
        """Read `vision_config`; the official files call in_channels in_chans."""
        read = {"in_channels": values.get("in_chans"), **values}
        if isinstance(blocks := values.get("fullatt_block_indexes"), list | tuple):
            read["fullatt_block_indexes"] = tuple(int(i) for i in blocks)
        return build(cls, read)

    def to_dict(self) -> dict[str, Any]:
        """The fields as config.json has them."""
        names = {"model_type": MODEL_TYPE, "in_chans": self.in_channels}
        return {**vars(self), **names, "fullatt_block_indexes": list(self.fullatt_block_indexes)}

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: channels × frames × rows × columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_tokens(self) -> int:
        """Visual tokens along one side of a window."""
        return self.window_size // self.patch_size // self.spatial_merge_size


@dataclass(frozen=True)
class Qwen2_5_VLConfig:
    """A whole checkpoint: both towers and the ids that join them."""

    text_config: Qwen2_5_VLTextConfig = field(default_factory=Qwen2_5_VLTextConfig)
    vision_config: Qwen2_5_VLVisionConfig = field(default_factory=Qwen2_5_VLVisionConfig)
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False
    dtype: str | None = None
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        vision, text = self.vision_config.out_hidden_size, self.text_config.hidden_size
        if vision != text:
            raise ConfigError(
                f"vision out_hidden_size {vision} must equal the text hidden_size {text}"
            )

    __repr__ = outline

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Qwen2_5_VLConfig:
        """Read the flat or the nested form.
        Raises ConfigError for another model or impossible values."""
        if values.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise ConfigError(
                f"model_type is {values['model_type']!r}; this package runs {MODEL_TYPE!r} only"
            )
        nested = read_mapping(values, "text_config")
        text = Qwen2_5_VLTextConfig.from_dict({**values, **nested})
        vision = {"out_hidden_size": text.hidden_size, **read_mapping(values, "vision_config")}
        dtypes = [
            source.get(name) for source in (nested, values) for name in ("dtype", "torch_dtype")
        ]
        dtype = next((str(value).removeprefix("torch.") for value in dtypes if value), None)
        tied = values.get("tie_word_embeddings", nested.get("tie_word_embeddings"))
        towers = {"text_config": text, "vision_config": Qwen2_5_VLVisionConfig.from_dict(vision)}
        return build(cls, {**values, **towers, "dtype": dtype, "tie_word_embeddings": tied})

    def to_dict(self) -> dict[str, Any]:
        """The hub's flat form; `from_dict` of it gives an equal object."""
        own = {
            key: value
            for key, value in vars(self).items()
            if not key.endswith("_config") and value is not None
        }
        if self.quantization_config is not None:
            own["quantization_config"] = self.quantization_config
        if self.dtype is not None:
            own["torch_dtype"] = own.pop("dtype")
        architecture = {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": MODEL_TYPE,
        }
        return (
            architecture
            | self.text_config.to_dict()
            | own
            | {"vision_config": self.vision_config.to_dict()}
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> Qwen2_5_VLConfig:
        """Read config.json of a checkpoint folder or a hub name; options as in `load_model`."""
        from qwen25vl.hub import resolve_folder
        from qwen25vl.load_options import check_options

        check_options(options, cls.from_pretrained)
        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
        folder = resolve_folder(
            name_or_folder, local_files_only=local_files_only, files="processor", **hub
        )
        if not (path := folder / "config.json").exists():
            raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
        return cls.from_dict(read_json(path))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (Path(folder) / "config.json").write_text(text + "\n", encoding="utf-8")


def read_rope_scaling(values: Mapping[str, Any]) -> RopeScaling:
    kind = values.get("type") or values.get("rope_type") or "mrope"
    read = {**values, "type": "mrope" if kind == "default" else kind}
    if isinstance(section := values.get("mrope_section"), list | tuple):
        read["mrope_section"] = tuple(section)
    if unknown := sorted(values.keys() - {f.name for f in fields(RopeScaling)} - {"rope_type"}):
        raise ConfigError(
            f"rope_scaling has {', '.join(unknown)}, which would change positions and is not "
            "supported"
        )
    return build(RopeScaling, read)

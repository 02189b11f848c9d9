"""The three configuration objects: frozen, read from config.json, written back. No torch.

On the hub config.json is flat: the text fields stand at the top level beside `vision_config`. Newer saves nest
them in `text_config` and call `rope_scaling` `rope_parameters`. Both forms are read; the hub's is written.
Missing keys take the values of the released family, not the class defaults of `transformers`, which are wrong
for it (vision width 3584, four tokens per second, eps 1e-5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from qwen25vl.errors import CheckpointError, ConfigError

MODEL_TYPE = "qwen2_5_vl"
T = TypeVar("T")


@dataclass(frozen=True)
class RopeScaling:
    """How the text rotary embedding mixes and stretches positions.

    `mrope_section` counts the rotary frequencies that follow time, row and column; `type` is "mrope" (no
    stretching), "linear" or "yarn" (arXiv 2309.00071) with `factor` over `original_max_position_embeddings`.
    """

    type: str = "mrope"
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.type not in ("mrope", "linear", "yarn"):
            raise ConfigError(f"rope_scaling type {self.type!r} is unknown; expected mrope, linear or yarn")
        if len(self.mrope_section) != 3 or any(n < 0 for n in self.mrope_section):
            raise ConfigError(f"mrope_section {list(self.mrope_section)} must be three counts")
        if self.factor < 1:
            raise ConfigError(f"rope_scaling factor {self.factor} must be at least 1")


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
        require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                         "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rope_theta",
                         "rms_norm_eps")  # fmt: skip
        require_multiple(self, "hidden_size", "num_attention_heads")
        require_multiple(self, "num_attention_heads", "num_key_value_heads")
        require_silu(self.hidden_act)
        if self.use_sliding_window:
            raise ConfigError("use_sliding_window is true; no released Qwen2.5-VL uses it and it is not supported")
        if 2 * sum(self.rope_scaling.mrope_section) != self.head_dim:
            raise ConfigError(
                f"mrope_section {list(self.rope_scaling.mrope_section)} sums to "
                f"{sum(self.rope_scaling.mrope_section)}, but half a head of {self.head_dim} is {self.head_dim // 2}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


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
        require_positive(self, "depth", "hidden_size", "intermediate_size", "num_heads", "in_channels", "patch_size",
                         "temporal_patch_size", "spatial_merge_size", "window_size", "out_hidden_size",
                         "tokens_per_second")  # fmt: skip
        require_multiple(self, "hidden_size", "num_heads")
        require_silu(self.hidden_act)
        if self.head_dim % 4:
            raise ConfigError(f"vision head size {self.head_dim} must divide by 4 (rows and columns, half-rotated)")
        if self.window_size % (self.patch_size * self.spatial_merge_size):
            raise ConfigError(
                f"window_size {self.window_size} must be a multiple of patch_size × spatial_merge_size "
                f"= {self.patch_size * self.spatial_merge_size}"
            )
        unreachable = [i for i in self.fullatt_block_indexes if not 0 <= i < self.depth]
        if unreachable:
            raise ConfigError(f"fullatt_block_indexes {unreachable} lie outside the {self.depth} blocks")

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
    dtype: str = "bfloat16"
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.vision_config.out_hidden_size != self.text_config.hidden_size:
            raise ConfigError(
                f"vision out_hidden_size {self.vision_config.out_hidden_size} must equal the text hidden_size "
                f"{self.text_config.hidden_size}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Qwen2_5_VLConfig:
        """Read the flat or the nested form. Raises ConfigError for another model or impossible values."""
        if values.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise ConfigError(f"model_type is {values['model_type']!r}; this package runs {MODEL_TYPE!r} only")
        text = {**values, **(values.get("text_config") or {})}
        rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
        text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta", 1e6))
        text["rope_scaling"] = read_rope_scaling(rope)
        text_config = build(Qwen2_5_VLTextConfig, text)

        vision = dict(values.get("vision_config") or {})
        vision["in_channels"] = vision.get("in_channels") or vision.get("in_chans") or 3
        vision.setdefault("out_hidden_size", text_config.hidden_size)
        if "fullatt_block_indexes" in vision:
            vision["fullatt_block_indexes"] = tuple(int(i) for i in vision["fullatt_block_indexes"])
        top = {key: values[key] for key in values.keys() - {"text_config", "vision_config"}}
        top["tie_word_embeddings"] = bool(
            values.get("tie_word_embeddings") or (values.get("text_config") or {}).get("tie_word_embeddings", False)
        )
        top["dtype"] = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16").removeprefix("torch.")
        return build(cls, top | {"text_config": text_config, "vision_config": build(Qwen2_5_VLVisionConfig, vision)})

    def to_dict(self) -> dict[str, Any]:
        """The hub's flat form; `from_dict` of it gives an equal object."""
        text = {f.name: getattr(self.text_config, f.name) for f in fields(self.text_config)}
        scaling = self.text_config.rope_scaling
        changed = {key: value for key, value in vars(scaling).items() if value != getattr(RopeScaling(), key)}
        text["rope_scaling"] = changed | {"type": scaling.type, "mrope_section": list(scaling.mrope_section)}
        vision = {f.name: getattr(self.vision_config, f.name) for f in fields(self.vision_config)}
        vision |= {
            "model_type": MODEL_TYPE,
            "in_chans": self.vision_config.in_channels,
            "fullatt_block_indexes": list(self.vision_config.fullatt_block_indexes),
        }
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("text_config", "vision_config")}
        own["torch_dtype"] = own.pop("dtype")
        if own["quantization_config"] is None:
            del own["quantization_config"]
        architecture = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": MODEL_TYPE}
        return architecture | text | own | {"vision_config": vision}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Qwen2_5_VLConfig:
        """Read `folder`/config.json."""
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is no checkpoint: it has no config.json") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} can not be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must hold one JSON object")
        return cls.from_dict(values)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (Path(folder) / "config.json").write_text(text + "\n", encoding="utf-8")


def read_rope_scaling(values: Mapping[str, Any]) -> RopeScaling:
    kind = values.get("type") or values.get("rope_type") or "mrope"
    known = {f.name for f in fields(RopeScaling)} - {"type", "mrope_section"}
    rest = {key: values[key] for key in known & values.keys()}
    section = tuple(values.get("mrope_section") or (16, 24, 24))
    return RopeScaling(type="mrope" if kind == "default" else kind, mrope_section=section, **rest)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass from those of the values that are its fields; a null takes the default."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    try:
        return cls(**{key: value for key, value in values.items() if key in names and value is not None})
    except TypeError as error:
        raise ConfigError(f"config.json has a value of the wrong type: {error}") from None


def require_positive(config: object, *names: str) -> None:
    for name in names:
        if not isinstance(value := getattr(config, name), int | float) or value <= 0:
            raise ConfigError(f"{name} is {value!r}; it must be a number above 0")


def require_multiple(config: object, name: str, divisor_name: str) -> None:
    value, divisor = getattr(config, name), getattr(config, divisor_name)
    if value % divisor:
        raise ConfigError(f"{name} {value} does not divide by {divisor_name} {divisor}")


def require_silu(activation: str) -> None:
    if activation != "silu":
        raise ConfigError(f"hidden_act is {activation!r}; Qwen2.5-VL uses 'silu'")

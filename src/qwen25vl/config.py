"""The three configuration objects: read from config.json, changed, written back. No torch.

On the hub config.json is flat: the text fields stand at the top level beside `vision_config`. Newer
saves nest them in `text_config` and call `rope_scaling` `rope_parameters`. Both forms are read; the
hub's is written. Missing keys take the values of the released family, not the class defaults of
`transformers`, which are wrong for it (vision width 3584, four tokens per second, eps 1e-5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from qwen25vl.config_base import Alias, ModelConfig, dtype_name, expect_model_type, keep_others
from qwen25vl.config_values import (
    check_fields,
    check_numbers,
    check_token_ids,
    read_mapping,
    require_multiple,
    shown,
)
from qwen25vl.errors import ConfigError
from qwen25vl.rope_scaling import RopeScaling, read_rope_scaling

MODEL_TYPE = "qwen2_5_vl"
FAMILY_FULL_BLOCKS = (7, 15, 23, 31)


@keep_others
@dataclass(repr=False)
class Qwen2_5_VLTextConfig(ModelConfig):
    """The language model's sizes, under config.json's names."""

    model_type: ClassVar[str] = "qwen2_5_vl_text"
    base_config_key: ClassVar[str] = "text_config"

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
        self.check()

    @classmethod
    def read_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The text fields, flat or nested; rope_scaling may be called rope_parameters."""
        if "vision_config" in values:
            values = {name: values[name] for name in TEXT_NAMES if name in values}
        values = super().read_names(values)
        newer = read_mapping(values, "rope_parameters")
        rope = {**read_mapping(values, "rope_scaling"), **newer}
        theta = rope.pop("rope_theta", None)
        given = {name: value for name, value in values.items() if name != "rope_parameters"}
        if theta is not None:
            given["rope_theta"] = theta
        return given | ({"rope_scaling": rope} if rope else {})

    def check(self) -> None:
        expect_model_type(self, MODEL_TYPE)
        self.rope_scaling = read_rope_scaling(self.rope_scaling)
        key_heads: int | None = self.num_key_value_heads
        self.num_key_value_heads = self.num_attention_heads if key_heads is None else key_heads
        check_fields(self, exempt={"max_window_layers"}, positive={"rope_theta", "rms_norm_eps"})
        require_multiple(self, "hidden_size", "num_attention_heads")
        require_multiple(self, "num_attention_heads", "num_key_value_heads")
        check_numbers(self, ["initializer_range", "attention_dropout"])
        check_token_ids(self, ["bos_token_id", "pad_token_id"])
        check_token_ids(self, ["eos_token_id"], may_be_list=True)
        if self.use_sliding_window:
            raise ConfigError(
                "use_sliding_window is true; no released Qwen2.5-VL uses it and it is not supported"
            )
        if 2 * sum(self.rope_scaling.mrope_section) != self.head_dim:
            section = list(self.rope_scaling.mrope_section)
            half = f"half a head of {self.head_dim} is {self.head_dim // 2}"
            raise ConfigError(f"mrope_section {section} sums to {sum(section)}, but {half}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """rope_scaling and rope_theta in one, as newer files have them."""
        scaling = self.rope_scaling.to_dict()
        kind = "default" if scaling["type"] == "mrope" else scaling["type"]
        return {**scaling, "rope_type": kind, "rope_theta": self.rope_theta}

    @rope_parameters.setter
    def rope_parameters(self, values: Mapping[str, Any]) -> None:
        rope = dict(values)
        self.rope_theta = rope.pop("rope_theta", self.rope_theta)
        self.rope_scaling = read_rope_scaling(rope)

    def to_dict(self) -> dict[str, Any]:
        rope = read_rope_scaling(self.rope_scaling).to_dict()
        return {**self.fields_of(), "rope_scaling": rope, "model_type": self.model_type}


TEXT_NAMES = [f.name for f in fields(Qwen2_5_VLTextConfig)] + ["rope_parameters"]


@keep_others
@dataclass(repr=False)
class Qwen2_5_VLVisionConfig(ModelConfig):
    """The vision encoder's sizes, under config.json's names. `window_size` is in pixels."""

    model_type: ClassVar[str] = "qwen2_5_vl_vision"
    base_config_key: ClassVar[str] = "vision_config"

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
    fullatt_block_indexes: tuple[int, ...] = FAMILY_FULL_BLOCKS
    tokens_per_second: float = 2
    initializer_range: float = 0.02

    in_chans = Alias("in_channels")  # what the official files call it
    num_attention_heads = Alias("num_heads")
    num_hidden_layers = Alias("depth")

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        expect_model_type(self, MODEL_TYPE)
        check_fields(self, positive={"tokens_per_second"})
        check_numbers(self, ["initializer_range"])
        given: object = self.fullatt_block_indexes
        if not isinstance(given, list | tuple) or any(type(block) is not int for block in given):
            raise ConfigError(
                f"fullatt_block_indexes is {shown(given)}; it must be a list of block numbers"
            )
        blocks = tuple(self.fullatt_block_indexes)
        if blocks == FAMILY_FULL_BLOCKS:  # the default; a shallow encoder has fewer of them
            blocks = tuple(i for i in blocks if i < self.depth)
        self.fullatt_block_indexes = blocks
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
        if unreachable := [i for i in blocks if not 0 <= i < self.depth]:
            raise ConfigError(
                f"fullatt_block_indexes {shown(unreachable)} lie outside the {self.depth} blocks"
            )

    def to_dict(self) -> dict[str, Any]:
        names = {"model_type": MODEL_TYPE, "in_chans": self.in_channels}
        return {
            **self.fields_of(),
            **names,
            "fullatt_block_indexes": list(self.fullatt_block_indexes),
        }

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


@keep_others
@dataclass(repr=False)
class Qwen2_5_VLConfig(ModelConfig):
    """A whole checkpoint: both towers and the ids that join them.

    The towers may be given as configs, as dictionaries, or not at all; text fields may also stand
    beside them, as in the hub's flat files. dtype: a name such as "bfloat16", or torch's dtype.
    """

    model_type: ClassVar[str] = MODEL_TYPE

    text_config: Qwen2_5_VLTextConfig = None  # type: ignore[assignment]  # `check` makes one
    vision_config: Qwen2_5_VLVisionConfig = None  # type: ignore[assignment]
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False
    dtype: str | None = None
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def read_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The hub's flat form, the nested one, or both mixed."""
        values = super().read_names(values)
        if isinstance(values.get("text_config"), Qwen2_5_VLTextConfig):
            return values
        nested = read_mapping(values, "text_config")
        flat = {name: values.pop(name) for name in TEXT_NAMES if name in values}
        outer = {"tie_word_embeddings": nested.pop("tie_word_embeddings", None)}
        named = [nested.pop(name, None) for name in ("dtype", "torch_dtype")]
        outer["dtype"] = next((dtype for dtype in named if dtype), values.get("dtype"))
        outer = {name: value for name, value in outer.items() if value is not None}
        if values.get("tie_word_embeddings"):  # one of the two may be a default that nobody chose
            outer.pop("tie_word_embeddings", None)
        return {**values, **outer, "text_config": {**flat, **nested}}

    def check(self) -> None:
        expect_model_type(self)
        self.dtype = dtype_name(self.dtype)
        self.quantization_config = self.quantization_config or None  # {} says nothing
        slots = ("image_token_id", "video_token_id")
        check_token_ids(self, [*slots, "vision_start_token_id", "vision_end_token_id"])
        is_tied: object = self.tie_word_embeddings
        if not isinstance(is_tied, bool):
            wanted = "it must be true or false"
            raise ConfigError(f"tie_word_embeddings is {shown(is_tied)}; {wanted}")
        text: Any = self.text_config
        vision: Any = self.vision_config
        if not isinstance(text, Qwen2_5_VLTextConfig):
            text = Qwen2_5_VLTextConfig.from_dict(read_mapping(vars(self), "text_config"))
        width = text.hidden_size
        if not isinstance(vision, Qwen2_5_VLVisionConfig):
            given = {"out_hidden_size": width, **read_mapping(vars(self), "vision_config")}
            vision = Qwen2_5_VLVisionConfig.from_dict(given)
        self.text_config, self.vision_config = text, vision
        self.text_config.check()
        self.vision_config.check()
        if (made := self.vision_config.out_hidden_size) != width:
            raise ConfigError(
                f"vision out_hidden_size {made} must equal the text hidden_size {width}"
            )

    @property
    def use_cache(self) -> bool:
        """The text config's; recipes switch it off here."""
        return self.text_config.use_cache

    @use_cache.setter
    def use_cache(self, value: bool) -> None:
        self.text_config.use_cache = value

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> Qwen2_5_VLTextConfig:
        return self.text_config

    def to_dict(self) -> dict[str, Any]:
        """The hub's flat form; `from_dict` of it gives an equal object."""
        own = {name: value for name, value in self.fields_of().items() if value is not None}
        del own["text_config"], own["vision_config"]
        if self.dtype is not None:
            own["torch_dtype"] = own.pop("dtype")
        text = self.text_config.to_dict()
        text.pop("dtype", None)
        architectures = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
        return {
            **architectures,
            **text,
            **own,
            "model_type": MODEL_TYPE,
            "vision_config": self.vision_config.to_dict(),
        }

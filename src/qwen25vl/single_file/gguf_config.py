"""The sizes of a GGUF file's model, as config.json and preprocessor_config.json.

What no key says is taken from the shapes of tensors, or from what all released models have. The
ids of pictures and videos are those of their tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from qwen25vl.config_values import shown
from qwen25vl.errors import CheckpointError
from qwen25vl.single_file import official
from qwen25vl.single_file.gguf_header import GgufHeader

TEXT, OLLAMA, PROJECTOR = "qwen2vl", "qwen25vl", "clip"  # values of general.architecture
PROJECTOR_TYPE = "qwen2.5vl_merger"
TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


class Keys:
    """The keys of one header that begin alike; its errors name file and key."""

    def __init__(self, header: GgufHeader, prefix: str) -> None:
        self.header, self.prefix = header, prefix

    def get(self, name: str, kinds: tuple[type, ...] = (int,)) -> Any:
        """A value, or None. Raises CheckpointError for one of another kind."""
        value = self.header.metadata.get(self.prefix + name)
        if value is not None and type(value) not in kinds:
            raise CheckpointError(f"{self.header.path}: {self.prefix}{name} is {shown(value)}")
        return value

    def need(self, name: str, kinds: tuple[type, ...] = (int,)) -> Any:
        if (value := self.get(name, kinds)) is None:
            raise CheckpointError(f"{self.header.path} lacks the key {self.prefix}{name}")
        return value

    def number(self, name: str, default: float) -> float:
        """A float32, as the shortest decimal number that it is the nearest to."""
        value = self.get(name, (int, float))
        return default if value is None else shortest(float(value))

    def size_of(self, name: str, dimension: int) -> int:
        """The size of a tensor. Raises CheckpointError where there is none."""
        tensor = self.header.tensors.get(name)
        if tensor is None or len(tensor.shape) != 2:
            raise CheckpointError(f"{self.header.path} lacks the matrix {name}")
        return tensor.shape[dimension]

    def count_blocks(self, prefix: str) -> int:
        """The value of block_count. Raises CheckpointError unless the tensors are those of so many
        blocks: a model of more would be built before anything is compared."""
        count = self.need("block_count")
        names = (name for name in self.header.tensors if name.startswith(prefix))
        if (found := len({name[len(prefix) :].split(".")[0] for name in names})) != count:
            raise CheckpointError(
                f"{self.header.path}: {self.prefix}block_count is {count}, its tensors are those "
                f"of {found} blocks"
            )
        return int(count)


def shortest(value: float) -> float:
    for digits in range(1, 9):
        text = f"{value:.{digits}g}"
        if struct.pack("<f", float(text)) == struct.pack("<f", value):
            return float(text)
    return value


def architecture(header: GgufHeader) -> str:
    """Raises CheckpointError for the file of another model."""
    name = header.metadata.get("general.architecture")
    if name not in (TEXT, OLLAMA, PROJECTOR):
        raise CheckpointError(
            f"{header.path} holds a model of the kind {shown(name)}; this package runs Qwen2.5-VL "
            "only ('qwen2vl' with a projector of the type 'qwen2.5vl_merger')"
        )
    return str(name)


def is_projector(header: GgufHeader) -> bool:
    return header.metadata.get("general.architecture") == PROJECTOR


def describe_config(text: GgufHeader, vision: GgufHeader) -> dict[str, Any]:
    """config.json. vision: the projector's header, or Ollama's file itself.

    Raises CheckpointError where a key is missing or of another kind.
    """
    keys = Keys(text, f"{architecture(text)}.")
    tokens = text.metadata.get("tokenizer.ggml.tokens") or []
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "bfloat16",
        "vocab_size": keys.size_of("token_embd.weight", 0),
        "hidden_size": keys.need("embedding_length"),
        "intermediate_size": keys.size_of("blk.0.ffn_gate.weight", 0),
        "num_hidden_layers": keys.count_blocks("blk."),
        "num_attention_heads": keys.need("attention.head_count"),
        "num_key_value_heads": keys.need("attention.head_count_kv"),
        "hidden_act": "silu",
        "max_position_embeddings": keys.get("context_length") or 128000,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": keys.number("rope.freq_base", 1e6),
        "rope_scaling": describe_rope(keys),
        "tie_word_embeddings": "output.weight" not in text.tensors,
        "use_sliding_window": False,
        **{name: tokens.index(token) for name, token in TOKENS.items() if token in tokens},
        **{name: number for name, number in token_ids(text).items() if name != "pad_token_id"},
        "vision_config": describe_vision(vision),
        "quantization_config": {"quant_method": "gguf"},
    }


def token_ids(text: GgufHeader) -> dict[str, int]:
    keys = Keys(text, "tokenizer.ggml.")
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: keys.get(f"{key}_token_id") for name, key in names.items()}
    return {name: number for name, number in found.items() if number is not None}


def describe_rope(keys: Keys) -> dict[str, Any]:
    # Ollama has three sections, llama.cpp a fourth that is 0
    section = keys.get("rope.dimension_sections", (list,)) or keys.get(
        "rope.mrope_section", (list,)
    )
    scaling: dict[str, Any] = {"type": "mrope", "mrope_section": (section or [16, 24, 24])[:3]}
    if (kind := keys.get("rope.scaling.type", (str,))) in (None, "none"):
        return scaling
    scaling |= {"type": kind, "factor": keys.number("rope.scaling.factor", 1.0)}
    if (length := keys.get("rope.scaling.original_context_length")) is not None:
        scaling["original_max_position_embeddings"] = length
    return scaling


def describe_vision(header: GgufHeader) -> dict[str, Any]:
    """vision_config, of a projector or of Ollama's file."""
    is_alone = is_projector(header)
    if is_alone:
        check_projector(header)
    keys = Keys(header, "clip.vision." if is_alone else f"{OLLAMA}.vision.")
    depth = keys.count_blocks("v.blk.")
    last = "mm.2.weight" if is_alone else "v.merger.mlp.2.weight"
    return {
        "depth": depth,
        "hidden_size": keys.need("embedding_length"),
        # old files have 0 for it, and the two other matrices under each other's names
        "intermediate_size": keys.size_of("v.blk.0.ffn_gate.weight", 0),
        "num_heads": keys.need("attention.head_count"),
        "hidden_act": "silu",
        "in_channels": 3,
        "patch_size": keys.get("patch_size") or 14,
        "temporal_patch_size": keys.get("temporal_patch_size") or 2,
        "spatial_merge_size": keys.get("spatial_merge_size") or 2,
        "window_size": keys.get("window_size") or 112,
        "out_hidden_size": keys.size_of(last, 0),
        "fullatt_block_indexes": full_blocks(keys, depth),
        "tokens_per_second": 2,
    }


def check_projector(header: GgufHeader) -> None:
    names = ("clip.projector_type", "clip.vision.projector_type")
    kind = next((header.metadata[name] for name in names if name in header.metadata), None)
    if kind != PROJECTOR_TYPE:
        raise CheckpointError(
            f"{header.path} has a projector of the type {shown(kind)}; Qwen2.5-VL has "
            f"{PROJECTOR_TYPE!r} (and Qwen2-VL 'qwen2vl_merger', which is another model)"
        )


def full_blocks(keys: Keys, depth: int) -> Sequence[int]:
    """The blocks with attention to the whole picture: a list, or each so many-th."""
    if (listed := keys.get("fullatt_block_indexes", (list,))) is not None:
        return list(listed)
    every = keys.get("n_wa_pattern")
    if every is None:
        every = keys.header.metadata.get("clip.n_wa_pattern", 8)
    if type(every) is not int or every < 1:
        raise CheckpointError(f"{keys.header.path}: n_wa_pattern is {shown(every)}")
    return [block for block in range(depth) if (block + 1) % every == 0]


def describe_preprocessor(vision: GgufHeader) -> dict[str, Any]:
    """preprocessor_config.json: the released models', with the file's mean and deviation."""
    keys = Keys(vision, "clip.vision.")
    values = dict(official.PREPROCESSOR)
    for name in ("image_mean", "image_std"):
        if (stored := keys.get(name, (list,))) is not None:
            values[name] = [shortest(float(value)) for value in stored]
    return values


def describe_generation(text: GgufHeader) -> dict[str, Any]:
    """generation_config.json: the file's sampling where it has some, else the released models'."""
    keys = Keys(text, "general.sampling.")
    ids = token_ids(text)
    ends = [ids[name] for name in ("eos_token_id", "pad_token_id") if name in ids]
    return {
        **official.GENERATION,
        "temperature": keys.number("temp", official.GENERATION["temperature"]),
        "repetition_penalty": keys.number(
            "penalty_repeat", official.GENERATION["repetition_penalty"]
        ),
        **ids,
        "eos_token_id": ends,
    }

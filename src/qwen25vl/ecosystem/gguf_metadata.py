"""What a GGUF file says beside its tensors, of a folder, with llama.cpp's keys: the inverse of
single_file/gguf_config.py and single_file/gguf_tokenizer.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen25vl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.ecosystem.processor_files import read_template
from qwen25vl.errors import CheckpointError, UsageError
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.tokenizer_files import read_tokenizer_files
from qwen25vl.single_file import official
from qwen25vl.single_file.gguf_config import PROJECTOR, PROJECTOR_TYPE, TEXT
from qwen25vl.single_file.gguf_tokenizer import ALIKE, CONTROL, NORMAL, PREFIX, USER_DEFINED

UNUSED = 5  # the type of rows beyond the vocabulary
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
# what llama.cpp has as constants, and no key can change
FIXED = {"window_size": 112, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
         "tokens_per_second": 2}  # fmt: skip
IMAGE_SIZE = 560  # means nothing for this model, but the key has to be there
EPSILON = 1e-6


def describe_text(config: Qwen2_5_VLConfig, source: Path, kind: str, name: str) -> dict[str, Any]:
    """The metadata of the language model's file, most of whose numbers are of the type `kind`.

    Raises UsageError for a model that llama.cpp's keys cannot describe, CheckpointError for a
    damaged tokenizer.
    """
    text = config.text_config
    if text.use_sliding_window:
        raise UsageError(f"{source} has a sliding window, which a GGUF file cannot say")
    sizes = {
        "block_count": text.num_hidden_layers,
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "rope.freq_base": float(text.rope_theta),
        **describe_rope(text, source),
    }
    return {
        **describe_file(TEXT, "model", kind, name),
        **{f"{TEXT}.{key}": value for key, value in sizes.items()},
        **describe_tokenizer(source, text),
        "tokenizer.chat_template": read_template(source),
    }


def describe_file(architecture: str, type_: str, kind: str, name: str) -> dict[str, Any]:
    return {
        "general.architecture": architecture,
        "general.type": type_,
        "general.name": name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }


def describe_rope(text: Qwen2_5_VLTextConfig, source: Path) -> dict[str, Any]:
    rope = text.rope_scaling.to_dict()
    made: dict[str, Any] = {"rope.dimension_sections": [*rope.pop("mrope_section"), 0]}
    if (kind := rope.pop("type")) != "mrope":
        made |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope.pop("factor", 1.0))}
        if (length := rope.pop("original_max_position_embeddings", None)) is not None:
            made["rope.scaling.original_context_length"] = length
        if rope:
            raise UsageError(f"{source}: a GGUF file cannot say {', '.join(rope)} of rope_scaling")
    return made


def describe_tokenizer(source: Path, text: Qwen2_5_VLTextConfig) -> dict[str, Any]:
    files = read_tokenizer_files(source)
    model = json.loads(files.text)["model"]
    tokens = [f"[PAD{number}]" for number in range(text.vocab_size)]
    types = [UNUSED] * text.vocab_size
    entries = [(number, token, NORMAL) for token, number in model["vocab"].items()]
    entries += [(each["id"], each["content"], type_of(each)) for each in files.added]
    for number, token, kind in entries:
        if number >= text.vocab_size:
            raise CheckpointError(
                f"{source}: the token {token!r} has the number {number}, the model has "
                f"{text.vocab_size} rows"
            )
        tokens[number], types[number] = token, kind
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    ids = {"eos": files.eos_token, "padding": files.pad_token, "bos": files.pad_token}
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": ALIKE[0],
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}token_type": types,
        f"{PREFIX}merges": merges,
        **{f"{PREFIX}{key}_token_id": tokens.index(t) for key, t in ids.items() if t in tokens},
        f"{PREFIX}add_bos_token": False,
    }


def type_of(token: dict[str, Any]) -> int:
    """Of an added token. The reader shows those of ORDINARY_TOKENS, though llama.cpp's type for
    them is that of special ones."""
    is_control = token.get("special") or token["content"] in official.ORDINARY_TOKENS
    return CONTROL if is_control else USER_DEFINED


def describe_vision(
    vision: Qwen2_5_VLVisionConfig, image: ImageSettings, kind: str, name: str
) -> dict[str, Any]:
    """The metadata of the vision encoder's file. Raises UsageError as `describe_text` does."""
    for key, value in FIXED.items():
        if getattr(vision, key) != value:
            raise UsageError(
                f"the vision encoder's {key} is {getattr(vision, key)}; programs that read GGUF "
                f"files have {value}"
            )
    sizes = {
        "projection_dim": vision.out_hidden_size,
        "image_size": IMAGE_SIZE,
        "patch_size": vision.patch_size,
        "embedding_length": vision.hidden_size,
        "feed_forward_length": vision.intermediate_size,
        "block_count": vision.depth,
        "attention.head_count": vision.num_heads,
        "attention.layer_norm_epsilon": EPSILON,
        "image_mean": [float(value) for value in image.image_mean],
        "image_std": [float(value) for value in image.image_std],
        "n_wa_pattern": window_pattern(vision),
    }
    return {
        **describe_file(PROJECTOR, "mmproj", kind, name),
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTOR_TYPE,
        "clip.use_silu": True,
        **{f"clip.vision.{key}": value for key, value in sizes.items()},
    }


def window_pattern(vision: Qwen2_5_VLVisionConfig) -> int:
    """n, where each n-th block has attention to the whole picture. Raises UsageError for others."""
    blocks = sorted(vision.fullatt_block_indexes)
    every = blocks[0] + 1 if blocks else vision.depth + 1
    if blocks != list(range(every - 1, vision.depth, every)):
        raise UsageError(
            f"fullatt_block_indexes {blocks} are not each so many-th block, which is all that a "
            "GGUF file can say"
        )
    return every

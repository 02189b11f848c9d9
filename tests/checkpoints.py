"""Small random checkpoints with the official file layout, token ids and vocabulary, written without
the package's own saver: what the package reads here was not written by itself."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()
ADDED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>"
).split()

TEXT: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 70,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 60,
    "num_heads": 4,
    "in_chans": 3,
    "out_hidden_size": 64,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: "
    "{% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: "
    "{% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_checkpoint(
    folder: Path,
    tokenizer: dict[str, Any],
    *,
    tied: bool = True,
    nested: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Path:
    """Write a whole checkpoint folder: `nested` gives the newer key names,
    `text` and `vision` change sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    text_config, vision_config = {**TEXT, **(text or {})}, {**VISION, **(vision or {})}
    write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": tied,
            "torch_dtype": str(dtype).removeprefix("torch."),
            **text_config,
            **IDS,
            "vision_config": vision_config,
        },
    )
    write_processor_files(folder, tokenizer)
    names = {
        nest(name) if nested else name: value
        for name, value in tensors(text_config, vision_config, tied, seed)
    }
    save_file(
        {name: value.to(dtype) for name, value in names.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def write_processor_files(folder: Path, tokenizer: dict[str, Any]) -> None:
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": 151643,
            "pad_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.05,
            "temperature": 1e-06,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "tokenizer.json", tokenizer)
    added = {
        str(token["id"]): {k: v for k, v in token.items() if k != "id"}
        for token in tokenizer["added_tokens"]
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "errors": "replace",
            "model_max_length": 131072,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "additional_special_tokens": SPECIAL[1:],
            "added_tokens_decoder": added,
        },
    )


class RandomTensors:
    """Tensors under the hub's names. Wider than usual weights, so that logits tell tokens apart."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.made: list[tuple[str, torch.Tensor]] = []

    def add(self, name: str, *shape: int, center: float = 0.0, std: float = 0.12) -> None:
        self.made.append((name, center + std * torch.randn(*shape, generator=self.generator)))

    def add_norm(self, name: str, width: int) -> None:
        self.add(name, width, center=1.0)


def tensors(
    text: dict[str, Any], vision: dict[str, Any], tied: bool, seed: int
) -> list[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint."""
    random = RandomTensors(seed)
    add_language_model(random, text, tied)
    add_vision_encoder(random, vision)
    return random.made


def add_language_model(random: RandomTensors, text: dict[str, Any], tied: bool) -> None:
    width, intermediate = text["hidden_size"], text["intermediate_size"]
    kv_width = width // text["num_attention_heads"] * text["num_key_value_heads"]
    random.add("model.embed_tokens.weight", text["vocab_size"], width, std=0.5)
    for i in range(text["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
            random.add(f"{layer}self_attn.{name}_proj.weight", rows, width)
            random.add(f"{layer}self_attn.{name}_proj.bias", rows)
        random.add(f"{layer}self_attn.o_proj.weight", width, width)
        for name, rows, columns in (
            ("gate", intermediate, width),
            ("up", intermediate, width),
            ("down", width, intermediate),
        ):
            random.add(f"{layer}mlp.{name}_proj.weight", rows, columns)
        random.add_norm(layer + "input_layernorm.weight", width)
        random.add_norm(layer + "post_attention_layernorm.weight", width)
    random.add_norm("model.norm.weight", width)
    if not tied:
        random.add("lm_head.weight", text["vocab_size"], width, std=0.5)


def add_vision_encoder(random: RandomTensors, vision: dict[str, Any]) -> None:
    width, joined = vision["hidden_size"], vision["hidden_size"] * vision["spatial_merge_size"] ** 2
    side = vision["patch_size"]
    patch = (3, vision["temporal_patch_size"], side, side)
    random.add("visual.patch_embed.proj.weight", width, *patch, std=0.03)
    for i in range(vision["depth"]):
        block = f"visual.blocks.{i}."
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.gate_proj", vision["intermediate_size"], width),
            ("mlp.up_proj", vision["intermediate_size"], width),
            ("mlp.down_proj", width, vision["intermediate_size"]),
        ):
            random.add(f"{block}{name}.weight", rows, columns)
            random.add(f"{block}{name}.bias", rows)
        random.add_norm(block + "norm1.weight", width)
        random.add_norm(block + "norm2.weight", width)
    random.add_norm("visual.merger.ln_q.weight", width)
    random.add("visual.merger.mlp.0.weight", joined, joined)
    random.add("visual.merger.mlp.0.bias", joined)
    random.add("visual.merger.mlp.2.weight", vision["out_hidden_size"], joined)
    random.add("visual.merger.mlp.2.bias", vision["out_hidden_size"])


def nest(name: str) -> str:
    """The name that transformers ≥ 4.52 writes."""
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.", 1)

"""The demo model's sizes, its first weights, and the checkpoint folder in the hub's layout."""

from __future__ import annotations

import math
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from qwen25vl.processing.image import ImageSettings
from train_demo.scenes import MAX_PIXELS, MIN_PIXELS
from train_demo.vocabulary import write_json, write_vocabulary


def make_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """Every part of the architecture, small:
    windowed and full blocks, grouped queries, MRoPE, a tied head.

    The rotary base is low because texts are short and pictures a few tokens wide: with the official
    million the frequencies that follow rows and columns would hardly turn.
    """
    return Qwen2_5_VLConfig.from_dict({
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 256, "intermediate_size": 704,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 500.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 11]}, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "max_window_layers": 6,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_config": {
            "depth": 6, "hidden_size": 256, "intermediate_size": 704, "num_heads": 8,
            "out_hidden_size": 256, "window_size": 112, "fullatt_block_indexes": [2, 5],
            "tokens_per_second": 2,
        },
    })  # fmt: skip


def initialise(model: nn.Module) -> None:
    """Weights N(0, 1/inputs), a smaller last layer in every residual branch, unit norms,
    zero biases."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "embed_tokens" in name:
            nn.init.normal_(parameter, std=0.05)
        elif parameter.ndim > 1:
            is_branch_end = name.endswith(
                ("o_proj.weight", "attn.proj.weight", "down_proj.weight", "mlp.2.weight")
            )
            nn.init.normal_(
                parameter, std=(0.3 if is_branch_end else 1.0) / math.sqrt(parameter[0].numel())
            )


def write_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer, folder: Path
) -> None:
    """Everything that a hub repository of this model holds."""
    model.save_pretrained(folder)
    write_vocabulary(tokenizer, folder)
    end, pad = (tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    write_json(folder / "generation_config.json", {
        "bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad], "do_sample": False,
        "repetition_penalty": 1.0,
    })  # fmt: skip
    write_json(folder / "preprocessor_config.json", ImageSettings(MIN_PIXELS, MAX_PIXELS).to_dict())

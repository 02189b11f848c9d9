"""`qwen25vl info`: how large a checkpoint is, and what each picture and video would cost. No weights are read."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from qwen25vl.cli.checks import check
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.generation.prefill import MAX_TOKENS_PER_STEP
from qwen25vl.loading.hub import resolve_folder
from qwen25vl.loading.quantize import TorchAoConfig, covered_linears, quantised_bytes
from qwen25vl.model.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.model.vision import MAX_PATCHES_PER_PASS
from qwen25vl.processing.processor import Qwen2_5_VLProcessor
from qwen25vl.vlm import compose


def info(arguments: argparse.Namespace) -> int:
    check(arguments)
    source = arguments.model or DEMO_FOLDER
    folder = resolve_folder(
        source, revision=arguments.revision, local_files_only=arguments.offline, files="processor"
    )
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    with torch.device("meta"):  # all shapes, no memory
        model = Qwen2_5_VLForConditionalGeneration(config)
    total, vision = num_parameters(model), num_parameters(model.visual)
    memory = weight_bytes(model)
    context = config.text_config.max_position_embeddings
    lines = [
        arguments.model or "the built-in demo model",
        f"parameters   {number(total)}: text {number(total - vision)}, vision {number(vision)}",
        f"weights      {', '.join(f'{name} {number(size)}B' for name, size in memory.items())}",
        f"context      {context} tokens, {number(cache_bytes(config, 1))}B for each in bfloat16",
    ]
    if arguments.image or arguments.video:
        lines += describe_inputs(arguments, folder, config, memory["bfloat16"])
    print("\n".join(lines))
    return 0


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, int]:
    """Bytes of all weights in each precision; int8 and int4 leave in bfloat16 what `quantize=` leaves."""
    total, linears = num_parameters(model), covered_linears(model).values()
    rest = 2 * (total - sum(linear.weight.numel() for linear in linears))
    schemes = {name: TorchAoConfig(f"{name}_weight_only") for name in ("int8", "int4")}
    quantised = {
        name: rest + sum(quantised_bytes(linear, scheme) for linear in linears) for name, scheme in schemes.items()
    }
    return {"float32": 4 * total, "bfloat16": 2 * total, **quantised}


def describe_inputs(arguments: argparse.Namespace, folder: Path, config: Qwen2_5_VLConfig, weights: int) -> list[str]:
    """A line for each picture and video, and one for all of them in one question."""
    processor = Qwen2_5_VLProcessor.from_pretrained(
        folder, min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels
    )
    messages = compose("", arguments.image, arguments.video, None)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, video_fps=arguments.fps
    )
    patches_per_token = config.vision_config.spatial_merge_size**2
    lines = []
    for item in inputs.media:
        frames = f", {item.num_frames} frames" if item.kind == "video" else ""
        need = encoder_bytes(config, patches_per_token * item.num_tokens) + cache_bytes(config, item.num_tokens)
        lines.append(
            f"{item.name}: {item.kind} {size(item.original_size)}, seen as {size(item.model_size)}{frames}, "
            f"{item.num_tokens} tokens, about {number(need)}B"
        )
    num_tokens = inputs.input_ids.shape[1]
    num_patches = patches_per_token * sum(item.num_tokens for item in inputs.media)
    need = weights + encoder_bytes(config, num_patches) + text_bytes(config, num_tokens)
    lines.append(f"the prompt   {num_tokens} tokens, about {number(need)}B of memory in bfloat16, weights included")
    return lines


def cache_bytes(config: Qwen2_5_VLConfig, num_tokens: int) -> int:
    """Keys and values of all layers, in bfloat16."""
    text = config.text_config
    return 2 * 2 * num_tokens * text.num_hidden_layers * text.num_key_value_heads * text.head_dim


def text_bytes(config: Qwen2_5_VLConfig, num_tokens: int) -> int:
    """Keys and values, the embedded prompt, and the widest moment of a layer while the prompt is read."""
    text = config.text_config
    width = 6 * text.hidden_size + 3 * text.intermediate_size
    at_once = min(num_tokens, MAX_TOKENS_PER_STEP)
    return cache_bytes(config, num_tokens) + 2 * num_tokens * text.hidden_size + 2 * at_once * width


def encoder_bytes(config: Qwen2_5_VLConfig, num_patches: int) -> int:
    """The pixels in float32, and the widest moment of a block: the residual stream and its norm, queries, keys,
    values, what attention gives, and three MLP rows, in bfloat16."""
    vision = config.vision_config
    width = 6 * vision.hidden_size + 3 * vision.intermediate_size
    return 4 * num_patches * vision.patch_dim + 2 * min(num_patches, MAX_PATCHES_PER_PASS) * width


def size(height_width: tuple[int, int]) -> str:
    return f"{height_width[1]}×{height_width[0]}"


def number(value: float) -> str:
    """Three digits and k, M or G."""
    for unit in ("", "k", "M"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} G"

"""`qwen25vl info`: how large a checkpoint is, and what each picture and video would cost. No
weights are read."""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen25vl.cli.checks import check, find_question
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.demo import folder_on_disk
from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
from qwen25vl.ecosystem.torchao_config import QUANTISATIONS, read_scheme
from qwen25vl.engine.footprint import measure
from qwen25vl.engine.need import describe_execution, describe_request, grid_tuples
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError
from qwen25vl.hub import resolve_folder
from qwen25vl.inputs import Grid, ModelInputs
from qwen25vl.loading.adapter_base import find_base
from qwen25vl.loading.formats import StoredFormat, stored_format
from qwen25vl.loading.quantization import covered_linears, quantised_bytes
from qwen25vl.measure import cost
from qwen25vl.measure.random_model import measure_rates
from qwen25vl.memory import process_bytes
from qwen25vl.model.cache import cache_bytes
from qwen25vl.question import compose


def info(arguments: argparse.Namespace) -> int:
    names = ["model", "question"] if arguments.model is None else ["question"]
    if len(arguments.words) > len(names):
        raise UsageError("give a model and one question only; put the question in quotes")
    arguments.question = ""
    vars(arguments).update(zip(names, arguments.words, strict=False))
    find_question(arguments, is_needed=False)
    check(arguments)
    source = arguments.model or folder_on_disk(DEMO_FOLDER)
    hub: dict[str, Any] = {"local_files_only": arguments.offline, "files": "processor"}
    given = resolve_folder(source, revision=arguments.revision, **hub)
    folder, _ = find_base(given, **hub)
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    quantised = stored_format(config, folder)
    if quantised is not None and quantised.schemes and arguments.quantize:
        raise UsageError(f"{folder} is already quantised; ask without {arguments.quantize}")
    with torch.device("meta"):  # all shapes, no memory
        model = Qwen2_5_VLForConditionalGeneration(config)
    total, vision = num_parameters(model), num_parameters(model.visual)
    memory = weight_bytes(model)
    context = config.text_config.max_position_embeddings
    lines = [
        arguments.model or "the built-in demo model",
        f"parameters   {number(total)}: text {number(total - vision)}, vision {number(vision)}",
        f"weights      {', '.join(f'{name} {number(size)}B' for name, size in memory.items())}",
        (
            f"context      {context} tokens, {number(cache_bytes(config.text_config, 1))}B for "
            "each in bfloat16"
        ),
    ]
    if quantised is not None:
        kinds = ", ".join(dict.fromkeys(scheme.describe() for scheme in quantised.schemes))
        form = f"{kinds} ({quantised.method})" if kinds else quantised.method
        lines.append(f"quantised    {form}")
    if arguments.image or arguments.video or arguments.question:
        arguments.quantize = arguments.quantize or stored_precision(quantised)
        lines += describe_inputs(arguments, folder, config, memory)
    print("\n".join(lines))
    return 0


def stored_precision(quantised: StoredFormat | None) -> str | None:
    """The precision of a quantised folder's layers: that of the language model, which has the
    fewest bits."""
    if quantised is None or not quantised.schemes:
        return None
    return f"int{min(scheme.bits for scheme in quantised.schemes)}"


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, int]:
    """Bytes of all weights in each precision; int8 and int4 leave in bfloat16 what `quantize=`
    leaves, and have a head in 8 bits besides."""
    total, text = num_parameters(model), model.config.text_config
    sizes = {"float32": 4 * total, "bfloat16": 2 * total}
    for name in QUANTISATIONS:
        if scheme := read_scheme(name):
            linears = covered_linears(model, scheme)
            rest = 2 * (total - sum(linear.weight.numel() for linear in linears.values()))
            packed = sum(
                quantised_bytes(linear, scheme.for_layer(path)) for path, linear in linears.items()
            )
            sizes[name] = rest + packed + text.vocab_size * text.hidden_size
    return sizes


def describe_inputs(
    arguments: argparse.Namespace, folder: Path, config: Qwen2_5_VLConfig, weights: dict[str, int]
) -> list[str]:
    """A line for each picture and video, and two for all of them in one question:
    tokens and bytes, seconds."""
    dtype = config.dtype or "bfloat16" if arguments.dtype == "auto" else arguments.dtype
    if dtype == "float16":
        dtype = "float32"  # which a CPU computes in instead
    precision = arguments.quantize or dtype
    numbers = torch.float32 if precision == "float32" else torch.bfloat16
    processor = Qwen2_5_VLProcessor.from_pretrained(
        arguments.processor or folder,
        local_files_only=arguments.offline,
        min_pixels=arguments.min_pixels,
        max_pixels=arguments.max_pixels,
        max_decoded_pixels=arguments.max_decoded_pixels,
    )
    here = process_bytes()  # Python and torch, which the answer's process needs as well
    messages = compose(arguments.question, arguments.image, arguments.video, None)
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        video_fps=arguments.fps,
        patch_dtype=numbers,
    )
    how = describe_execution(numbers, torch.device("cpu"))
    generation = GenerationConfig.from_pretrained(folder)
    request = describe_request(config, inputs, generation)
    own: dict[str, tuple[Grid, ...]]
    lines = []
    for item, (kind, grid) in zip(inputs.media, grids_of(inputs), strict=True):
        frames = f", {item.num_frames} frames" if item.kind == "video" else ""
        own = {"images": (), "videos": (), kind: (grid,)}
        alone = replace(
            request, images=own["images"], videos=own["videos"], prompts=(item.num_tokens,)
        )
        need = measure(config, alone, how).peak
        lines.append(
            f"{item.name}: {item.kind} {size(item.original_size)}, seen as "
            f"{size(item.model_size)}{frames}, {item.num_tokens} tokens, about {number(need)}B"
        )
    grids, num_tokens = [*request.images, *request.videos], inputs.input_ids.shape[1]
    need = (
        here.get("anonymous", 0)
        + here.get("mapped", 0)
        + weights[precision]
        + measure(config, request, how).peak
    )
    rates = measure_rates(config, precision, max(grids, default=(1, 2, 2), key=prod), num_tokens)
    seconds = cost.estimate(config, rates, grids, num_tokens, precision)
    return [
        *lines,
        f"the prompt   {num_tokens} tokens, about {number(need)}B of memory with {precision} "
        f"weights and all else, {request.reserved[0]} tokens of answer included",
        f"on this machine about {seconds.vision:.2f} s to look, {seconds.prefill:.2f} s to read, "
        f"then {1 / seconds.token:.1f} tokens per second",
    ]


def grids_of(inputs: ModelInputs) -> list[tuple[str, Grid]]:
    """Of each picture and video, in the order of `inputs.media`:
    its field in a Request, and its grid."""
    grids = {
        "image": iter(grid_tuples(inputs.image_grid_thw)),
        "video": iter(grid_tuples(inputs.video_grid_thw)),
    }
    return [(f"{item.kind}s", next(grids[item.kind])) for item in inputs.media]


def size(height_width: tuple[int, int]) -> str:
    return f"{height_width[1]}×{height_width[0]}"


def number(value: float) -> str:
    """Three digits and k, M or G."""
    for unit in ("", "k", "M"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} G"

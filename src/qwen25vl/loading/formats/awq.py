"""Checkpoints in AWQ's "gemm" format: 4-bit weights with a zero point for each output and group.

The model holds eight inputs of one output in a word; these files have it the other way round:

    qweight  [I, O / 8] int32    the codes of one input and eight outputs in a word
    qzeros   [I / g, O / 8] int32    their zeros, likewise
    scales   [I / g, O] float16
    w[o, i] = (code[i, o] − zero[i // g, o]) · scale[i // g, o]

    I inputs · O outputs · g inputs that share a scale

and in a word the even outputs come before the odd ones. Loading turns the words around, a layer at
a time; no number changes. The scaling by activations, which gives the method its name, is part of
the norms and weights that a file holds. Format: AutoAWQ's `WQLinear_GEMM`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen25vl.errors import TensorError
from qwen25vl.kernels.reference import pack_zeros, unpack_zeros
from qwen25vl.loading.checkpoint import Checkpoint, hub_name
from qwen25vl.loading.formats.config_reader import ROOT, ConfigReader, Supported, is_one_of
from qwen25vl.loading.quantization import make_packed_layer
from qwen25vl.loading.scheme import GROUP_SIZES, Scheme
from qwen25vl.loading.threads import map_in_threads
from qwen25vl.loading.weight_files import listed

METHOD, GEMM = "awq", "gemm"
PARTS = ("qweight", "qzeros", "scales")
# Of eight outputs in a word, the one at each place, the lowest bits first; and the inverse.
OUTPUT_AT_PLACE = (0, 2, 4, 6, 1, 3, 5, 7)
PLACE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)
# To transpose 8 × 8 half bytes in eight words: by how many bits to shift, and the bits to swap.
SWAPS = ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F))
# Of a block: as much as stays in a cache, and enough that threads rarely wait to enter Python.
INPUTS_AT_A_TIME, WORDS_AT_A_TIME = 4096, 128

DEFAULTS = {"bits": 4, "group_size": 128, "zero_point": True}
REMEDY = (
    "take a version in 4 bits and the gemm layout, or quantise the original checkpoint with "
    "`qwen25vl quantize`"
)
# of how a program computes, not of the numbers
RUNTIME = ("backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse")
KEYS: Supported = {
    "quant_method": (METHOD,),
    "bits": None,
    "version": None,
    "format": None,
    "group_size": GROUP_SIZES,
    "zero_point": (True, False),
    "modules_to_not_convert": None,
    **dict.fromkeys(RUNTIME),
}


def read_awq_scheme(config: object, folder: Path) -> Scheme:
    """How a checkpoint's weights are quantised, from its quantization_config.

    Which layers are is told by their tensors: writers leave the head out of
    modules_to_not_convert. Raises CheckpointError that names the first key whose value is not
    supported, or that is unknown and not empty.
    """
    reader = ConfigReader(folder)
    values: dict[str, Any] = DEFAULTS | reader.read_object(config, ROOT)
    for key in ("version", "format"):  # newer writers have the latter
        if values.get(key) is not None and str(values[key]).lower() != GEMM:
            raise reader.refuse(f"{ROOT}.{key}", values[key], f"only {GEMM!r} is read; {REMEDY}")
    if not is_one_of(values["bits"], (4,)):
        raise reader.refuse(f"{ROOT}.bits", values["bits"], f"only 4 are read; {REMEDY}")
    reader.check(values, KEYS, ROOT)
    if values.get("modules_to_not_convert") is not None:
        reader.read_names(values["modules_to_not_convert"], f"{ROOT}.modules_to_not_convert")
    return Scheme(4, values["group_size"], has_zeros=values["zero_point"])


def expect_layers(model: nn.Module, checkpoint: Checkpoint, scheme: Scheme) -> None:
    """Give a model on "meta" the quantised layers that a checkpoint stores.

    Raises TensorError for all of their tensors that are missing, or of another shape or type.
    """
    problems: list[str] = []
    for path, linear in [
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)
    ]:
        stored = {part for part in PARTS if f"{path}.{part}" in checkpoint.stored}
        if not stored:
            continue
        own = replace(scheme, has_zeros=scheme.has_zeros or "qzeros" in stored)
        found = find_problems(path, linear, checkpoint, own)
        if not found:
            turn_around(path, linear, checkpoint)
            model.set_submodule(path, make_packed_layer(linear, own))
        problems += found
    if problems:
        raise TensorError(
            f"{checkpoint.folder}: {len(problems)} tensors do not match: "
            f"{listed(sorted(problems), '; ')}"
        )


def find_problems(
    path: str, linear: nn.Linear, checkpoint: Checkpoint, scheme: Scheme
) -> list[str]:
    """What is wrong with the tensors of one layer."""
    num_inputs, num_outputs = linear.in_features, linear.out_features
    group_size = scheme.inputs_per_scale(num_inputs)
    if num_inputs % group_size or num_outputs % 8:
        name, sizes = hub_name(f"{path}.qweight"), f"{num_inputs} inputs, {num_outputs} outputs"
        return [f"{name} has {sizes}, not whole groups of {group_size} and eights"]
    num_groups = num_inputs // group_size
    wanted = {
        "qweight": ((num_inputs, num_outputs // 8), ("I32",)),
        "qzeros": ((num_groups, num_outputs // 8), ("I32",)),
        "scales": ((num_groups, num_outputs), ("F16", "BF16", "F32")),
    }
    if not scheme.has_zeros:
        del wanted["qzeros"]
    problems = []
    for part, (shape, types) in wanted.items():
        tensor = checkpoint.stored.get(f"{path}.{part}")
        if tensor is None:
            problems.append(f"{hub_name(f'{path}.{part}')} is missing")
        elif tensor.shape != shape:
            made = f"config.json makes it {list(shape)} (group_size {group_size})"
            problems.append(f"{tensor.name} is {list(tensor.shape)}, {made}")
        elif tensor.type_name not in types:
            problems.append(
                f"{tensor.name} is of type {tensor.type_name}, not of {', '.join(types)}"
            )
    return problems


def turn_around(path: str, linear: nn.Linear, checkpoint: Checkpoint) -> None:
    """Have a layer's tensors read as the model holds them."""
    num_inputs, num_outputs = linear.in_features, linear.out_features
    stored = checkpoint.stored
    codes, scales = stored.pop(f"{path}.qweight"), stored.pop(f"{path}.scales")
    stored[f"{path}.weight_packed"] = replace(
        codes, shape=(num_outputs, num_inputs // 8), convert=turn_codes
    )
    stored[f"{path}.weight_scale"] = replace(scales, shape=scales.shape[::-1], convert=turn_scales)
    if zeros := stored.pop(f"{path}.qzeros", None):
        stored[f"{path}.weight_zero_point"] = replace(
            zeros, shape=zeros.shape[::-1], convert=turn_zeros
        )


def turn_scales(scales: torch.Tensor) -> torch.Tensor:
    return scales.T.contiguous()


def turn_zeros(zeros: torch.Tensor) -> torch.Tensor:
    """[G, O / 8] words in AWQ's order -> [O / 8, G] in that of the outputs"""
    num_groups, num_words = zeros.shape
    by_place = unpack_zeros(zeros.T, 8 * num_words).view(num_words, 8, num_groups)
    return pack_zeros(by_place[:, PLACE_OF_OUTPUT].flatten(0, 1))


def turn_codes(codes: torch.Tensor) -> torch.Tensor:
    """[I, O / 8] words of eight outputs -> [O, I / 8] words of eight inputs"""
    num_inputs, num_words = codes.shape
    turned = torch.empty(num_words, 8, num_inputs // 8, dtype=torch.int32, device="cpu")

    def turn(corner: tuple[int, int]) -> None:
        inputs, words = corner
        block = codes[inputs : inputs + INPUTS_AT_A_TIME, words : words + WORDS_AT_A_TIME]
        eights = [row.contiguous() for row in block.unflatten(0, (-1, 8)).unbind(1)]
        to = turned[words : words + WORDS_AT_A_TIME, :, inputs // 8 :]
        for output, place in zip(OUTPUT_AT_PLACE, transpose_eights(eights), strict=True):
            to[:, output, : len(place)] = place.T

    corners = [
        (inputs, words)
        for words in range(0, num_words, WORDS_AT_A_TIME)
        for inputs in range(0, num_inputs, INPUTS_AT_A_TIME)
    ]
    map_in_threads(turn, corners)
    return turned.flatten(0, 1)


def transpose_eights(words: list[torch.Tensor]) -> list[torch.Tensor]:
    """Half byte n of word m becomes half byte m of word n, for each element of eight tensors."""
    for shift, mask in SWAPS:
        apart = shift // 4
        for n in range(8):
            if n & apart:
                continue
            low, high = words[n], words[n + apart]
            differing = (low >> shift).bitwise_xor_(high).bitwise_and_(mask)
            words[n + apart] = high.bitwise_xor_(differing)
            words[n] = low.bitwise_xor_(differing.bitwise_left_shift_(shift))
    return words

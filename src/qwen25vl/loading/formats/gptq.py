"""GPTQ: 2, 4 or 8 bits with scales and zero points in groups of inputs.

    qweight [I · bits / 32, O] int32    a word holds the codes of inputs that follow each other
    qzeros  [G, O · bits / 32] int32    a word holds the zeros of outputs
    scales  [G, O]    g_idx [I] int32    the group of each input
    w[o, i] = (code[i, o] − zero[g_idx[i], o]) · scale[g_idx[i], o]

    I inputs · O outputs · G groups

Files of the first version store zero − 1, in which a zero of 0 is the highest code. How many bits
and how large groups are is told by the tensors, as single layers may differ.

Four bits in groups of 32, 64 or 128 inputs that follow each other, and eight bits with one scale
for each output, are turned around, and no number changes. All else, such as inputs that were sorted
by their activations ("desc_act"), is worked out. Format: GPTQModel and AutoGPTQ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen25vl.errors import TensorError
from qwen25vl.kernels.reference import pack_zeros
from qwen25vl.loading.checkpoint import Checkpoint, StoredTensor, hub_name
from qwen25vl.loading.dequantised import dequantise, require_finite
from qwen25vl.loading.formats.codes import read_groups, scale_groups, subtract_zeros, unpack_words
from qwen25vl.loading.formats.config_reader import ROOT, ConfigReader
from qwen25vl.loading.quantization import make_packed_layer
from qwen25vl.loading.scheme import GROUP_SIZES, Scheme

METHOD, AUTO_ROUND = "gptq", "auto-round"
VERSIONS = {"gptq": 1, "gptq_v2": 0}  # what is added to a stored zero
WIDTHS = (2, 4, 8)
REMEDY = "take a version in AWQ, GPTQ with 4 or 8 bits, or bfloat16"


def read_offset(config: Mapping[str, Any], folder: Path) -> int:
    """What has to be added to stored zeros.

    Raises CheckpointError for forms that are not read, by name.
    """
    reader = ConfigReader(folder)
    form = config.get("checkpoint_format") or "gptq"
    if not isinstance(form, str) or form not in VERSIONS:
        wanted = f"expected {' or '.join(map(repr, VERSIONS))}; {REMEDY}"
        raise reader.refuse(f"{ROOT}.checkpoint_format", form, wanted)
    bits = config.get("bits", 4)
    if type(bits) is not int or bits not in WIDTHS:
        raise reader.refuse(f"{ROOT}.bits", bits, f"expected 2, 4 or 8; {REMEDY}")
    if config.get("pack_dtype") not in (None, "int32", "torch.int32"):
        raise reader.refuse(f"{ROOT}.pack_dtype", config["pack_dtype"], "expected 'int32'")
    return VERSIONS[form]


@dataclass(frozen=True)
class Layer:
    """One layer's tensors, and what their shapes say. offset: added to stored zeros."""

    path: str
    parts: dict[str, StoredTensor]
    num_outputs: int
    num_inputs: int
    bits: int
    num_groups: int
    offset: int


def expect_layers(model: nn.Module, checkpoint: Checkpoint, offset: int) -> None:
    """Give a model on "meta" the quantised layers that a checkpoint stores.

    Raises TensorError for tensors of other shapes or types.
    """
    stored = checkpoint.stored
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    for path, linear in linears.items():
        if f"{path}.qweight" not in stored:
            continue
        layer = read_layer(path, linear, checkpoint, offset)
        for part in layer.parts:
            del stored[f"{path}.{part}"]
        groups = None
        if "g_idx" in layer.parts:
            groups = layer.parts["g_idx"].get(checkpoint.open_files)
            groups = None if follow_each_other(groups, layer) else groups
        zeros = unpack_zeros(layer.parts["qzeros"].get(checkpoint.open_files), layer)
        scheme = None if groups is not None else choose_scheme(layer, zeros)
        if scheme is None:
            work_out(checkpoint, layer, is_sorted=groups is not None)
        else:
            turn_around(model, linear, checkpoint, layer, scheme)


def read_layer(path: str, linear: nn.Linear, checkpoint: Checkpoint, offset: int) -> Layer:
    """A layer's tensors, checked against each other."""
    names = ("qweight", "qzeros", "scales", "g_idx")
    found = {name: checkpoint.stored.get(f"{path}.{name}") for name in names}
    parts = {name: tensor for name, tensor in found.items() if tensor is not None}
    num_outputs, num_inputs = linear.out_features, linear.in_features
    words = parts["qweight"].shape
    bits = words[0] * 32 // num_inputs if words else 0
    num_groups = parts["scales"].shape[0] if "scales" in parts and parts["scales"].shape else 0
    wanted = {
        "qweight": ((num_inputs * bits // 32, num_outputs), ("I32",)),
        "qzeros": ((num_groups, -(-num_outputs * bits // 32)), ("I32",)),
        "scales": ((num_groups, num_outputs), ("F16", "BF16", "F32")),
        "g_idx": ((num_inputs,), ("I32", "I64")),
    }
    is_whole = parts.keys() | {"g_idx"} == wanted.keys() and bits in WIDTHS and num_groups > 0
    is_whole &= num_inputs * bits % 32 == 0
    is_whole &= "g_idx" in parts or num_inputs % max(num_groups, 1) == 0
    if not is_whole or any(
        tensor.shape != wanted[name][0] or tensor.type_name not in wanted[name][1]
        for name, tensor in parts.items()
    ):
        shapes = {name: [tensor.type_name, *tensor.shape] for name, tensor in parts.items()}
        raise TensorError(
            f"{checkpoint.folder}: {hub_name(path)} is stored as {shapes}, which is no matrix of "
            f"{num_outputs} outputs and {num_inputs} inputs in 2, 4 or 8 bits"
        )
    return Layer(path, parts, num_outputs, num_inputs, bits, num_groups, offset)


def follow_each_other(groups: torch.Tensor, layer: Layer) -> bool:
    """Whether the inputs of a group are neighbours, as where nothing was sorted."""
    if layer.num_inputs % layer.num_groups:
        return False
    plain = torch.arange(layer.num_inputs, device="cpu") // (layer.num_inputs // layer.num_groups)
    return torch.equal(groups.long(), plain)


def unpack_zeros(words: torch.Tensor, layer: Layer) -> torch.Tensor:
    """[G, O · bits / 32] words to zeros [G, O] uint8. The sum is cut to the width of a code, as a
    zero of 0 is stored as the highest."""
    stored = unpack_words(words, layer.bits)[:, : layer.num_outputs]
    zeros: torch.Tensor = stored + layer.offset & (1 << layer.bits) - 1
    return zeros


def choose_scheme(layer: Layer, zeros: torch.Tensor) -> Scheme | None:
    """The kind of layer that holds the numbers as they are, where the groups are neighbours."""
    is_middle = bool((zeros == 1 << layer.bits - 1).all())
    if layer.bits == 8:
        return Scheme(8) if layer.num_groups == 1 and is_middle else None
    if layer.bits != 4 or layer.num_outputs % 8:
        return None
    group_size = layer.num_inputs // layer.num_groups
    if layer.num_groups == 1:  # one scale for all inputs is one for each of several groups
        sizes = [size for size in GROUP_SIZES if layer.num_inputs % size == 0]
        group_size = max(sizes, default=0)
    return Scheme(4, group_size, has_zeros=not is_middle) if group_size in GROUP_SIZES else None


def turn_around(
    model: nn.Module, linear: nn.Linear, checkpoint: Checkpoint, layer: Layer, scheme: Scheme
) -> None:
    """Give the model a layer that holds the numbers, and have its tensors read."""
    made = make_packed_layer(linear, scheme)
    model.set_submodule(layer.path, made)
    num_groups = made.weight_scale.shape[1]
    repeats = num_groups // layer.num_groups
    parts: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str | None]] = {
        "weight_packed": ("qweight", transpose, "I32"),
        "weight_scale": ("scales", partial(turn_scales, repeats=repeats), None),
    }
    if scheme.has_zeros:
        parts["weight_zero_point"] = ("qzeros", partial(turn_zeros, layer, repeats=repeats), "I32")
    for name, (part, convert, type_name) in parts.items():
        tensor = layer.parts[part]
        checkpoint.stored[f"{layer.path}.{name}"] = replace(
            tensor,
            shape=tuple(made.get_buffer(name).shape),
            type_name=type_name or tensor.type_name,
            convert=convert,
        )


def transpose(words: torch.Tensor) -> torch.Tensor:
    """A word of neighbouring inputs stays a word."""
    return words.T.clone(memory_format=torch.contiguous_format)


def turn_scales(scales: torch.Tensor, repeats: int) -> torch.Tensor:
    return require_finite(scales, "a tensor of scales").T.repeat_interleave(repeats, 1)


def turn_zeros(layer: Layer, words: torch.Tensor, repeats: int) -> torch.Tensor:
    return pack_zeros(unpack_zeros(words, layer).T.repeat_interleave(repeats, 1))


def work_out(checkpoint: Checkpoint, layer: Layer, is_sorted: bool) -> None:
    """Have a layer's weight read as numbers."""
    parts = {
        "qweight": layer.parts["qweight"],
        "qzeros": replace(
            layer.parts["qzeros"], convert=lambda words: unpack_zeros(words, layer).T.float()
        ),
        "scales": replace(
            layer.parts["scales"],
            convert=lambda scales: require_finite(scales.float(), layer.path + ".scales").T,
        ),
    }
    if is_sorted:
        index = layer.parts["g_idx"]
        parts["g_idx"] = replace(
            index, convert=partial(read_groups, num_groups=layer.num_groups, name=index.name)
        )

    def rows(tensors: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        words, zeros, scales, *groups = tensors
        codes = unpack_words(words[:, start:stop].T, layer.bits).float()
        group = groups[0] if groups else None
        subtract_zeros(codes, zeros[start:stop], group)
        return scale_groups(codes, scales[start:stop], group)

    form = f"GPTQ ({layer.bits} bits{' sorted by activations' if is_sorted else ''})"
    shape = (layer.num_outputs, layer.num_inputs)
    dequantise(checkpoint, f"{layer.path}.weight", list(parts.values()), shape, rows, form)

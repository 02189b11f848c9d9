"""bitsandbytes: NF4 and FP4 (a table of 16 numbers), and LLM.int8 (a scale for each output).

Four bits, under the weight's own name P, which ends in ".weight":

    P                U8 [⌈n / 2⌉, 1]    element 2k in the high half of byte k, n = O · I
    P.quant_map      F32 [16]    the number of each code
    P.absmax         F32 [⌈n / 64⌉], or U8: then an index into P.nested_quant_map F32 [256], times
                     P.nested_absmax F32 (one for 256 of them), plus nested_offset
    P.quant_state.bitsandbytes__nf4    U8, a JSON text with shape, blocksize and nested_offset
    w.flat[k] = quant_map[code k] · absmax[k // 64]

Blocks run over the flattened matrix and may cross rows, so these are worked out. LLM.int8 is
weight I8 [O, I] and SCB F32 [O]: w = weight · SCB / 127, which a layer of 8 bits holds. Layers are
told by their tensors; lists of skipped modules are not needed. Format: bitsandbytes' `QuantState`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch import nn

from qwen25vl.config_values import parse_json
from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.loading.checkpoint import Checkpoint, StoredTensor
from qwen25vl.loading.dequantised import dequantise, require_finite
from qwen25vl.loading.formats.compressed import pack_signed_rows
from qwen25vl.loading.quantization import make_packed_layer
from qwen25vl.loading.scheme import Scheme

METHOD = "bitsandbytes"
STATE = ".quant_state.bitsandbytes__"
HIGHEST_LEVEL = 127  # of LLM.int8
NUM_CODES, NUM_NESTED_CODES = 16, 256
MAX_STATE_BYTES = 10_000


@dataclass(frozen=True)
class State:
    """What the JSON text of a weight says, and which of its tensors are there."""

    kind: str
    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float
    is_nested: bool

    @property
    def num_blocks(self) -> int:
        return -(-prod(self.shape) // self.block)


def expect_layers(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Have quantised weights read as the model holds them. Raises TensorError where their tensors
    do not fit each other."""
    stored = checkpoint.stored
    for key in [key for key in stored if STATE in key]:
        weight, _, kind = key.partition(STATE)
        work_out(checkpoint, weight, kind, stored.pop(key))
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    for path, linear in linears.items():
        stored.pop(f"{path}.weight_format", None)  # 0: rows as they are, the only one that is saved
        if f"{path}.SCB" in stored:
            keep_eight_bits(model, path, linear, checkpoint)


def work_out(checkpoint: Checkpoint, key: str, kind: str, stored_state: StoredTensor) -> None:
    """Have one weight of four bits read as numbers."""
    stored = checkpoint.stored
    names = ("quant_map", "absmax", "nested_quant_map", "nested_absmax")
    parts = {name: stored.pop(f"{key}.{name}", None) for name in names}
    state = read_state(checkpoint, key, kind, stored_state, parts)
    first = stored[key]
    given = [first, *(part for part in parts.values() if part is not None)]
    rows = partial(rows_of, state=state, name=first.name)
    dequantise(checkpoint, key, given, state.shape, rows, f"bitsandbytes {kind.upper()}")


def read_state(
    checkpoint: Checkpoint,
    key: str,
    kind: str,
    stored_state: StoredTensor,
    parts: dict[str, StoredTensor | None],
) -> State:
    """The description of a weight, checked against its tensors. Raises TensorError."""
    wrong = TensorError(
        f"{checkpoint.folder}: {stored_state.name} does not fit the tensors beside it"
    )
    if prod(stored_state.shape) > MAX_STATE_BYTES or key not in checkpoint.stored:
        raise wrong
    try:
        text = bytes(stored_state.get(checkpoint.open_files).flatten().tolist())
        values = parse_json(text, stored_state.name)
        shape = tuple(int(size) for size in values["shape"])
        state = State(
            kind,
            (shape[0], shape[1]),
            int(values["blocksize"]),
            int(values.get("nested_blocksize", 1)),
            float(values.get("nested_offset", 0.0)),
            parts["nested_absmax"] is not None,
        )
        has_sizes = len(shape) == 2 and min(*shape, state.block, state.nested_block) > 0
    except (CheckpointError, ValueError, TypeError, KeyError, IndexError, OverflowError):
        raise wrong from None
    weight = checkpoint.stored[key]
    num_bytes = prod(weight.shape) * weight.itemsize
    wanted = {"quant_map": NUM_CODES, "absmax": state.num_blocks if has_sizes else 0}
    if state.is_nested and has_sizes:
        wanted["nested_quant_map"] = NUM_NESTED_CODES
        wanted["nested_absmax"] = -(-state.num_blocks // state.nested_block)
    found = {name: prod(part.shape) for name, part in parts.items() if part is not None}
    types = {name: part.type_name for name, part in parts.items() if part is not None}
    absmax_type = types.pop("absmax", "")
    if (
        found != wanted
        or not has_sizes
        or num_bytes != -(-prod(state.shape) // 2)
        or set(types.values()) != {"F32"}
        or absmax_type != ("U8" if state.is_nested else "F32")
    ):
        raise wrong
    return state


def rows_of(
    tensors: Sequence[torch.Tensor], start: int, stop: int, state: State, name: str
) -> torch.Tensor:
    """Rows of the matrix; a block, and a byte, may begin in the row before."""
    packed, numbers, *scales = tensors
    first, last = start * state.shape[1], stop * state.shape[1]
    stored = packed.view(torch.uint8).flatten()[first // 2 : -(-last // 2)]
    # both numbers of every byte, by one look into a table
    pairs = torch.stack([numbers.repeat_interleave(16), numbers.repeat(16)], 1)
    flat = pairs.index_select(0, stored.int()).flatten()[first % 2 :][: last - first]
    begin, end = first // state.block, -(-last // state.block)
    of_blocks = block_scales(scales, begin, end, state)
    require_finite(of_blocks, name)
    spread = of_blocks.repeat_interleave(state.block)[first - begin * state.block :]
    return flat.mul_(spread[: last - first]).view(stop - start, -1)


def block_scales(
    scales: Sequence[torch.Tensor], begin: int, end: int, state: State
) -> torch.Tensor:
    """The scales of some blocks, in float32."""
    absmax = scales[0].flatten()[begin:end]
    if not state.is_nested:
        return absmax
    _, numbers, nested = scales
    places = torch.arange(begin, end, device="cpu") // state.nested_block
    return numbers[absmax.int()] * nested[places] + state.nested_offset


def keep_eight_bits(model: nn.Module, path: str, linear: nn.Linear, checkpoint: Checkpoint) -> None:
    """Give the model a layer of 8 bits. Raises TensorError for tensors of other shapes."""
    stored = checkpoint.stored
    rows, scales = stored.get(f"{path}.weight"), stored.pop(f"{path}.SCB")
    num_outputs, num_inputs = linear.out_features, linear.in_features
    if (
        rows is None
        or (rows.type_name, rows.shape) != ("I8", (num_outputs, num_inputs))
        or (scales.type_name, prod(scales.shape)) != ("F32", num_outputs)
    ):
        raise TensorError(
            f"{checkpoint.folder}: {scales.name} is no scale of int8 rows "
            f"{[num_outputs, num_inputs]} in its weight"
        )
    layer = make_packed_layer(linear, Scheme(8))
    model.set_submodule(path, layer)
    del stored[f"{path}.weight"]
    stored[f"{path}.weight_packed"] = replace(
        rows,
        shape=tuple(layer.weight_packed.shape),
        type_name="I32",
        convert=pack_signed_rows,
    )
    stored[f"{path}.weight_scale"] = replace(
        scales, shape=(num_outputs, 1), convert=partial(read_row_scales, name=scales.name)
    )


def read_row_scales(scales: torch.Tensor, name: str) -> torch.Tensor:
    return require_finite(scales.view(-1, 1) / HIGHEST_LEVEL, name)

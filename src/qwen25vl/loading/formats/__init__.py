"""How a folder's weights are quantised, whatever format says so.

Each format has a file that reads its configuration, and gives a model the layers and a checkpoint
the names that the model knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.config_values import read_json
from qwen25vl.errors import CheckpointError
from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.formats import awq, bitsandbytes, fp8, gguf, gptq, mlx, torchao
from qwen25vl.loading.formats.compressed import expect_packed
from qwen25vl.loading.formats.compressed_config import METHOD, read_groups
from qwen25vl.loading.formats.config_reader import ROOT, ConfigReader
from qwen25vl.loading.scheme import Scheme
from qwen25vl.single_file.safetensors_file import METHOD as COMFYUI

Expect = Callable[[nn.Module, Checkpoint], None]
# told by their tensors alone
BY_TENSORS: dict[str, Expect] = {
    gguf.METHOD: gguf.expect_layers,
    bitsandbytes.METHOD: bitsandbytes.expect_layers,
    torchao.METHOD: torchao.expect_layers,
    COMFYUI: fp8.expect_comfyui,
    fp8.FBGEMM: fp8.expect_layers,
}
METHODS = (
    METHOD, awq.METHOD, gptq.METHOD, gptq.AUTO_ROUND, fp8.METHOD, fp8.FBGEMM, fp8.MODELOPT,
    bitsandbytes.METHOD, torchao.METHOD,
)  # fmt: skip
# known, and not read: what they are
OTHERS = {
    "hqq": "HQQ", "aqlm": "AQLM", "quip": "QuIP#", "quip_sharp": "QuIP#", "vptq": "VPTQ",
    "higgs": "HIGGS", "spqr": "SpQR", "eetq": "EETQ", "quanto": "Quanto", "bitnet": "BitNet",
    "exl2": "EXL2", "exl3": "EXL3", "marlin": "Marlin", "gptq_marlin": "Marlin",
    "awq_marlin": "Marlin", "fp_quant": "FP-Quant", "mxfp4": "MXFP4", "quark": "Quark",
    "nvfp4": "NVFP4",
}  # fmt: skip
OLD_GPTQ = "quantize_config.json"
SIZES = ("bits", "group_size")  # under the same names in several formats
REMEDY = "take a version in AWQ, GGUF, FP8, compressed-tensors or bfloat16"


@dataclass(frozen=True)
class StoredFormat:
    """method: the format's name. schemes: the kinds of quantised layers, where a configuration says
    them. expect: gives a model on "meta" the quantised layers of a checkpoint, and the checkpoint
    the numbers of what no kernel reads as it is stored; raises CheckpointError (TensorError)."""

    method: str
    schemes: tuple[Scheme, ...]
    expect: Expect


def stored_format(config: Qwen2_5_VLConfig, folder: Path) -> StoredFormat | None:
    """How a folder's weights are quantised; None where they are not.

    Old writers of GPTQ put the configuration into a file of its own. Raises CheckpointError that
    names the key which is not supported.
    """
    values: object = config.quantization_config
    if values is None:
        values = getattr(config, "quantization", None)  # MLX's own name
    if values is None and (folder / OLD_GPTQ).is_file():
        values = {"quant_method": gptq.METHOD} | read_json(folder / OLD_GPTQ)
    return None if values is None else read_format(values, folder)


def read_format(config: object, folder: Path) -> StoredFormat:
    """What a quantization_config says.

    Raises CheckpointError that names the key which is not supported.
    """
    reader = ConfigReader(folder)
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if isinstance(config, Mapping) and mlx.is_mlx(config):
        mlx.check_config(config, folder)
        return StoredFormat(mlx.METHOD, (), mlx.expect_layers)
    if method is None or method == METHOD:
        groups = read_groups(config, folder)
        schemes = tuple(group.scheme for group in groups if group.scheme is not None)
        return StoredFormat(METHOD, schemes, partial(expect_packed, groups=groups))
    if isinstance(method, str) and method.lower() in OTHERS:
        raise CheckpointError(
            f"{folder} is quantised by {OTHERS[method.lower()]}, which is not read; {REMEDY}"
        )
    values = reader.read_object(config, ROOT)
    if method == gptq.AUTO_ROUND:
        values = as_auto_round(values, reader)
        method = values["quant_method"]
    return read_method(method, values, reader)


def read_method(method: object, values: dict[str, Any], reader: ConfigReader) -> StoredFormat:
    """A format with a method of its own."""
    folder = reader.folder
    if method == awq.METHOD:
        scheme = awq.read_awq_scheme(values, folder)
        return StoredFormat(awq.METHOD, (scheme,), partial(awq.expect_layers, scheme=scheme))
    if method == gptq.METHOD:
        offset = gptq.read_offset(values, folder)
        return StoredFormat(gptq.METHOD, (), partial(gptq.expect_layers, offset=offset))
    if method == fp8.METHOD:
        block = fp8.read_block(values, folder)
        return StoredFormat(fp8.METHOD, (), partial(fp8.expect_layers, block=block))
    if method == fp8.MODELOPT:
        fp8.check_modelopt(values, folder)
        return StoredFormat(fp8.MODELOPT, (), fp8.expect_layers)
    if isinstance(method, str) and method in BY_TENSORS:
        return StoredFormat(method, (), BY_TENSORS[method])
    wanted = f"expected {' or '.join(map(repr, METHODS))}; {REMEDY}"
    raise reader.refuse(f"{ROOT}.quant_method", method, wanted)


def as_auto_round(values: dict[str, Any], reader: ConfigReader) -> dict[str, Any]:
    """AutoRound's configuration as that of the format in which it packs."""
    form = values.get("packing_format")
    for method in (gptq.METHOD, awq.METHOD):
        if isinstance(form, str) and form.endswith(f"auto_{method}"):
            kept: dict[str, Any] = {key: values[key] for key in SIZES if key in values}
            symmetric = values.get("sym") if method == awq.METHOD else None
            if symmetric is not None:
                kept["zero_point"] = not symmetric
            return {**kept, "quant_method": method}
    wanted = "of AutoRound 'auto_round:auto_gptq' and 'auto_round:auto_awq' are read"
    raise reader.refuse(f"{ROOT}.packing_format", form, wanted)

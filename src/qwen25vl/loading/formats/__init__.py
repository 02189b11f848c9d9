"""How a folder's weights are quantised, whatever format says so.

Each format has a file that reads its configuration, and gives a model the layers and a checkpoint
the names that the model knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.formats import awq, gguf
from qwen25vl.loading.formats.compressed import expect_packed
from qwen25vl.loading.formats.compressed_config import METHOD, read_groups
from qwen25vl.loading.formats.config_reader import ROOT, ConfigReader
from qwen25vl.loading.scheme import Scheme

METHODS = (METHOD, awq.METHOD)
# read whatever their configuration says, of which there is none or which the tensors repeat
BY_TENSORS = {gguf.METHOD: gguf.expect_layers}


@dataclass(frozen=True)
class StoredFormat:
    """method: the format's name. schemes: the kinds of quantised layers, where a configuration says
    them. expect: gives a model on "meta" the quantised layers of a checkpoint, and the checkpoint
    the numbers of what no kernel reads as it is stored; raises CheckpointError (TensorError)."""

    method: str
    schemes: tuple[Scheme, ...]
    expect: Callable[[nn.Module, Checkpoint], None]


def read_format(config: object, folder: Path) -> StoredFormat:
    """What a quantization_config says.

    Raises CheckpointError that names the key which is not supported.
    """
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if method == awq.METHOD:
        scheme = awq.read_awq_scheme(config, folder)
        return StoredFormat(awq.METHOD, (scheme,), partial(awq.expect_layers, scheme=scheme))
    if method in BY_TENSORS:
        return StoredFormat(method, (), BY_TENSORS[method])
    if method is not None and method != METHOD:
        wanted = f"expected {' or '.join(map(repr, METHODS))}"
        raise ConfigReader(folder).refuse(f"{ROOT}.quant_method", method, wanted)
    groups = read_groups(config, folder)
    schemes = tuple(group.scheme for group in groups)
    return StoredFormat(METHOD, schemes, partial(expect_packed, groups=groups))

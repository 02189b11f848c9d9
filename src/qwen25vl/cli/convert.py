"""`qwen25vl convert`: a checkpoint in any form that is read, as a folder of the hub's form."""

from __future__ import annotations

import argparse

from qwen25vl.cli.opening import say
from qwen25vl.ecosystem.torchao_config import TorchAoConfig, read_scheme
from qwen25vl.errors import UsageError
from qwen25vl.loading.folder import convert_folder
from qwen25vl.loading.load import DTYPES


def convert(arguments: argparse.Namespace) -> int:
    if "" in (arguments.model, arguments.folder):
        raise UsageError("a model or folder has an empty name")
    is_plain = arguments.to in DTYPES
    scheme = None
    if arguments.to is not None and not is_plain:
        scheme = read_scheme(arguments.to)
    if arguments.group_size is not None:
        if scheme is None or scheme.bits != 4:
            raise UsageError("--group-size belongs to --to int4")
        scheme = TorchAoConfig("int4_weight_only", arguments.group_size, scheme.vision).scheme
    dtype = DTYPES[arguments.to if is_plain else "bfloat16"]
    try:
        target = convert_folder(
            arguments.model,
            arguments.folder,
            dtype=dtype,
            scheme=scheme,
            keep_packed=not is_plain,
            force=arguments.force,
            revision=arguments.revision,
            local_files_only=arguments.offline,
        )
    except KeyboardInterrupt:
        say(
            f"interrupted: {arguments.folder} was not written, and nothing is left of what was "
            "begun"
        )
        raise
    size = sum(path.stat().st_size for path in target.iterdir())
    say(f"{target} is ready: {size / 1e9:.2f} GB; use it with -m, or in any engine that reads it")
    return 0

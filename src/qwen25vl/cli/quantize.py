"""`qwen25vl quantize`: a checkpoint's weights in fewer bits, written to a new folder."""

from __future__ import annotations

import argparse

from qwen25vl.cli.opening import say
from qwen25vl.ecosystem.torchao_config import TorchAoConfig
from qwen25vl.errors import UsageError
from qwen25vl.loading.folder import quantize_folder


def quantize(arguments: argparse.Namespace) -> int:
    if "" in (arguments.model, arguments.folder):
        raise UsageError("a model or folder has an empty name")
    config = TorchAoConfig(
        f"int{arguments.bits}_weight_only", arguments.group_size, arguments.vision
    )
    try:
        target = quantize_folder(
            arguments.model,
            arguments.folder,
            config.scheme,
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
    say(
        f"{target} is ready: {size / 1e9:.2f} GB; use it with -m, or in any engine that reads "
        "compressed-tensors"
    )
    return 0

"""`qwen25vl quantize`: a checkpoint's weights in fewer bits, written to a new folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen25vl.cli.reporting import write_checkpoint
from qwen25vl.ecosystem.torchao_config import TorchAoConfig
from qwen25vl.loading.folder import quantize_folder


def quantize(arguments: argparse.Namespace) -> int:
    def work() -> Path:
        config = TorchAoConfig(
            f"int{arguments.bits}_weight_only", arguments.group_size, arguments.vision
        )
        return quantize_folder(
            arguments.model,
            arguments.folder,
            config.scheme,
            force=arguments.force,
            revision=arguments.revision,
            local_files_only=arguments.offline,
        )

    names = (arguments.model, arguments.folder)
    return write_checkpoint(names, work, ", or in any engine that reads compressed-tensors")

"""`qwen25vl merge`: a LoRA adapter and its base as one checkpoint, written to a new folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen25vl.cli.reporting import write_checkpoint
from qwen25vl.loading.merging import merge_adapter


def merge(arguments: argparse.Namespace) -> int:
    def work() -> Path:
        return merge_adapter(
            arguments.adapter,
            arguments.folder,
            model=arguments.model,
            force=arguments.force,
            local_files_only=arguments.offline,
        )

    return write_checkpoint((arguments.adapter, arguments.model, arguments.folder), work, "")

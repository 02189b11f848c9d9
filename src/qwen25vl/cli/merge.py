"""`qwen25vl merge`: a LoRA adapter and its base as one checkpoint, written to a new folder."""

from __future__ import annotations

import argparse

from qwen25vl.cli.opening import say
from qwen25vl.errors import UsageError
from qwen25vl.loading.merging import merge_adapter


def merge(arguments: argparse.Namespace) -> int:
    if "" in (arguments.adapter, arguments.folder, arguments.model):
        raise UsageError("a model or folder has an empty name")
    target = merge_adapter(
        arguments.adapter,
        arguments.folder,
        model=arguments.model,
        force=arguments.force,
        local_files_only=arguments.offline,
    )
    size = sum(path.stat().st_size for path in target.iterdir())
    say(f"{target} is ready: {size / 1e9:.2f} GB; use it with -m")
    return 0

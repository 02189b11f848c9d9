"""`qwen25vl convert`: a checkpoint in any form that is read, as a folder or as GGUF."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen25vl.cli.reporting import write_checkpoint
from qwen25vl.ecosystem.gguf_export import KINDS, export_gguf
from qwen25vl.ecosystem.torchao_config import TorchAoConfig, read_scheme
from qwen25vl.errors import UsageError
from qwen25vl.loading.folder import convert_folder
from qwen25vl.loading.load import DTYPES


def convert(arguments: argparse.Namespace) -> int:
    def work() -> Path:
        if arguments.folder.endswith(".gguf"):
            return write_gguf_files(arguments)
        if arguments.to in ("q4_0", "q8_0") or arguments.mmproj is not None:
            raise UsageError("q4_0, q8_0 and --mmproj are for GGUF; let OUT end with .gguf")
        is_plain = arguments.to in DTYPES
        scheme = None
        if arguments.to is not None and not is_plain:
            scheme = read_scheme(arguments.to)
        if arguments.group_size is not None:
            if scheme is None or scheme.bits != 4:
                raise UsageError("--group-size belongs to --to int4")
            scheme = TorchAoConfig("int4_weight_only", arguments.group_size, scheme.vision).scheme
        return convert_folder(
            arguments.model,
            arguments.folder,
            dtype=DTYPES[arguments.to if is_plain else "bfloat16"],
            scheme=scheme,
            keep_packed=not is_plain,
            force=arguments.force,
            revision=arguments.revision,
            local_files_only=arguments.offline,
        )

    names = (arguments.model, arguments.folder)
    return write_checkpoint(names, work, ", or in any engine that reads it")


def write_gguf_files(arguments: argparse.Namespace) -> Path:
    """Raises UsageError for options that are for folders alone."""
    kind = arguments.to or "bfloat16"
    if kind not in KINDS or arguments.group_size is not None:
        raise UsageError(f"a GGUF file is written with --to {', '.join(KINDS)}, in blocks of 32")
    return export_gguf(
        arguments.model,
        arguments.folder,
        kind,
        vision_kind=arguments.mmproj,
        force=arguments.force,
        revision=arguments.revision,
        local_files_only=arguments.offline,
    )

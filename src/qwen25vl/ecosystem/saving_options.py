"""Options of transformers' save_pretrained for models."""

from __future__ import annotations

import re

from qwen25vl.errors import OptionError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def check_save_options(
    max_shard_size: int | str,
    *,
    safe_serialization: bool,
    push_to_hub: bool,
    variant: str | None,
) -> int:
    """The bytes of the largest file. Raises OptionError for what is not supported."""
    if not safe_serialization:
        raise OptionError("safe_serialization is False; weights are written as safetensors only")
    if push_to_hub:
        raise OptionError("push_to_hub is True; save first, then `hf upload NAME FOLDER`")
    if variant is not None:
        raise OptionError(f"variant is {variant!r}; files have no variants here, save to a folder")
    return read_size(max_shard_size)


def read_size(size: int | str) -> int:
    """Bytes, from a number or a text such as "5GB" or "500MiB"."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]I?B)", str(size).upper())
    if found is None:
        raise OptionError(f"max_shard_size is {size!r}; give bytes, or a size such as '5GB'")
    return int(float(found[1]) * UNITS[found[2]])

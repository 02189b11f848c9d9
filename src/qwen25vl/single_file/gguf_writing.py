"""Writing GGUF files: the inverse of gguf_header.py, whose tables of types it uses.

A file is written from its beginning to its end, one tensor in memory at a time.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from qwen25vl.single_file.gguf_header import ARRAY, DEFAULT_ALIGNMENT, MAGIC, NUMBERS, TEXT, TYPES

VERSION = 3
IDS = {name: (number, per, size) for number, (name, per, size) in TYPES.items()}
KINDS = {bool: 7, int: 4, float: 6, str: TEXT}  # ids of the types in which values are written
SIGNED = 5  # of numbers in arrays, as llama.cpp reads sections and token types
Planned = tuple[tuple[int, ...], str]
"""Shape as torch has it, and the name of a type."""


def num_bytes(planned: Planned) -> int:
    """Bytes of a tensor whose rows are whole blocks."""
    shape, type_name = planned
    _, per, size = IDS[type_name]
    return prod(shape) // per * size


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    plan: Mapping[str, Planned],
    tensors: Iterable[torch.Tensor],
) -> None:
    """Write a file; it is on the disk when this returns.

    metadata: bools, whole numbers, floats, texts, and lists of one kind. plan: the tensors by name,
    in the order of `tensors`, which are the bytes of each, as uint8.
    """
    header = MAGIC + struct.pack("<IQQ", VERSION, len(plan), len(metadata))
    header += b"".join(text(name) + value_with_type(value) for name, value in metadata.items())
    offset = 0
    for name, (shape, type_name) in plan.items():
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += struct.pack("<IQ", IDS[type_name][0], offset)
        offset += padded(num_bytes((shape, type_name)))
    with path.open("wb") as file:
        file.write(header.ljust(padded(len(header)), b"\0"))
        for planned, tensor in zip(plan.values(), tensors, strict=True):
            size = num_bytes(planned)
            assert tensor.dtype == torch.uint8
            assert tensor.numel() == size
            file.write(tensor.reshape(-1).numpy().data)
            file.write(bytes(padded(size) - size))
        file.flush()
        os.fsync(file.fileno())


def padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def value_with_type(value: Any) -> bytes:
    if not isinstance(value, list):
        return struct.pack("<I", KINDS[type(value)]) + encode(value, KINDS[type(value)])
    kind = KINDS[type(value[0])] if value else TEXT
    if kind == KINDS[int]:
        kind = SIGNED
    head = struct.pack("<IIQ", ARRAY, kind, len(value))
    return head + b"".join(encode(element, kind) for element in value)


def encode(value: Any, kind: int) -> bytes:
    return text(value) if kind == TEXT else struct.pack("<" + NUMBERS[kind], value)

"""The header of a GGUF file: its metadata, and where its tensors lie.

    "GGUF" · version u32 · number of tensors u64 · number of keys u64
    keys: name · type u32 · value           text: length u64 · UTF-8
    tensors: name · number of dimensions u32 · u64 each, the fastest first · type u32 · offset u64
    data, from the next multiple of general.alignment

All numbers are little-endian. Nothing is believed before it is compared with what the file has:
counts, lengths and offsets of a damaged file lead to an error and to no large allocation. Format:
ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from qwen25vl.config_values import shown
from qwen25vl.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
TEXT, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
# by id: name, numbers in a block, bytes of a block
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """shape: as torch has it, the fastest dimension last. start: from the beginning of the file.
    row_bytes: of the numbers along the last dimension."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    start: int
    num_bytes: int
    row_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """metadata: numbers, texts, and arrays as lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is one."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """Read a file's header. Raises CheckpointError where the file is none, damaged or cut off."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return HeaderReader(path, data).read()
    except (OSError, ValueError, struct.error) as error:  # mmap of no bytes is a ValueError
        raise CheckpointError(f"{path} is damaged or cut off: {error}; download it again") from None


class HeaderReader:
    """Reads from a place that moves on."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.place = path, data, 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or cut off: {what}; download it again")

    def read(self) -> GgufHeader:
        self.place = len(MAGIC)
        if self.data[: len(MAGIC)] != MAGIC:
            raise CheckpointError(f"{self.path} is no GGUF file")
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            known = "files for big-endian machines are not read" if swapped else "2 and 3 are read"
            raise CheckpointError(f"{self.path} has version {version} of GGUF; {known}")
        num_tensors, num_keys = self.number("Q"), self.number("Q")
        self.require(num_keys, 12 + 1, "keys")
        self.require(num_tensors, 8 + 4 + 8 + 4 + 8, "tensors")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            name = self.text()
            if name in metadata:
                raise self.damaged(f"the key {name!r} is there twice")
            metadata[name] = self.value(self.number("I"))
        entries = [self.tensor() for _ in range(num_tensors)]
        return GgufHeader(self.path, metadata, self.place_tensors(entries, metadata))

    def require(self, count: int, num_bytes: int, what: str) -> None:
        """Raise CheckpointError unless so many things of at least so many bytes can follow."""
        if count * num_bytes > len(self.data) - self.place:
            raise self.damaged(f"{count} {what} do not fit into what is left of it")

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.data, self.place)
        self.place += struct.calcsize("<" + kind)
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.require(length, 1, "bytes of a text")
        start, self.place = self.place, self.place + length
        try:
            return self.data[start : self.place].decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a text is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise self.damaged(f"a value of the unknown type {kind}")
        element, count = self.number("I"), self.number("Q")
        if element == TEXT:
            self.require(count, 8, "texts")
            return [self.text() for _ in range(count)]
        if element not in NUMBERS:
            raise self.damaged(f"an array of the type {element}")
        form = NUMBERS[element]
        self.require(count, struct.calcsize(form), "numbers")
        start, size = self.place, count * struct.calcsize("<" + form)
        self.place += size
        return list(struct.unpack(f"<{count}{form}", self.data[start : self.place]))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, id of the type, offset."""
        name, num_dimensions = self.text(), self.number("I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self.damaged(f"{name!r} has {num_dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(num_dimensions))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def place_tensors(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
    ) -> dict[str, GgufTensor]:
        """The tensors by name, each inside of the file and apart from the others."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {shown(alignment)}")
        data = -(-self.place // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise self.damaged(f"the tensor {name!r} is there twice")
            tensors[name] = self.place_tensor(name, shape, kind, data, offset, alignment)
        end = data
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
            if tensor.start < end:
                raise self.damaged(f"{tensor.name!r} overlaps the tensor before it")
            end = tensor.start + tensor.num_bytes
        if end > len(self.data) and tensors:
            raise self.damaged(f"it has {len(self.data)} bytes, its tensors end at {end}")
        return tensors

    def place_tensor(
        self, name: str, shape: tuple[int, ...], kind: int, data: int, offset: int, alignment: int
    ) -> GgufTensor:
        if kind not in TYPES:
            raise CheckpointError(
                f"{self.path}: {name!r} is of the unknown type {kind}; take a file in Q4_K_M or "
                "Q8_0, or the safetensors folder"
            )
        type_name, per_block, block_bytes = TYPES[kind]
        if not all(shape) or shape[-1] % per_block:
            raise self.damaged(f"{name!r} is {list(shape)} in {type_name}, no whole blocks")
        if offset % alignment:
            raise self.damaged(f"{name!r} begins at {offset}, no multiple of {alignment}")
        row_bytes = shape[-1] // per_block * block_bytes
        num_bytes = prod(shape[:-1]) * row_bytes
        return GgufTensor(name, shape, type_name, data + offset, num_bytes, row_bytes)

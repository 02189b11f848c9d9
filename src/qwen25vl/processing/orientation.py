"""A picture file without its metadata, and the one fact in it that matters: the orientation."""

from __future__ import annotations

from dataclasses import dataclass

from qwen25vl.processing.tiff import read_orientation, read_xmp_orientation


@dataclass(frozen=True)
class Stripped:
    """A file without metadata, and its orientation as EXIF counts it, 1 to 8."""

    data: bytes
    orientation: int = 1


class Orientation:
    """The first valid word of EXIF; else XMP's, which editors leave behind
    more often than they correct it.
    """

    def __init__(self) -> None:
        self.of_exif: int | None = None
        self.of_xmp: int | None = None

    def take_exif(self, block: bytes) -> None:
        self.of_exif = self.of_exif or read_orientation(block)

    def take_xmp(self, block: bytes) -> None:
        self.of_xmp = self.of_xmp or read_xmp_orientation(block)

    @property
    def value(self) -> int:
        return self.of_exif or self.of_xmp or 1
